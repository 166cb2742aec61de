"""What every set of images gives: the contract `ImageDataset`, images in memory and in files, and their splits."""

from __future__ import annotations

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purity_cli.datasets.decoding import UnreadableImage, decode
from purity_cli.errors import PurityError, did_you_mean

SPLITS = ("test", "val", "validation", "valid", "train")
"""What splits are called, the one taken by default first; train never is."""


class NoSplit(PurityError):
    """Images without the split that was asked for, or without one to take by default."""


@dataclass(eq=False)
class ImageDataset(ABC):
    """Images in a fixed order, so that image i is the same one everywhere: that of their paths' bytes, and in shards
    and tables that in which they are stored.
    """

    name: str
    """For tables and file names: `imagenet`, `digits`, a folder's own name; with `-train` where that split was asked
    for and is not the default."""
    paths: Sequence[str]
    """Relative to where the images were said to be, with `/`; for errors and `run.json`, so that they can be written
    whatever bytes they are of (`files.shown`)."""
    labels: Sequence[int] | None = None
    """Class of each image, 0..len(class_names)-1; None where unknown."""
    label_note: str | None = None
    """Why `labels` is None, as a clause."""
    class_names: Sequence[str] | None = None
    """None where labels are unknown, or are numbers without names."""
    kind: str = field(default="", kw_only=True)
    """How the images lie there, in a few words: `class folders in a tar`."""
    order: str | None = field(default=None, kw_only=True)
    """How classes got their numbers, as a clause; None where there was nothing to choose."""
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What a user must know of how these images were read: choices that were taken, what was left out. Sentences."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, in hex, that names this list of images and labels; see each data set for what it covers."""

    @abstractmethod
    def read(self, i: int, /) -> bytes:
        """All bytes that decide image i; UnreadableImage where they cannot be read. Threads may call this at once."""

    @abstractmethod
    def decode(self, i: int, data: bytes, /) -> Image.Image:
        """Image i, RGB, decoded to its last pixel from what `read` gave; UnreadableImage otherwise."""

    @abstractmethod
    def stamp(self, i: int, /) -> str:
        """What is known of image i without reading it: its place, size and time. Equal stamps mean equal bytes."""

    def load(self, i: int, /) -> Image.Image:
        """Image i, RGB; UnreadableImage where it cannot be read or decoded. Threads may call this at once."""
        return self.decode(i, self.read(i))

    def relabelled(self, labels: Sequence[int], class_names: Sequence[str]) -> Self:
        """The same images with labels that count the classes of something else, a network. The fingerprint stays."""
        other = copy.copy(self)
        other.labels, other.class_names = labels, class_names
        other.__dict__["fingerprint"] = self.fingerprint  # it is a cached property, of the images' own labels
        return other


@dataclass(eq=False)
class ArrayImages(ImageDataset):
    """Images that are in memory. The fingerprint covers every pixel."""

    pixels: NDArray[np.uint8] = field(kw_only=True)
    """(n, h, w, 3)."""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.paths, map(self.stamp, range(len(self))), self.labels)

    def read(self, i: int, /) -> bytes:
        return bytes(self.pixels[i])

    def decode(self, i: int, data: bytes, /) -> Image.Image:
        height, width, _ = self.pixels[i].shape
        return Image.frombytes("RGB", (width, height), data)

    def stamp(self, i: int, /) -> str:
        return hashlib.sha256(self.read(i)).hexdigest()


class File(NamedTuple):
    """One image file, wherever it lies."""

    path: str
    """Relative to the root of all files, with `/`."""
    size: int
    """Bytes."""
    changed: int
    """When the file, or the archive that it is in, last changed in any way: its ctime in ns, which no program sets."""
    problem: str | None = None
    """Why it cannot be read, where that is known without opening it."""
    place: Any = None
    """Where its bytes are, for its reader."""


class Reader(Protocol):
    """Gives a file's bytes; UnreadableImage where it cannot. Threads may call this at once."""

    def read(self, file: File) -> bytes: ...


@dataclass(eq=False)
class FileImages(ImageDataset):
    """Images in files, in a folder, an archive or tables.

    The fingerprint covers each image's path below the folder of the images, its size in bytes and its label: it is
    the same for a folder and a tar of it, wherever that lies. It does not notice a file whose content was changed
    while its size was not; that is what `stamp` and `pixels.Block.digest` are for.
    """

    reader: Reader = field(kw_only=True)
    files: Sequence[File] = field(kw_only=True)
    root: str = field(kw_only=True)
    """The whole path of what the files' paths are relative to."""
    base: str = field(default="", kw_only=True)
    """The folder of the images, relative to that."""

    @cached_property
    def fingerprint(self) -> str:
        below = (file.path.removeprefix(f"{self.base}/") for file in self.files)
        return fingerprint(below, (file.size for file in self.files), self.labels)

    def read(self, i: int, /) -> bytes:
        file = self.files[i]
        if file.problem:
            raise UnreadableImage(file.problem)
        return self.reader.read(file)

    def decode(self, i: int, data: bytes, /) -> Image.Image:
        return decode(data, self.files[i].path)

    def stamp(self, i: int, /) -> str:
        file = self.files[i]
        return f"{self.root}/{file.path} {file.size} {file.changed}"


@dataclass(frozen=True)
class DatasetKind:
    """A kind of data set: one row of `purity datasets`."""

    name: str
    """What can be named, or `kind:PATH` where paths are."""
    open: Callable[[str | None, str | None, bool], ImageDataset]
    """From a place (data_dir, or the path itself), a split and leave to download; PurityError where it cannot."""
    about: str
    classes: int | None
    splits: tuple[str, ...]
    """The default first; empty where they depend on what is found."""
    needs: str
    """What has to be there."""
    fits: Callable[[str], bool] | None = None
    """Whether the images at a path are of this kind; None where this is no kind of path but one set of images."""
    class_names: Callable[[], Sequence[str]] | None = None
    """What a network that was trained on this set knows; None where that is not known beforehand."""


def fingerprint(paths: Iterable[str], contents: Iterable[object], labels: Iterable[int] | None) -> str:
    """SHA-256, in hex, over (path, what stands for the content, label) of each image, in order."""
    digest = hashlib.sha256()
    for path, content, label in zip(paths, contents, repeat(None) if labels is None else labels, strict=False):
        digest.update(os.fsencode(path) + f"\0{content}\0{label}\0".encode())
    return digest.hexdigest()


def default_split(there: Sequence[str]) -> str | None:
    """The split taken where none is asked for; None where only train is there."""
    return next((name for name in SPLITS[:-1] if name in there), None)


def choose_split(owner: str, asked: str | None, there: Sequence[str], default: str | None) -> str:
    """The split asked for, or the default; NoSplit where it is not there."""
    known = ", ".join(there)
    chosen = asked or default
    if chosen is None:
        raise NoSplit(f"{owner} has only {known}, and neither test nor val: pass --split {there[0]}.")
    if chosen not in there:
        raise NoSplit(f"{owner} has no split {chosen!r}: it has {known}.{did_you_mean(chosen, there)}")
    return chosen


def with_split(name: str, split: str | None, default: str | None) -> str:
    """A data set's name: with its split, unless that is the one taken by default."""
    return name if split == default else f"{name}-{split}"
