"""Images -> uint8 blocks on the host, by threads, and their normalisation on the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.functional import pil_modes_mapping

from purity_cli.datasets import UnreadableImage
from purity_cli.errors import PurityError
from purity_cli.plan import Preprocessing, Size

AHEAD = 2
"""Blocks that are decoded while the engine works on one."""

LARGEST = 2**26
"""Pixels of a resized image beyond which only the part that the crop keeps is made. No image comes near that whose
longer side is less than a thousand times the shorter one, for the usual sizes."""

_ALONE = Lock()


class ImageReader(Protocol):
    """What is needed of a `datasets.ImageDataset`."""

    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Sequence[int] | None: ...
    def load(self, i: int, /) -> Image.Image: ...


@dataclass(frozen=True)
class Block:
    """B consecutive images of the job's list, less the unreadable ones."""

    number: int
    pixels: Tensor
    """uint8 (n, 3, h, w), channels last in memory."""
    positions: Tensor
    """int64 (n,), in the job's list."""
    labels: Tensor
    """int64 (n,), -1 where unknown."""
    skipped: tuple[tuple[str, str], ...]
    """(path, reason) of each image that could not be read."""


class Pixels:
    """Blocks of a selection of images, resized and cropped by PIL; only `AHEAD` blocks are in memory at a time.

    `workers` threads decode, PIL lets go of the interpreter while it does; or those of `pool`, which is left running
    for whoever shares it. Raises PurityError where an image is unreadable and `on_bad_image` is `fail`, and where
    images come in several sizes and nothing makes them one.
    """

    def __init__(
        self,
        source: ImageReader,
        selection: Sequence[int],
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        workers: int,
        on_bad_image: str = "skip",
        pin: bool = False,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self.source, self.selection, self.preprocessing = source, selection, preprocessing
        self.batch_size, self.workers, self.on_bad_image = batch_size, workers, on_bad_image
        self.pin, self.pool = pin, pool

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-len(self.selection) // self.batch_size)

    def blocks(self, numbers: Sequence[int] | None = None) -> Generator[Block]:
        """The blocks with these numbers, in this order; all of them by default. Close it where it is left early."""
        waiting = deque(range(len(self)) if numbers is None else numbers)
        ready: deque[tuple[int, list[Future[NDArray[np.uint8] | UnreadableImage]]]] = deque()
        pool = self.pool or ThreadPoolExecutor(max(1, self.workers), thread_name_prefix="decode")
        try:
            while waiting or ready:
                while waiting and len(ready) <= AHEAD:
                    number = waiting.popleft()
                    ready.append((number, [pool.submit(self._load, k) for k in self._positions(number)]))
                number, futures = ready[0]
                block = self._assemble(number, [future.result() for future in futures])
                ready.popleft()
                yield block
        finally:
            for _, futures in ready:
                for future in futures:
                    future.cancel()
            if pool is not self.pool:
                # Not waiting for its threads: where a generator is left to the garbage collector, this may run while
                # `threading` itself holds the lock that joining them takes.
                pool.shutdown(wait=False)

    def _positions(self, number: int) -> range:
        start = number * self.batch_size
        return range(start, min(start + self.batch_size, len(self.selection)))

    def _load(self, position: int) -> NDArray[np.uint8] | UnreadableImage:
        i = self.selection[position]
        try:
            return np.asarray(prepare(self.source, i, self.preprocessing))
        except UnreadableImage as error:
            if self.on_bad_image == "fail":
                raise PurityError(
                    f"{self.source.paths[i]} cannot be read ({error}): mend or remove it, or use --on-bad-image skip."
                ) from None
            return error

    def _assemble(self, number: int, images: Sequence[NDArray[np.uint8] | UnreadableImage]) -> Block:
        places = self._positions(number)
        read = [(k, image) for k, image in zip(places, images, strict=True) if isinstance(image, np.ndarray)]
        paths, labels = self.source.paths, self.source.labels
        shape = read[0][1].shape if read else (0, 0, 3)
        pixels = torch.empty((len(read), *shape), dtype=torch.uint8, pin_memory=self.pin)
        for row, (k, image) in zip(pixels.numpy(), read, strict=True):
            if image.shape != shape:
                raise PurityError(
                    f"{paths[self.selection[k]]} is {image.shape[0]}x{image.shape[1]} and others are "
                    f"{shape[0]}x{shape[1]}: give --resize and --crop, so that all are of one size."
                )
            row[...] = image
        return Block(
            number=number,
            pixels=pixels.permute(0, 3, 1, 2),
            positions=self._integers([k for k, _ in read]),
            labels=self._integers([labels[self.selection[k]] if labels else -1 for k, _ in read]),
            skipped=tuple(
                (paths[self.selection[k]], str(image))
                for k, image in zip(places, images, strict=True)
                if isinstance(image, UnreadableImage)
            ),
        )

    def _integers(self, values: Sequence[int]) -> Tensor:
        # From memory that is not pinned, a copy to the device may wait for what the device does.
        return torch.tensor(values, dtype=torch.int64, pin_memory=self.pin)


def prepare(source: ImageReader, i: int, preprocessing: Preprocessing) -> Image.Image:
    """Image i (RGB) as the network sees it, before normalisation; UnreadableImage where it cannot be decoded, or takes
    more memory than there is.
    """
    try:
        return resize_and_crop(source.load(i), preprocessing, source.paths[i])
    except MemoryError:
        pass
    # It may be that others took it: once more, with no other image that needs as much.
    with _ALONE:
        try:
            return resize_and_crop(source.load(i), preprocessing, source.paths[i])
        except MemoryError:
            raise UnreadableImage("it takes more memory than there is") from None


def size_of(source: ImageReader, selection: Sequence[int], preprocessing: Preprocessing) -> Size | None:
    """(h, w) of these images as the network sees them: of the first that can be read, where no setting tells."""
    known = preprocessing.crop or preprocessing.resize
    if isinstance(known, tuple):
        return known
    for i in selection:
        with suppress(UnreadableImage):
            image = prepare(source, i, preprocessing)
            return image.height, image.width
    return None


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing, path: str) -> Image.Image:
    """The image (RGB) as the network sees it, before normalisation; `path` is for messages."""
    if size := preprocessing.resize:
        short, long = sorted(image.size)
        if isinstance(size, int) and size * int(size * long / short) > LARGEST:  # as torchvision rounds it
            return _resize_what_is_kept(image, preprocessing, path)
        mode = InterpolationMode(preprocessing.interpolation)
        image = F.resize(image, [size] if isinstance(size, int) else list(size), mode)
    if preprocessing.crop:
        _check_crop(preprocessing.crop, image.height, image.width, path)
        image = F.center_crop(image, list(preprocessing.crop))
    return image


