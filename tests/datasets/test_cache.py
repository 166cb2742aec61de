"""Decode once: cached pixels are the uncached ones to the bit, whatever happens to the files in between."""

from __future__ import annotations

import errno
import io
import json
import logging
import multiprocessing
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from purity_cli import cache as caching
from purity_cli import cli
from purity_cli.cache import Cache, CachedPixels, default_root
from purity_cli.datasets import ImageDataset, open_dataset
from purity_cli.datasets.base import ArrayImages
from purity_cli.errors import PurityError
from purity_cli.pixels import Block, Decoded, Pixels
from purity_cli.plan import Preprocessing
from tests.datasets.test_datasets import pack
from tests.datasets.test_datasets_named import batches  # noqa: F401
from tests.logged import logged
from tests.memory import PEAK

CROPPED = Preprocessing(resize=40, crop=(32, 32), interpolation="bicubic")
PLAIN = Preprocessing()
Says = list[str]


@pytest.fixture(autouse=True)
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests must pass on a disk that is nearly full."""
    monkeypatch.setattr(caching, "LEFT_FREE", 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of JPEGs of several sizes, and a file that is none."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (44 + i, 60 - i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg", quality=80)
    (tmp_path / "photos" / "cat" / "3.jpg").write_bytes(b"no picture")
    return tmp_path / "photos"


def noise(n: int, size: tuple[int, int] = (12, 10)) -> ArrayImages:
    return ArrayImages(
        name="noise",
        paths=[f"{i:03}" for i in range(n)],
        labels=[i % 3 for i in range(n)],
        pixels=np.random.default_rng(n).integers(0, 256, (n, *size, 3), dtype=np.uint8),
    )


def count_loads(source: ImageDataset) -> Counter[int]:
    """What is decoded from now on."""
    loads: Counter[int] = Counter()
    decode, lock = source.decode, threading.Lock()

    def counted(i: int, data: bytes) -> Image.Image:
        with lock:
            loads[i] += 1
        return decode(i, data)

    source.decode = counted  # type: ignore[method-assign]
    return loads


def read(
    source: ImageDataset,
    root: Path | None,
    preprocessing: Preprocessing = CROPPED,
    selection: Sequence[int] | None = None,
    says: Says | None = None,
    size: int = 5,
) -> list[Block]:
    """All blocks of a selection, through the cache in `root` or without; a warning fails where no list takes it."""
    chosen = range(len(source)) if selection is None else selection
    if root is None:
        return list(Pixels(source, chosen, preprocessing, batch_size=size, workers=3).blocks())
    with logged() as warned:
        found = list(CachedPixels(source, chosen, preprocessing, root=root, batch_size=size, workers=3).blocks())
    if says is None:
        assert not warned
    else:
        says += warned
    return found


def assert_same(got: Sequence[Block], expected: Sequence[Block]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert (one.number, one.skipped, one.digest) == (other.number, other.skipped, other.digest)
        for name in ("pixels", "positions", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.pixels.stride() == other.pixels.stride()


def only_folder(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


# Cached equals uncached


@pytest.mark.parametrize("preprocessing", [CROPPED, Preprocessing(resize=(20, 30)), Preprocessing(crop=(40, 33))])
@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])
def test_files_give_the_same_pixels_and_are_decoded_once(
    kind: str, preprocessing: Preprocessing, photos: Path, tmp_path: Path
) -> None:
    place = str(photos) if kind == "folder" else pack(photos, tmp_path / f"p.{kind}", "w:gz" if "gz" in kind else "w")
    expected = read(open_dataset(place), None, preprocessing)
    assert [path for block in expected for path, _ in block.skipped] == ["cat/3.jpg"]
    for times in (1, 0, 0):
        source = open_dataset(place)
        loads = count_loads(source)
        assert_same(read(source, tmp_path / "cache", preprocessing), expected)
        # What could not be read may have been mended, and is always tried.
        assert loads == Counter({i: times if path != "cat/3.jpg" else 1 for i, path in enumerate(source.paths)})


def test_cifar_gives_the_same_pixels_and_is_resized_once(batches: Path, tmp_path: Path) -> None:  # noqa: F811
    for preprocessing in (PLAIN, CROPPED):
        for times in (1, 0):
            source = open_dataset("cifar10", data_dir=str(batches))
            expected = read(source, None, preprocessing)
            loads = count_loads(source)
            assert_same(read(source, tmp_path / "cache", preprocessing), expected)
            assert loads == Counter(dict.fromkeys(range(len(source)), times))


def test_real_photographs(shared: Path, tmp_path: Path) -> None:
    preprocessing = Preprocessing(resize=256, crop=(224, 224))
    some = tmp_path / "some"
    for folder in sorted((shared / "data" / "imagenet-sample").iterdir())[:12]:
        shutil.copytree(folder, some / folder.name)
    for place in (str(some), pack(some, tmp_path / "some.tar")):
        source = open_dataset(place)
        expected = read(source, None, preprocessing)
        assert sum(len(block.positions) for block in expected) == 12
        read(source, tmp_path / "cache", preprocessing)
        loads = count_loads(source)
        assert_same(read(source, tmp_path / "cache", preprocessing), expected)
        assert not +loads


@settings(max_examples=40, deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.lists(st.integers(0, 19), min_size=1, unique=True).map(sorted), st.integers(1, 7), st.randoms()),
        min_size=1,
        max_size=4,
    )
)
def test_any_selections_share_a_cache(runs: list[tuple[list[int], int, random.Random]]) -> None:
    source = noise(20)
    plain = noise(20)
    loads = count_loads(source)
    with tempfile.TemporaryDirectory() as root:
        for selection, size, order in runs:
            options: dict[str, Any] = {"batch_size": size, "workers": 2}
            ours = CachedPixels(source, selection, PLAIN, root=Path(root), **options)
            numbers = list(range(len(ours)))
            order.shuffle(numbers)
            assert_same(list(ours.blocks(numbers)), list(Pixels(plain, selection, PLAIN, **options).blocks(numbers)))
    assert loads == Counter({i for selection, _, _ in runs for i in selection})


@pytest.mark.parametrize(
    ("change", "shared_cache"),
    [
        ({"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "bgr": True}, True),
        ({"interpolation": "bilinear"}, False),
        ({"resize": 41}, False),
        ({"resize": (40, 40)}, False),
        ({"crop": (32, 31)}, False),
        ({"crop": None, "resize": (32, 32)}, False),
    ],
)
def test_what_changes_no_pixel_changes_no_cache(change: dict[str, Any], shared_cache: bool, tmp_path: Path) -> None:
    source = noise(4)
    read(source, tmp_path)
    loads = count_loads(source)
    other = CROPPED.model_copy(update=change)
    assert_same(read(source, tmp_path, other), read(noise(4), None, other))
    assert bool(+loads) is not shared_cache


def test_interpolation_matters_only_to_a_resize(tmp_path: Path) -> None:
    source = noise(4)
    read(source, tmp_path, PLAIN)
    loads = count_loads(source)
    read(source, tmp_path, Preprocessing(interpolation="lanczos"))
    assert not +loads


def test_another_decoder_has_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise(4)
    read(source, tmp_path)
    monkeypatch.setattr(PIL, "__version__", "99.0")
    caching.decoder.cache_clear()
    loads = count_loads(source)
    read(source, tmp_path)
    assert sum(loads.values()) == 4
    assert [entry.usable for entry in caching.entries(tmp_path)] == [True, False]
    caching.decoder.cache_clear()


# Files that changed, were damaged, or are something else


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_replaced_image_of_the_same_size_and_date_is_decoded_again(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.bmp")
        os.utime(folder / f"{i}.bmp", (1, 1))

    def source() -> ImageDataset:
        return open_dataset(str(folder) if kind == "folder" else pack(folder, tmp_path / "photos.tar"))

    first = source()
    read(first, tmp_path / "cache", PLAIN)
    time.sleep(0.02)  # more than the tick of a file system's clock
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "2.bmp")
    os.utime(folder / "2.bmp", (1, 1))
    second = source()
    assert second.fingerprint == first.fingerprint
    loads = count_loads(second)
    got = read(second, tmp_path / "cache", PLAIN)
    assert got[0].pixels[2].unique().tolist() == [9]
    assert loads == Counter([2] if kind == "folder" else range(5))
    loads.clear()
    read(second, tmp_path / "cache", PLAIN)
    assert not loads


def damage(folder: Path, how: str) -> None:
    pixels, records, about = folder / caching.PIXELS, folder / caching.RECORDS, folder / caching.ABOUT
    match how:
        case "pixels truncated":
            os.truncate(pixels, pixels.stat().st_size - 1)
        case "pixels empty":
            pixels.write_bytes(b"")
        case "records truncated":
            os.truncate(records, records.stat().st_size - 4)
        case "no records":
            records.unlink()
        case "no description":
            about.unlink()
        case "a description cut short":
            about.write_text(about.read_text()[:-20])
        case "a description that is none":
            about.write_bytes(b"[1, 2]\xff")
        case "the cache of something else":
            found = json.loads(about.read_text())
            found["identity"]["resize"] = 99
            about.write_text(json.dumps(found))
        case "a file of that name":
            shutil.rmtree(folder)
            folder.write_text("a diary")
        case "an empty folder":
            shutil.rmtree(folder)
            folder.mkdir()


@pytest.mark.parametrize(
    "how",
    ["pixels truncated", "pixels empty", "records truncated", "no records", "no description", "a description cut short",
     "a description that is none", "the cache of something else", "a file of that name", "an empty folder"],
)  # fmt: skip
def test_a_damaged_cache_is_made_anew(how: str, tmp_path: Path) -> None:
    source = noise(7)
    expected = read(source, tmp_path)
    damage(only_folder(tmp_path), how)
    assert how == "the cache of something else" or caching.entries(tmp_path)[0].pixels == "damaged"
    loads, says = count_loads(source), Says()
    assert_same(read(source, tmp_path, says=says), expected)
    assert len(says) == 1
    assert "is damaged, or no cache of this tool, and is made anew." in says[0]
    assert sum(loads.values()) == 7
    assert_same(read(source, tmp_path), expected)
    assert sum(loads.values()) == 7
    only_folder(tmp_path)


@pytest.mark.parametrize("name", [caching.PIXELS, caching.RECORDS])
def test_rows_that_hold_something_else_are_decoded_again(name: str, tmp_path: Path) -> None:
    """As after a power cut that lost what was in memory, or where another program wrote into the file."""
    source = noise(8)
    expected = read(source, tmp_path)
    path = only_folder(tmp_path) / name
    content = bytearray(path.read_bytes())
    row = len(content) // 8
    content[2 * row : 4 * row] = bytes(2 * row)
    content[5 * row] ^= 1
    path.write_bytes(bytes(content))
    loads = count_loads(source)
    assert_same(read(source, tmp_path), expected)
    assert set(loads) == {2, 3, 5}
    assert_same(read(source, tmp_path), expected)
    assert sum(loads.values()) == 3


def test_a_row_in_the_place_of_another_is_not_taken(tmp_path: Path) -> None:
    source = noise(4)
    expected = read(source, tmp_path)
    for name in (caching.PIXELS, caching.RECORDS):
        path = only_folder(tmp_path) / name
        content = path.read_bytes()
        half = len(content) // 2
        path.write_bytes(content[half:] + content[:half])
    assert_same(read(source, tmp_path), expected)


@pytest.mark.parametrize("name", [caching.PIXELS, caching.RECORDS])
def test_a_file_that_is_cut_short_in_use_is_done_without(name: str, tmp_path: Path) -> None:
    source, folder = noise(8), tmp_path / "cache"
    expected = read(source, folder)
    loads = count_loads(source)
    pixels = CachedPixels(source, range(8), CROPPED, root=folder, batch_size=5, workers=1)
    path = only_folder(folder) / name
    os.truncate(path, path.stat().st_size // 2)
    assert_same(list(pixels.blocks()), expected)
    assert set(loads) == {4, 5, 6, 7}


def test_a_disk_that_cannot_be_read_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, says = noise(8), Says()
    expected = read(source, tmp_path)

    def fail(file: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    assert_same(read(source, tmp_path, says=says), expected)
    assert len(says) == 1
    assert "(Input/output error); the run goes on without" in says[0]


AGAIN = """
import sys
from pathlib import Path
from purity_cli.cache import CachedPixels
from purity_cli.datasets import open_dataset
from purity_cli.plan import Preprocessing
source = open_dataset(sys.argv[1])
def read():
    pixels = CachedPixels(source, range(len(source)), Preprocessing(), root=Path(sys.argv[2]),
                          batch_size=2, workers=1)
    return sum(len(block.positions) for block in pixels.blocks())
