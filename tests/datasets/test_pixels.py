"""Blocks: the libraries' own transforms, order, threads, unreadable images."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from purity_cli.datasets import UnreadableImage, open_dataset
from purity_cli.errors import PurityError
from purity_cli.pixels import AHEAD, Pixels, normalise, prepare, resize_and_crop
from purity_cli.plan import Preprocessing

IMAGENET = Preprocessing(resize=40, crop=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Noise:
    """`n` pictures of noise; those in `bad` cannot be read."""

    def __init__(self, n: int, bad: Sequence[int] = (), size: tuple[int, int] = (48, 60)) -> None:
        self.paths = [f"{i:03}.png" for i in range(n)]
        self.labels: list[int] | None = [i % 3 for i in range(n)]
        self.bad, self.size, self.loaded = set(bad), size, 0
        self.lock = threading.Lock()

    def read(self, i: int) -> bytes:
        return f"image {i}".encode()

    def decode(self, i: int, data: bytes) -> Image.Image:
        assert data == self.read(i)
        with self.lock:
            self.loaded += 1
        if i in self.bad:
            raise UnreadableImage("truncated")
        pixels = np.random.default_rng(i).integers(0, 256, (*self.size, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def stamp(self, i: int) -> str:
        return f"{self.paths[i]} at noon"


def blocks(
    source: Noise, selection: Sequence[int], preprocessing: Preprocessing = IMAGENET, **options: object
) -> Pixels:
    return Pixels(source, selection, preprocessing, **{"batch_size": 4, "workers": 3, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize(("resize", "crop"), [(40, (32, 32)), ((40, 50), (30, 41)), (None, (32, 32)), (41, None)])
def test_pixels_are_torchvisions(
    interpolation: str, resize: int | tuple[int, int] | None, crop: tuple[int, int] | None
) -> None:
    preprocessing = IMAGENET.model_copy(update={"resize": resize, "crop": crop, "interpolation": interpolation})
    source = Noise(5)
    steps: list[object] = [transforms.Resize(resize, InterpolationMode(interpolation))] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    steps += [transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    expected = torch.stack([transforms.Compose(steps)(source.decode(i, source.read(i))) for i in range(5)])
    got = torch.cat(
        [normalise(block.pixels, preprocessing) for block in blocks(source, range(5), preprocessing).blocks()]
    )
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_any_size_is_resized_and_cropped_as_torchvision_does_it(interpolation: str) -> None:
    """Odd and even sides and rests, squares, sides that stay, images enlarged and made smaller."""
    rng = np.random.default_rng(1)
    for _ in range(150):
        height, width = (int(side) for side in rng.integers(1, 70, 2))
        size: Any = int(rng.integers(1, 60)) if rng.random() < 0.7 else tuple(map(int, rng.integers(1, 60, 2)))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        whole = F.resize(image, [size] if isinstance(size, int) else list(size), InterpolationMode(interpolation))
        crop = (int(rng.integers(1, whole.height + 1)), int(rng.integers(1, whole.width + 1)))
        expected = F.center_crop(whole, list(crop))
        preprocessing = Preprocessing(resize=size, crop=crop, interpolation=interpolation)  # type: ignore[arg-type]
        got = resize_and_crop(image, preprocessing, "x")
        assert got.size == expected.size
        assert np.array_equal(np.asarray(got), np.asarray(expected)), (height, width, size, crop)


def test_importing_purity_silences_no_warning_of_pillow() -> None:
    code = "import warnings, purity_cli.pixels; from PIL.Image import DecompressionBombWarning as kind\n"
    code += "print(kind in [entry[2] for entry in warnings.filters])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_digest_is_that_of_bytes_and_labels_and_a_stamp_of_neither() -> None:
    def digests(source: Noise, selection: Sequence[int] = range(6)) -> list[str]:
        everything = blocks(source, selection)
        found = [block.digest for block in everything.blocks()]
        assert found == [everything.digest(k) for k in range(len(everything))]
        return found

    class Changed(Noise):
        def read(self, i: int) -> bytes:
            return b"another" if i == 5 else super().read(i)

    first, second = digests(Noise(6))
    assert digests(Changed(6))[0] == first
    assert digests(Changed(6))[1] != second
    assert digests(Noise(6, bad=[1])) == [first, second]
    assert digests(Noise(6), [1, 0, 2, 3])[0] != first
    other = Noise(6)
    assert other.labels
    other.labels[0] = 2
    assert digests(other)[0] != first
    assert blocks(other, range(6)).stamp(0) != blocks(Noise(6), range(6)).stamp(0)
    assert blocks(Changed(6), range(6)).stamp(1) == blocks(Noise(6), range(6)).stamp(1)
    assert len({blocks(Noise(6), range(6)).stamp(k) for k in (0, 1)}) == 2


def test_bgr_reverses_the_channels_after_normalisation() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(
        normalise(pixels, IMAGENET.model_copy(update={"bgr": True})), normalise(pixels, IMAGENET).flip(1)
    )


def test_blocks_hold_the_selection_in_order_whatever_the_threads_do() -> None:
    source, selection = Noise(30), [3, 4, 8, 9, 15, 16, 17, 21, 28]
    got = list(blocks(source, selection).blocks())
    assert [block.number for block in got] == [0, 1, 2]
    assert [block.positions.tolist() for block in got] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert torch.cat([block.labels for block in got]).tolist() == [i % 3 for i in selection]
    one = next(blocks(source, [17]).blocks())
    assert torch.equal(got[1].pixels[2], one.pixels[0])
    assert source.loaded == len(selection) + 1


def test_chosen_blocks_are_the_same_blocks() -> None:
    everything = list(blocks(Noise(10), range(10)).blocks())
    chosen = list(blocks(Noise(10), range(10)).blocks([2, 0]))
    assert [block.number for block in chosen] == [2, 0]
    assert all(torch.equal(block.pixels, everything[block.number].pixels) for block in chosen)


def test_unknown_labels_are_minus_one() -> None:
    source = Noise(3)
    source.labels = None
    assert next(blocks(source, range(3)).blocks()).labels.tolist() == [-1, -1, -1]


def test_unreadable_images_are_left_out_and_named() -> None:
    got = list(blocks(Noise(9, bad=[1, 4, 5, 6, 7]), range(9)).blocks())
    assert [block.positions.tolist() for block in got] == [[0, 2, 3], [], [8]]
    assert got[0].skipped == (("001.png", "truncated"),)
    assert [path for path, _ in got[1].skipped] == ["004.png", "005.png", "006.png", "007.png"]


def test_an_unreadable_image_stops_the_run_if_asked() -> None:
    with pytest.raises(PurityError, match=r"006.png cannot be read \(truncated\): .* --on-bad-image skip"):
        list(blocks(Noise(9, bad=[6]), range(9), on_bad_image="fail").blocks())


def test_images_of_several_sizes_need_a_resize() -> None:
    class Sizes(Noise):
        def decode(self, i: int, data: bytes) -> Image.Image:
            return super().decode(i, data).crop((0, 0, 30 + i % 2, 30))

    with pytest.raises(PurityError, match="001.png is 30x31 and others are 30x30: give --resize and --crop"):
        list(blocks(Sizes(4), range(4), Preprocessing()).blocks())
    with pytest.raises(PurityError, match="000.png is 30x30, too small for a crop of 32x32: give --resize"):
        list(blocks(Sizes(4), range(4), Preprocessing(crop=(32, 32))).blocks())


def test_leaving_early_stops_the_threads_and_never_decodes_far_ahead() -> None:
    source, before = Noise(400), set(threading.enumerate())
    stream = blocks(source, range(400)).blocks()
    next(stream)
    del stream
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert source.loaded <= 4 * (AHEAD + 2)


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_two_blocks_and_no_more_are_decoded_ahead(taken: int) -> None:
    source = Noise(400)
    with ThreadPoolExecutor(2) as pool:
        stream = blocks(source, range(400), pool=pool).blocks()
        for _ in range(taken):
            next(stream)
        # Leaving the pool waits for all that it was given.
    assert source.loaded == 4 * (taken + 2)


def test_leaving_early_waits_for_no_thread() -> None:
    """The garbage collector may do the leaving, in the middle of what another thread needs to end."""
    go_on = threading.Event()

    class Slow(Noise):
        def decode(self, i: int, data: bytes) -> Image.Image:
            if i >= 4:
                go_on.wait()
            return super().decode(i, data)

    stream = blocks(Slow(20), range(20)).blocks()
    next(stream)
    leaver = threading.Thread(target=stream.close)
    leaver.start()
    leaver.join(10)
    left = not leaver.is_alive()
    go_on.set()
    leaver.join()
    assert left


def test_everything_that_is_copied_to_the_device_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU nothing can be pinned, and so what is asked for is looked at."""
    asked: list[bool] = []
    for name in ("empty", "tensor"):
        make = getattr(torch, name)

        def without(*given: object, make: Callable[..., Tensor] = make, pin_memory: bool, **more: object) -> Tensor:
            asked.append(pin_memory)
            return make(*given, **more)

        monkeypatch.setattr(torch, name, without)
    for pin in (True, False):
        (block,) = blocks(Noise(3), range(3), batch_size=3, pin=pin).blocks()
        assert asked == [pin] * 3  # pixels, positions, labels
        assert block.positions.tolist() == [0, 1, 2]
        asked.clear()


