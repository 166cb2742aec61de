"""Images -> uint8 blocks on the host, by threads, and their normalisation on the device."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from purity_cli.datasets import UnreadableImage
from purity_cli.errors import PurityError
from purity_cli.plan import Preprocessing, Size

AHEAD = 2
"""Blocks that are decoded while the engine works on one."""

LARGEST = 2**26
"""Pixels of a resized image beyond which it is left out. No image comes near that whose longer side is less than a
thousand times the shorter one, for the usual sizes."""

_ALONE = Lock()

T = TypeVar("T")


class ImageReader(Protocol):
    """What is needed of a `datasets.ImageDataset`."""

    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Sequence[int] | None: ...
    def read(self, i: int, /) -> bytes: ...
    def decode(self, i: int, data: bytes, /) -> Image.Image: ...
    def stamp(self, i: int, /) -> str: ...


class Decoded(NamedTuple):
    """One image as the network sees it, before normalisation."""

    pixels: NDArray[np.uint8] | UnreadableImage
    """(h, w, 3)."""
    digest: str
    """SHA-256, in hex, of the bytes that it was decoded from; empty where these could not be read."""


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
    digest: str = ""
    """SHA-256, in hex, over the label of each image and the bytes that it was decoded from, in order; also of the
    images that could not be decoded."""


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
        ready: deque[tuple[int, list[Future[Decoded]]]] = deque()
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

    def stamp(self, number: int) -> str:
        """Of the places, sizes and times of a block's images, and of their labels. It is cheap, and equal stamps mean
        equal images; unequal ones mean that `digest` has to be compared.
        """
        return self._over(number, (self.source.stamp(self.selection[k]) for k in self._positions(number)))

    def digest(self, number: int) -> str:
        """As `Block.digest`: reads the images of a block, but decodes none."""
        return self._over(number, (self._read(self.selection[k])[1] for k in self._positions(number)))

    def _over(self, number: int, texts: Iterable[str]) -> str:
        """SHA-256, in hex, over a text for each image of a block, and its label."""
        labels = (self._label(k) for k in self._positions(number))
        lines = (f"{label} {text}\n" for label, text in zip(labels, texts, strict=True))
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def _label(self, position: int) -> int:
        return self.source.labels[self.selection[position]] if self.source.labels else -1

    def _read(self, i: int) -> tuple[bytes | UnreadableImage, str]:
        """Image i's bytes, or why there are none; and their digest."""
        try:
            data = _with_memory(lambda: self.source.read(i))
        except UnreadableImage as error:
            return error, ""
        return data, hashlib.sha256(data).hexdigest()

    def _load(self, position: int) -> Decoded:
        i = self.selection[position]
        data, digest = self._read(i)
        try:
            if isinstance(data, UnreadableImage):
                raise data
            return Decoded(np.asarray(prepare(self.source, i, self.preprocessing, data)), digest)
        except UnreadableImage as error:
            if self.on_bad_image == "fail":
                raise PurityError(
                    f"{self.source.paths[i]} cannot be read ({error}): mend or remove it, or use --on-bad-image skip."
                ) from None
            return Decoded(error, digest)

    def _assemble(self, number: int, images: Sequence[Decoded]) -> Block:
        places, paths = self._positions(number), self.source.paths
        read = [(k, image) for k, (image, _) in zip(places, images, strict=True) if isinstance(image, np.ndarray)]
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
            labels=self._integers([self._label(k) for k, _ in read]),
            skipped=tuple(
                (paths[self.selection[k]], str(image))
                for k, (image, _) in zip(places, images, strict=True)
                if isinstance(image, UnreadableImage)
            ),
            digest=self._over(number, (digest for _, digest in images)),
        )

    def _integers(self, values: Sequence[int]) -> Tensor:
        # From memory that is not pinned, a copy to the device may wait for what the device does.
        return torch.tensor(values, dtype=torch.int64, pin_memory=self.pin)


def prepare(source: ImageReader, i: int, preprocessing: Preprocessing, data: bytes | None = None) -> Image.Image:
    """Image i (RGB) as the network sees it, before normalisation, from its bytes if these were read already.

    Raises UnreadableImage where it cannot be decoded, or takes more memory than there is.
    """

    def make() -> Image.Image:
        image = source.decode(i, source.read(i) if data is None else data)
        return resize_and_crop(image, preprocessing, source.paths[i])

    return _with_memory(make)


def _with_memory(make: Callable[[], T]) -> T:
    """What `make` gives; UnreadableImage where that takes more memory than there is."""
    try:
        return make()
    except MemoryError:
        pass
    # It may be that others took it: once more, with no other image that needs as much.
    with _ALONE:
        try:
            return make()
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
    """The image (RGB) as the network sees it, before normalisation; `path` is for messages.

    The pixels are those of `resize` and `center_crop` in torchvision.transforms.functional, which rounds as here.
    """
    if size := preprocessing.resize:
        width, height = _resized(image, size)
        if width * height > LARGEST:
            raise UnreadableImage(
                f"its {image.width}x{image.height} pixels would become {width}x{height} as its short side is resized "
                f"to {size}"
            )
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling[preprocessing.interpolation.upper()])
    if crop := preprocessing.crop:
        if image.height < crop[0] or image.width < crop[1]:
            raise PurityError(
                f"{path} is {image.height}x{image.width}, too small for a crop of {crop[0]}x{crop[1]}: give --resize."
            )
        left, top = round((image.width - crop[1]) / 2), round((image.height - crop[0]) / 2)
        image = image.crop((left, top, left + crop[1], top + crop[0]))
    return image


def _resized(image: Image.Image, size: int | Size) -> tuple[int, int]:
    """The width and height that an image gets."""
    if isinstance(size, tuple):
        return size[1], size[0]
    short, long = min(image.size), int(size * max(image.size) / min(image.size))
    return (size if image.width == short else long), (size if image.height == short else long)


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