filled, before = read(), peak()
source.decode = None
print(filled, read(), peak() - before)
"""


def test_memory_does_not_follow_what_is_cached(tmp_path: Path) -> None:
    """120 MB of it."""
    for i in range(40):
        picture = np.random.default_rng(i).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i:02}.bmp")
    command = [sys.executable, "-c", PEAK + AGAIN, str(tmp_path / "photos"), str(tmp_path / "cache")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    filled, again, grown = map(int, ran.stdout.split())
    assert (filled, again) == (40, 40)
    assert grown < 30, f"{grown} MB"


def test_an_image_of_another_size_is_not_kept_and_ends_the_run(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(PurityError, match="give --resize and --crop"):
        read(open_dataset(str(photos)), tmp_path / "cache", PLAIN)
    # Where each block is of one size, the engine decides.
    source = open_dataset(str(photos))
    assert_same(read(source, tmp_path / "cache", PLAIN, size=1), read(source, None, PLAIN, size=1))
    assert_same(read(source, tmp_path / "cache", PLAIN, size=1), read(source, None, PLAIN, size=1))


# Kills and company


def fill(root: Path, started: Any = None) -> None:
    """Fill a cache as fast as possible, over and over."""
    source = noise(200, (64, 64))
    while True:
        here = Cache(root, source, PLAIN, range(200))
        for i in range(200):
            here.put(i, Decoded(source.pixels[i], source.stamp(i)))  # its stamp is the digest of its bytes
            if started is not None:
                started.set()
        caching.remove(here.folder)


def test_a_kill_leaves_nothing_that_is_taken_for_pixels(tmp_path: Path) -> None:
    fork, chance = multiprocessing.get_context("fork"), random.Random(0)
    source = noise(200, (64, 64))
    expected = read(source, None, PLAIN, size=50)
    found = set()
    for _ in range(12):
        started = fork.Event()
        process = fork.Process(target=fill, args=(tmp_path, started))
        process.start()
        assert started.wait(30)
        time.sleep(chance.uniform(0, 0.05))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found.add(sum(entry.present for entry in caching.entries(tmp_path)))
        assert_same(read(source, tmp_path, PLAIN, size=50), expected)
        caching.clear(tmp_path, caching.entries(tmp_path))
    assert len(found) > 2, "the kills all came at the same instant"


def _read_all(root: Path, together: Any, answers: Any) -> None:
    source = noise(60, (64, 64))
    loads = count_loads(source)
    together.wait()
    blocks = read(source, root, PLAIN, says=(says := Says()))
    same = all(np.array_equal(block.pixels.permute(0, 2, 3, 1), source.pixels[block.positions]) for block in blocks)
    answers.put((same, sum(loads.values()), says))


def test_processes_that_fill_at_once_agree(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for round_ in range(3):
        root = tmp_path / str(round_)
        together, answers = fork.Barrier(3), fork.Queue()
        processes = [fork.Process(target=_read_all, args=(root, together, answers)) for _ in range(3)]
        for process in processes:
            process.start()
        got = [answers.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        assert all(same and not says for same, _, says in got)
        assert 60 <= sum(loads for _, loads, _ in got) <= 180
        source = noise(60, (64, 64))
        loads = count_loads(source)
        read(source, root, PLAIN)
        assert not loads
        only_folder(root)


def test_clearing_harms_no_run_that_uses_the_cache(tmp_path: Path) -> None:
    source = noise(9)
    expected = read(source, None)
    stream = CachedPixels(source, range(9), CROPPED, root=tmp_path, batch_size=1, workers=1).blocks()
    with logged() as says:
        got = [next(stream)]
        caching.clear(tmp_path, caching.entries(tmp_path))
        got += stream
    assert torch.equal(torch.cat([b.pixels for b in got]), torch.cat([b.pixels for b in expected]))
    assert not says
    assert not list(tmp_path.iterdir())


# Room on the disk


def test_the_size_is_said_before_anything_is_written(tmp_path: Path) -> None:
    source, says = noise(50), list[str]()

    def blocks(limit: int) -> None:
        with logged(logging.INFO) as said:
            pixels = CachedPixels(source, range(limit), CROPPED, root=tmp_path, batch_size=4, workers=3)
            list(pixels.blocks())
        says.extend(said)

    blocks(20)
    blocks(50)
    blocks(50)
    assert len(says) == 2
    assert says[0].startswith(f"Caching noise in {only_folder(tmp_path)}: 61.4 KB, with ")
    assert ": 92.2 KB, with " in says[1]


def test_without_room_the_run_goes_on_uncached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, says = noise(10), Says()
    expected = read(source, None)
    row = 32 * 32 * 3
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(caching, "LEFT_FREE", 5000)
    for free, wanted in ((10 * row + 4999, 1), (10 * row + 5000, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        says.clear()
        assert_same(read(source, tmp_path, says=says), expected)
        assert len(says) == wanted
        assert not wanted or "(30.7 KB are needed, 35.7 KB free)" in says[0]
        assert caching.entries(tmp_path)[0].present == (0 if wanted else 10)


@pytest.mark.parametrize("fault", ["no room", "half a row"])
def test_a_disk_that_fills_up_ends_the_cache_and_not_the_run(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, says, calls = noise(30), Says(), Counter[str]()
    expected = read(source, None)
    pwrite = os.pwrite

    def full(file: int, content: bytes, offset: int) -> int:
        calls["pwrite"] += 1
        if calls["pwrite"] <= 20:
            return pwrite(file, content, offset)
        if fault == "no room":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, content[: len(content) // 2], offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert_same(read(source, tmp_path, says=says), expected)
    assert len(says) == 1
    assert "(No space left on device); the run goes on without" in says[0]
    monkeypatch.setattr(os, "pwrite", pwrite)
    loads = count_loads(source)
    assert_same(read(source, tmp_path), expected)
    assert 15 <= sum(loads.values()) <= 25
    loads.clear()
    read(source, tmp_path)
    assert not loads


def test_the_last_megabytes_of_a_disk_are_left_to_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, says = noise(10), Says()
    monkeypatch.setattr(caching, "LEFT_FREE", 2**62)
    usage = shutil.disk_usage(tmp_path)
    # There was room when the run began.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**63))
    assert_same(read(source, tmp_path, says=says), read(source, None))
    assert len(says) == 1
    assert caching.entries(tmp_path)[0].present == 0


@pytest.mark.parametrize("name", ["open", "mkdir", "rename", "write_text"])
def test_a_cache_that_cannot_be_made_is_done_without(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, says = noise(10), Says()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    expected = read(source, None)
    with monkeypatch.context() as patch:
        patch.setattr(os if name == "open" else Path, name, refuse)
        assert_same(read(source, tmp_path / "cache", says=says), expected)
    assert len(says) == 1
    assert "(Permission denied); the run goes on without" in says[0]
    assert_same(read(source, tmp_path / "cache"), expected)
    assert [path.name[0] for path in (tmp_path / "cache").iterdir()] != ["."]


@pytest.mark.parametrize("refusal", [errno.EROFS, errno.EACCES])
def test_a_cache_that_can_only_be_read_is_read(refusal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise(10)
    expected = read(source, None)
    read(source, tmp_path, selection=range(6))
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(refusal, os.strerror(refusal))

    loads, says = count_loads(source), Says()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        for name in ("utime", "pwrite", "mkdir"):
            patch.setattr(os, name, refuse)
        assert_same(read(source, tmp_path, selection=range(6)), read(noise(10), None, selection=range(6)))
        assert not +loads  # and nothing was said
        assert_same(read(source, tmp_path, says=says), expected)
    assert set(loads) == {6, 7, 8, 9}
    assert len(says) == 1
    assert "can only be read" in says[0]
    assert {path: path.read_bytes() for path in before} == before


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    says = Says()
    assert_same(read(noise(4), tmp_path / "cache", says=says), read(noise(4), None))
    assert len(says) == 1
    with pytest.raises(PurityError, match="Cannot look through"):
        caching.entries(tmp_path / "cache")


# The command


@pytest.fixture
def purity(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["cache", *arguments])
        return code, *capfd.readouterr()

    return call


def test_build_list_clear(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purity: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("PURITY_CACHE", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache"
    assert purity("list") == (0, f"Nothing is cached in {tmp_path}/cache.\n", "")
    build = partial(purity, "build", "--weights", "none", "--dataset", str(photos), "--resize", "40", "--crop", "32")
    code, _, err = build("--limit", "5")
    assert code == 0
    assert "Warning: 1 images could not be read, the first cat/3.jpg (not an image" in err
    assert "4 images of photos are cached in" in err
    assert build("--per-class", "4", "--resize", "36")[0] == 0
    assert purity("build", "--dataset", "digits", "--weights", "none", "--limit", "9")[0] == 0
    found = json.loads(purity("list", "--format", "json")[1])["caches"]
    assert [(entry["dataset"], entry["present"], entry["images"]) for entry in found] == [
        ("digits", 9, 540), ("photos", 7, 12), ("photos", 4, 12),
    ]  # fmt: skip
    _, out, _ = purity("list")
    assert "resize 40 bilinear, crop 32 " in out
    assert "4 of 12" in out
    code, _, err = purity("clear", "digist")
    assert code == 1
    assert "Nothing of 'digist' is cached" in err
    assert "Did you mean digits?" in err
    assert purity("clear", found[2]["key"][:8], "--yes")[0] == 0
    assert len(json.loads(purity("list", "--format", "json")[1])["caches"]) == 2
    assert purity("clear", "photos", "--yes")[0] == 0
    assert [entry["dataset"] for entry in json.loads(purity("list", "--format", "json")[1])["caches"]] == ["digits"]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert purity("clear")[0] == 130
    assert len(caching.entries(tmp_path / "cache")) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert purity("clear")[0] == 0
    assert list((tmp_path / "cache").iterdir()) == []


def test_clear_deletes_only_what_is_a_cache(tmp_path: Path, purity: Callable[..., tuple[int, str, str]]) -> None:
    read(noise(3), tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    (tmp_path / ".hidden").mkdir()
    abandoned, new = (tmp_path / f".0123456789abcdef.{name}.new" for name in ("a", "b"))
    abandoned.mkdir()
    new.mkdir()
    os.utime(abandoned, (1, 1))
    assert purity("clear", "--yes", "--cache", str(tmp_path))[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, ".hidden", "thesis.tex"]


def test_score_keeps_pixels_only_if_asked(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PURITY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    options = ["--dataset", str(photos), "--resize", "40", "--crop", "32", "--device", "cpu", "--format", "csv"]
    printed = []
    for more in ([], ["--cache", "auto"], ["--cache", "auto"], ["--cache", str(tmp_path / "cache")]):
        assert cli.run(["score", *options, *more, "--fresh"]) == 0
        out, err = capfd.readouterr()
        printed.append(out)
        assert ("Caching photos in" in err) is (len(printed) == 2)
        assert (tmp_path / "cache").exists() is (len(printed) > 1)
    assert len(set(printed)) == 1
    assert caching.entries(tmp_path / "cache")[0].present == 11


def test_a_build_that_does_not_fit_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purity: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(caching, "LEFT_FREE", 2**62)
    code, _, err = purity("build", "--dataset", "digits", "--weights", "none", "--limit", "9", "--cache", str(tmp_path))
    assert code == 1
    assert "Warning: New pixels of digits are not cached" in err
    assert "Error: The pixels of digits are not all cached." in err


def test_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PURITY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "purity"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "purity"
    monkeypatch.setenv("PURITY_CACHE", "~/here")
    assert default_root() == tmp_path / "here"


def test_a_user_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purity: Callable[..., tuple[int, str, str]]
) -> None:
    def nobody(_: int) -> Any:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "PURITY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    assert default_root() is None
    said = "there is no home folder to keep it in: set PURITY_CACHE or give --cache DIR"
    for command in (["list"], ["clear", "--yes"], ["build", "--limit", "3"]):
        code, _, err = purity(*command)
        assert (code, err.splitlines()[-1]) == (1, f"Error: There is no cache, because {said}.")
    assert purity("list", "--cache", "here")[0] == 0
    for where in ("auto", "~/x"):
        assert cli.run(["score", "--device", "cpu", "--limit", "20", "--cache", where, "-o", where[-1]]) == 0
        assert (tmp_path / where[-1] / "purity.csv").is_file()
