"""A folder of caches: the two raw arrays of each, pixels and marks, what they are of, and their removal."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torchvision
from numpy.typing import NDArray
from PIL import features

from purity_cli.datasets import ImageDataset
from purity_cli.errors import PurityError, log
from purity_cli.plan import Preprocessing

FORMAT = 1
PIXELS, MARKS, ABOUT = "pixels.u8", "marks.u32", "about.json"
KEY_LENGTH = 16
ABANDONED = 60
"""Seconds after which an unfinished folder is a dead process's."""

Shape = tuple[int, ...]


class Rows:
    """The open files of a cache of n images, whose lengths were found right. OSError where they cannot be opened.

    Nothing is read or written through a map: all that was ever read through one counts as this process's memory, and
    where a disk is full, or another cuts a file short, a map is no error but a signal that kills the process.
    """

    def __init__(self, folder: Path, n: int, shape: Shape) -> None:
        self.folder, self.shape, self._n, self._bytes = folder, shape, n, int(np.prod(shape))
        self.refused: OSError | None = None
        """Why nothing can be put: the files may only be read."""
        self._pixels, self._marks = self._open(PIXELS), self._open(MARKS)

    def _open(self, name: str) -> int:
        try:
            file = os.open(self.folder / name, os.O_RDWR)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self.refused = error
            file = os.open(self.folder / name, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        return file

    def absent(self, selection: Sequence[int]) -> int:
        """How many of these images were never put."""
        marks = np.zeros(self._n, np.uint32)
        found = os.pread(self._marks, marks.nbytes, 0)
        marks[: len(found) // 4] = np.frombuffer(found, np.uint32, len(found) // 4)
        return int(np.count_nonzero(marks[np.asarray(selection, dtype=np.int64)] == 0))

    def get(self, i: int, changed: int) -> NDArray[np.uint8] | None:
        """Image i's pixels, None where its mark does not fit; `changed` is what the source says of it."""
        mark = int.from_bytes(os.pread(self._marks, 4, i * 4), sys.byteorder)
        if not mark:
            return None
        content = os.pread(self._pixels, self._bytes, i * self._bytes)
        whole = len(content) == self._bytes and mark == _mark(i, changed, content)
        return np.frombuffer(content, np.uint8).reshape(self.shape) if whole else None

    def put(self, i: int, changed: int, pixels: NDArray[np.uint8], left_free: int) -> None:
        """Write image i's pixels and then its mark; OSError where the disk would have less than `left_free` bytes."""
        if self.refused:
            raise self.refused
        disk = os.fstatvfs(self._pixels)
        if disk.f_bavail * disk.f_frsize < left_free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        content = pixels.tobytes()
        _write(self._pixels, content, i * self._bytes)
        _write(self._marks, np.uint32(_mark(i, changed, content)).tobytes(), i * 4)


def _mark(i: int, changed: int, pixels: bytes) -> int:
    """Never 0, for that is what a part of a file holds that was never written."""
    return zlib.crc32(pixels, zlib.crc32(f"{i} {changed}".encode())) or 1


def _write(file: int, content: bytes, offset: int) -> None:
    if os.pwrite(file, content, offset) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@cache
def decoder() -> str:
    """All that decides, beside the preprocessing, which pixels a file gives."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    libraries = f"libjpeg-turbo {jpeg}, libwebp {features.version('webp')}, torchvision {torchvision.__version__}"
    return f"Pillow {PIL.__version__}, {libraries}, {platform.machine()}"


def identify(source: ImageDataset, preprocessing: Preprocessing) -> dict[str, Any]:
    """What must be equal for pixels to be equal, as JSON gives it back."""
    resize, crop = preprocessing.resize, preprocessing.crop
    return {
        "format": FORMAT,
        "fingerprint": source.fingerprint,
        "images": len(source),
        "resize": list(resize) if isinstance(resize, tuple) else resize,
        "crop": list(crop) if crop else None,
        "interpolation": preprocessing.interpolation if resize else None,
        "decoder": decoder(),
    }


def open_rows(root: Path, identity: dict[str, Any]) -> Rows | None:
    """The rows in `root`, None where there are none; what is damaged or something else is taken away."""
    folder = root / key(identity)
    if not os.path.lexists(folder):
        return None
    about = read_about(folder)
    if about:
        with suppress(OSError):  # it may only be read
            os.utime(folder / ABOUT)
        return Rows(folder, identity["images"], tuple(about["shape"]))
    log.warning(f"{folder} is damaged, or no cache of this tool, and is made anew.")
    remove(folder)
    return None


def create(root: Path, identity: dict[str, Any], dataset: str, shape: Shape) -> Rows:
    """Empty rows, or those that another process was quicker to make; the folder appears whole or not at all."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / key(identity)
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.new")
    new.mkdir()
    try:
        # These files are sparse: a row takes room when it is put.
        for name, length in _lengths(identity["images"], shape).items():
            with (new / name).open("wb") as file:
                file.truncate(length)
        about = {"identity": identity, "dataset": dataset, "shape": shape}
        (new / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        try:
            new.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    rows = open_rows(root, identity)
    if rows is None:
        raise FileNotFoundError(errno.ENOENT, "its folder has gone")
    return rows


def key(identity: dict[str, Any]) -> str:
    """The name of a cache's folder."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:KEY_LENGTH]


def read_about(folder: Path) -> dict[str, Any] | None:
    """What a cache says of itself; None where it is not what its name says, or its files are not as long as they
    must be.
    """
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
        lengths = _lengths(about["identity"]["images"], about["shape"])
        whole = all((folder / name).stat().st_size == length > 0 for name, length in lengths.items())
        return about if whole and len(about["shape"]) == 3 and key(about["identity"]) == folder.name else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def remove(folder: Path) -> None:
    """Delete a cache in such a way that it is never seen in part; a process that has it open keeps it until it ends."""
    gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()


def _lengths(n: int, shape: Sequence[int]) -> dict[str, int]:
    return {PIXELS: n * int(np.prod(shape)), MARKS: 4 * n}


@dataclass(frozen=True)
class CacheEntry:
    """One cache."""

    key: str
    dataset: str
    """Empty where the cache is damaged."""
    pixels: str
    """Its preprocessing."""
    present: int
    images: int
    bytes: int
    """On disk."""
    used: float
    """Last, in seconds since 1970."""
    usable: bool
    """Whether this installation would use it: False where it is damaged or of another decoder."""


def entries(root: Path) -> list[CacheEntry]:
    """Every cache in `root`, the one used last first."""
    try:
        folders = root.iterdir() if root.exists() else ()
        found = [_entry(folder) for folder in folders if re.fullmatch(f"[0-9a-f]{{{KEY_LENGTH}}}", folder.name)]
    except OSError as error:
        raise PurityError(f"Cannot look through {root} ({error.strerror}): give --cache another folder.") from None
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def clear(root: Path, chosen: Sequence[CacheEntry]) -> None:
    """Delete these caches, and what killed processes left behind."""
    try:
        for entry in chosen:
            remove(root / entry.key)
        for left in root.glob(f".{'?' * KEY_LENGTH}.*"):
            if left.suffix == ".gone" or time.time() - left.stat().st_mtime > ABANDONED:
                remove(left)
    except OSError as error:
        raise PurityError(f"Cannot delete all of {root} ({error.strerror}): delete it by hand.") from None


def _entry(folder: Path) -> CacheEntry:
    about = read_about(folder)
    space = sum(file.stat().st_blocks * 512 for file in folder.iterdir()) if folder.is_dir() else 0
    if about is None:
        return CacheEntry(folder.name, "", "damaged", 0, 0, space, folder.stat().st_mtime, usable=False)
    identity = about["identity"]
    named = {name: identity[name] for name in ("resize", "crop", "interpolation") if identity[name]}
    return CacheEntry(
        key=folder.name,
        dataset=about["dataset"],
        pixels=Preprocessing.model_validate(named).describe().removesuffix(", not normalised"),
        present=int(np.count_nonzero(np.fromfile(folder / MARKS, np.uint32))),
        images=identity["images"],
        bytes=space,
        used=(folder / ABOUT).stat().st_mtime,
        usable=identity["decoder"] == decoder(),
    )