def _check_crop(crop: tuple[int, int], height: int, width: int, path: str) -> None:
    if height < crop[0] or width < crop[1]:
        raise PurityError(f"{path} is {height}x{width}, too small for a crop of {crop[0]}x{crop[1]}: give --resize.")


def _resize_what_is_kept(image: Image.Image, preprocessing: Preprocessing, path: str) -> Image.Image:
    """As resizing all of a very long image and cropping it then, but only what is kept is made.

    The pixels are the same but for what PIL rounds, as it takes the place of a part as float32: on noise that is
    enlarged, values differed by 2 of 255 at most with the filters that are continuous (bilinear, bicubic, lanczos,
    hamming). Where the short side shrinks as well, PIL may resize down before across, and rounds otherwise in between.
    """
    size = preprocessing.resize
    assert isinstance(size, int)
    whole = [size if side == min(image.size) else int(size * max(image.size) / min(image.size)) for side in image.size]
    if preprocessing.crop is None:
        raise UnreadableImage(f"resized to a short side of {size} it is {whole[1]}x{whole[0]}: give --crop")
    _check_crop(preprocessing.crop, whole[1], whole[0], path)
    part, resample = image, pil_modes_mapping[InterpolationMode(preprocessing.interpolation)]
    # Across and then down, as PIL does it where it enlarges.
    for axis, (side, resized, kept) in enumerate(zip(image.size, whole, reversed(preprocessing.crop), strict=True)):
        first = round((resized - kept) / 2.0)  # as torchvision's center_crop
        start, stop = first * side / resized, (first + kept) * side / resized
        # What the filters reach beyond it, of which the widest takes three pixels to either side.
        reach = math.ceil(3 * max(1.0, side / resized)) + 1
        begin, end = max(0, math.floor(start) - reach), min(side, math.ceil(stop) + reach)
        # PIL takes places as float32: the smaller they are, the more exactly.
        if axis == 0:
            part = part.crop((begin, 0, end, part.height))
            part = part.resize((kept, part.height), resample, box=(start - begin, 0, stop - begin, part.height))
        else:
            part = part.crop((0, begin, part.width, end))
            part = part.resize((part.width, kept), resample, box=(0, start - begin, part.width, stop - begin))
    return part


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (n, 3, h, w) -> the network's float32 input, on the device and in the memory format of `pixels`."""
    mean, std = _constants(preprocessing, pixels.device)
    images = pixels.float().div_(255).sub_(mean).div_(std)
    return images.flip(1) if preprocessing.bgr else images


@cache
def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(preprocessing.mean, device=device).view(3, 1, 1),
        torch.tensor(preprocessing.std, device=device).view(3, 1, 1),
    )