# One image that takes everything


@pytest.mark.parametrize("size", [(40_000, 2), (2, 40_000)])
def test_an_image_that_would_fill_the_memory_is_left_out_by_name(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "long.png")
    source = open_dataset(str(tmp_path))
    (block,) = Pixels(source, range(1), Preprocessing(resize=256, crop=(224, 224)), batch_size=2, workers=1).blocks()
    ((path, reason),) = block.skipped
    assert path == "long.png"
    assert "5120000" in reason


def test_memory_that_one_image_takes_is_that_images_trouble() -> None:
    class Greedy(Noise):
        """Image 1 never fits, and image 2 only when it is tried again."""

        def decode(self, i: int, data: bytes) -> Image.Image:
            tried.append(i)
            if i == 1 or (i == 2 and tried.count(2) == 1):
                raise MemoryError
            return super().decode(i, data)

    tried: list[int] = []
    (block,) = Pixels(Greedy(4), range(4), IMAGENET, batch_size=4, workers=2).blocks()
    assert block.skipped == (("001.png", "it takes more memory than there is"),)
    assert block.positions.tolist() == [0, 2, 3]
    assert sorted(tried) == [0, 1, 1, 2, 2, 3]
    with pytest.raises(UnreadableImage, match="more memory"):
        prepare(Greedy(4), 1, IMAGENET)
