"""Image files of every kind: their pixels are those of torchvision's `pil_loader`, or a reason says why not."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import pil_loader

from purity_cli.datasets import UnreadableImage, open_dataset
from purity_cli.datasets.decoding import decode
from tests.datasets.test_datasets import NOISE

SIZE = (23, 17)


def noise(bands: int = 3) -> np.ndarray:
    shape = (SIZE[1], SIZE[0], bands) if bands > 1 else (SIZE[1], SIZE[0])
    return NOISE.integers(0, 256, shape, dtype=np.uint8)


def image(mode: str) -> Image.Image:
    if mode in ("P", "1"):
        return Image.fromarray(noise()).convert(mode)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, SIZE, noise(bands).tobytes())


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def deep_png(depth: int, colour: int) -> bytes:
    """A PNG of 16 bits per channel, which PIL does not write for colour."""
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = NOISE.bytes(SIZE[1] * SIZE[0] * samples * depth // 8)
    stride = len(rows) // SIZE[1]
    raw = b"".join(b"\0" + rows[k * stride : (k + 1) * stride] for k in range(SIZE[1]))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *SIZE, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image("RGB"), "jpeg", exif=exif)


READABLE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(image("RGB"), "jpeg"),
    "progressive jpeg": lambda: saved(image("RGB"), "jpeg", progressive=True),
    "grey jpeg": lambda: saved(image("L"), "jpeg"),
    "cmyk jpeg": lambda: saved(image("CMYK"), "jpeg"),
    "jpeg with an orientation": rotated,
    "png": lambda: saved(image("RGB"), "png"),
    "png with alpha": lambda: saved(image("RGBA"), "png"),
    "png of a transparent colour": lambda: saved(image("RGB"), "png", transparency=(1, 2, 3)),
    "grey png": lambda: saved(image("L"), "png"),
    "grey png with alpha": lambda: saved(image("LA"), "png"),
    "grey png of a transparent level": lambda: saved(image("L"), "png", transparency=3),
    "bilevel png": lambda: saved(image("1"), "png"),
    "palette png": lambda: saved(image("P"), "png"),
    "palette png of one transparent colour": lambda: saved(image("P"), "png", transparency=5),
    "palette png with alpha": lambda: saved(image("P"), "png", transparency=bytes(range(256))),
    "png of 16 bits in colour": lambda: deep_png(16, 2),
    "png of 16 bits with alpha": lambda: deep_png(16, 6),
    "webp": lambda: saved(image("RGB"), "webp"),
    "webp with alpha": lambda: saved(image("RGBA"), "webp", lossless=True),
    "bmp": lambda: saved(image("RGB"), "bmp"),
    "palette bmp": lambda: saved(image("P"), "bmp"),
    "ppm": lambda: saved(image("RGB"), "ppm"),
    "pgm": lambda: saved(image("L"), "ppm"),
    "tiff": lambda: saved(image("RGB"), "tiff", compression="tiff_lzw"),
    "cmyk tiff": lambda: saved(image("CMYK"), "tiff"),
    "lab tiff": lambda: saved(image("LAB"), "tiff"),
    "gif": lambda: saved(image("P"), "gif"),
    "animated gif": lambda: saved(image("P"), "gif", save_all=True, append_images=[image("P")]),
    "jpeg of several pictures": lambda: saved(image("RGB"), "mpo", save_all=True, append_images=[image("RGB")]),
}


@pytest.mark.parametrize("kind", READABLE)
def test_pixels_are_those_of_pil_loader(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(READABLE[kind]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of theirs, about transparency that is lost
        theirs = pil_loader(str(tmp_path / "x.jpg"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = open_dataset(str(tmp_path)).load(0)
    assert (ours.mode, ours.size) == ("RGB", SIZE)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged(png: bytes) -> bytes:
    """With compressed pixels that are none, and the checksum that they then have."""
    start = png.index(b"IDAT")
    size = int.from_bytes(png[start - 4 : start])
    chunk = b"IDAT" + bytes(size)
    return png[:start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[start + 8 + size :]


UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"<html>not found</html>" * 100, "not an image of a known kind"),
    "one byte": (lambda: b"\xff", "not an image of a known kind"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known kind"),
    "truncated jpeg": (lambda: truncated(READABLE["jpeg"]()), "truncated"),
    "truncated png": (lambda: truncated(READABLE["png"]()), "truncated"),
    "truncated bmp": (lambda: truncated(READABLE["bmp"]()), "truncated"),
    "png without pixels": (lambda: READABLE["png"]().replace(b"IDAT", b"IDOT"), "or damaged at its start"),
    "png of garbage": (lambda: damaged(READABLE["png"]()), r"^damaged \("),
    "grey png of 16 bits": (lambda: deep_png(16, 0), r"16-bit or floating-point pixels \(mode I;16\)"),
    "grey tiff of 32 bits": (lambda: saved(Image.new("I", SIZE, 70000), "tiff"), r"\(mode I\), which 8 bits would"),
    "tiff of floats": (lambda: saved(Image.new("F", SIZE, 0.5), "tiff"), r"\(mode F\)"),
    "pgm of 16 bits": (lambda: b"P5 2 2 65535\n" + bytes(8), r"\(mode I"),
    "bomb": (lambda: b"P6 20000 20000 255\n" + bytes(8), "decompression bomb"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_unreadable_and_why(kind: str, tmp_path: Path) -> None:
    data, reason = UNREADABLE[kind]
    (tmp_path / "x.tif").write_bytes(data())
    with pytest.raises(UnreadableImage, match=reason) as caught:
        open_dataset(str(tmp_path)).load(0)
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("kind", ["jpeg", "png", "palette png", "webp", "bmp", "tiff", "gif", "ppm"])
def test_no_damage_is_worse_than_unreadable(kind: str) -> None:
    """Whatever is broken off or flipped, the answer is a picture or a short reason."""
    whole = READABLE[kind]()
    outcomes = {"read": 0, "unreadable": 0}
    for k in range(150):
        data = bytearray(whole)
        for place in NOISE.integers(0, len(data), 4):
            data[place] ^= int(NOISE.integers(1, 256))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = decode(bytes(data) if k % 2 else truncated(bytes(data)))
            assert picture.mode == "RGB"
            outcomes["read"] += 1
        except UnreadableImage as error:
            reason = str(error)
            outcomes["unreadable"] += 1
            assert 0 < len(reason) < 120
    assert outcomes["unreadable"] > 0


def test_files_that_go_or_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(READABLE["png"]())
    source = open_dataset(str(tmp_path))
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableImage, match=r"^No such file or directory$"):
        source.load(0)

    def refuse(path: str, *_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)  # root, as whom tests may run, may read everything
    with pytest.raises(UnreadableImage, match=r"^Permission denied$"):
        source.load(1)


def test_the_photographs_are_pil_loaders(shared: Path) -> None:
    source = open_dataset(str(shared / "data" / "imagenet-sample"))
    for i in range(0, len(source), 25):
        theirs = pil_loader(str(shared / "data" / "imagenet-sample" / source.paths[i]))
        assert source.load(i).tobytes() == theirs.tobytes()


def test_deep_colour_is_what_the_tests_say() -> None:
    """The hand-made files are what their names say, so that the tests above are about them."""
    assert Image.open(io.BytesIO(deep_png(16, 0))).mode == "I;16"
    assert Image.open(io.BytesIO(deep_png(16, 2))).mode == "RGB"
    assert Image.open(io.BytesIO(rotated())).getexif()[0x0112] == 6
