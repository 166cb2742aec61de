"""Decode once: pixels after resize and crop, kept on disk, one folder per data set and preprocessing.

A row is an image's place in the whole data set, so that every selection of it shares them, and rows are filled in any
order, by any number of threads, processes and ranks at once. Each row has a record: the stamp of the image's file
(place, size, time), the digest of the bytes that were decoded, and the CRC-32 of both and of the pixels. A row is used
only where its stamp is the image's and its CRC is right. So nothing depends on the order in which a disk writes, and
no lock is needed. Rows that a kill left half-written and rows of an image that was replaced are decoded again. Two
processes that fill the same row write the same bytes. Unreadable images are not kept, because they may be mended.

Nothing is read or written through a map: all that was ever read through one counts as this process's memory, and where
a disk is full, or another process cuts a file short, a map raises no error but kills the process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import struct
import time
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import PIL
from PIL import features

from purity_cli.datasets import ImageDataset
from purity_cli.errors import PurityError, log
from purity_cli.files import expanded, shown
from purity_cli.pixels import Decoded, Pixels
from purity_cli.plan import Preprocessing

FORMAT = 2
PIXELS, RECORDS, ABOUT = "pixels.u8", "records.bin", "about.json"
RECORD = struct.Struct("<I16s32s")
"""The CRC-32, never 0; half the SHA-256 of the stamp; the SHA-256 of the bytes that were decoded."""
KEY_LENGTH = 16
ABANDONED = 60
"""Seconds after which an unfinished folder is a dead process's."""
LEFT_FREE = 2**28
"""Bytes of a disk that caches leave to others: the results are often on the same one."""
NOWHERE = "there is no home folder to keep it in: set PURITY_CACHE or give --cache DIR"
"""Why there is no default place."""

Shape = tuple[int, ...]


def default_root() -> Path | None:
    """`$PURITY_CACHE`, else `purity` in the user's folder of caches; None where the user has no home."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = expanded(os.environ.get("PURITY_CACHE") or os.path.join(caches, "purity"))
    return None if root.parts[:1] == ("~",) else root


def chosen_root(given: Path | None) -> Path:
    """The folder that was given, or else the default one; PurityError where there is none."""
    root = given or default_root()
    if root is None:
        raise PurityError(f"There is no cache, because {NOWHERE}.")
    return root


class CacheFiles:
    """The open files of a cache of n images, whose lengths were found right. OSError where they cannot be opened."""

    def __init__(self, folder: Path, n: int, shape: Shape) -> None:
        self.folder, self.shape, self._n, self._bytes = folder, shape, n, int(np.prod(shape))
        self._writable = os.access(folder / PIXELS, os.W_OK) and os.access(folder / RECORDS, os.W_OK)
        flags = os.O_RDWR if self._writable else os.O_RDONLY
        self._pixels, self._records = (os.open(folder / name, flags) for name in (PIXELS, RECORDS))
        for file in (self._pixels, self._records):
            weakref.finalize(self, os.close, file)

    def absent(self, selection: Sequence[int]) -> int:
        """How many of these images were never put."""
        return len(selection) - int(np.count_nonzero(present(self._records, self._n)[np.asarray(selection, np.int64)]))

    def get(self, i: int, stamp: bytes) -> Decoded | None:
        """Image i; None where it is not here, or is of another stamp."""
        record = os.pread(self._records, RECORD.size, i * RECORD.size)
        if len(record) < RECORD.size or not any(record[:4]):
            return None
        crc, its_stamp, digest = RECORD.unpack(record)
        if its_stamp != stamp:
            return None
        content = os.pread(self._pixels, self._bytes, i * self._bytes)
        if len(content) < self._bytes or crc != _crc(i, stamp, digest, content):
            return None
        return Decoded(np.frombuffer(content, np.uint8).reshape(self.shape), digest.hex())

    def put(self, i: int, stamp: bytes, image: Decoded) -> None:
        """Write image i's pixels and then its record; OSError where the disk would have too little left."""
        if not self._writable:
            raise OSError(errno.EROFS, "it can only be read")
        disk = os.fstatvfs(self._pixels)
        if disk.f_bavail * disk.f_frsize < LEFT_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        content, digest = np.asarray(image.pixels).tobytes(), bytes.fromhex(image.digest)
        _write(self._pixels, content, i * self._bytes)
        _write(self._records, RECORD.pack(_crc(i, stamp, digest, content), stamp, digest), i * RECORD.size)


def _crc(i: int, stamp: bytes, digest: bytes, pixels: bytes) -> int:
    """Never 0, because that is what a part of a file holds that was never written."""
    return zlib.crc32(pixels, zlib.crc32(b"%d " % i + stamp + digest)) or 1


def _write(file: int, content: bytes, offset: int) -> None:
    if os.pwrite(file, content, offset) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def present(records: int, n: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of n images have a record in an open file."""
    found = os.pread(records, n * RECORD.size, 0)
    crcs = np.frombuffer(found, [("crc", "<u4"), ("more", f"V{RECORD.size - 4}")], len(found) // RECORD.size)["crc"]
    return np.pad(crcs != 0, (0, n - len(crcs)))


class Cache:
    """The cached pixels of one data set after one resize and crop, in a folder of `root`.

    The folder is made for the first row that is put, and it is said how much `selection` will add. Whatever goes
    wrong is warned of in one sentence, and then nothing more is put; what can be read is used all the same. Any
    number of threads may use this.
    """

    def __init__(
        self, root: Path, source: ImageDataset, preprocessing: Preprocessing, selection: Sequence[int]
    ) -> None:
        self.root, self.source, self.selection = root, source, selection
        self.identity = identify(source, preprocessing)
        self.folder = root / key(self.identity)
        """Where it is, or will be."""
        self.filling = True
        """Whether rows are put; False once that has failed."""
        self._lock, self._announced = Lock(), False
        self._files: CacheFiles | None = None
        try:
            self._files = open_files(root, self.identity)
        except OSError as error:
            self._stop(error)

    def get(self, i: int) -> Decoded | None:
        """Image i; None where it is not here."""
        try:
            return self._files.get(i, self._stamp(i)) if self._files else None
        except OSError as error:
            self._stop(error)
            return None

    def put(self, i: int, image: Decoded) -> None:
        """Keep image i, unless it is of another size than those here."""
        if not self.filling:
            return
        shape = np.asarray(image.pixels).shape
        try:
            with self._lock:
                if self._files is None:
                    self._files = create(self.root, self.identity, self.source.name, shape)
                files = self._files
                if not self._announced:
                    self._announce(files)
            if shape == files.shape:
                files.put(i, self._stamp(i), image)
        except OSError as error:
            self._stop(error)

    def _stamp(self, i: int) -> bytes:
        return hashlib.sha256(os.fsencode(self.source.stamp(i))).digest()[:16]

    def _announce(self, files: CacheFiles) -> None:
        """Say what will be added; OSError where there is no room for it."""
        need = files.absent(self.selection) * int(np.prod(files.shape))
        free = shutil.disk_usage(self.root).free
        if need and need + LEFT_FREE > free:
            raise OSError(errno.ENOSPC, f"{size_text(need)} are needed, {size_text(free)} free")
        self._announced = True
        if need:
            log.info(f"Caching {self.source.name} in {files.folder}: {size_text(need)}, with {size_text(free)} free.")

    def _stop(self, error: OSError) -> None:
        with self._lock:
            first, self.filling = self.filling, False
        if first:
            log.warning(
                f"New pixels of {self.source.name} are not cached in {shown(str(self.root))} "
                f"({error.strerror or error}); the run goes on without: give --cache another folder, or none."
            )


class CachedPixels(Pixels):
    """As `Pixels`, but decodes only what the cache in `root` does not have, and keeps what it decodes."""

    def __init__(
        self,
        source: ImageDataset,
        selection: Sequence[int],
        preprocessing: Preprocessing,
        *,
        root: Path,
        **options: Any,
    ) -> None:
        super().__init__(source, selection, preprocessing, **options)
        self.cache = Cache(root, source, preprocessing, selection)

    def _load(self, position: int) -> Decoded:
        i = self.selection[position]
        image = self.cache.get(i)
        if image is None:
            image = super()._load(position)
            if isinstance(image.pixels, np.ndarray):
                self.cache.put(i, image)
        return image


def size_text(count: float) -> str:
    """A number of bytes as `150 MB`."""
    units = ["bytes", "KB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"


@cache
def decoder() -> str:
    """All that decides, beside the preprocessing, which pixels a file gives."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    libraries = f"libjpeg-turbo {jpeg}, libwebp {features.version('webp')}"
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


def open_files(root: Path, identity: dict[str, Any]) -> CacheFiles | None:
    """The files in `root`, None where there are none; what is damaged or something else is taken away."""
    folder = root / key(identity)
    if not os.path.lexists(folder):
        return None
    about = read_about(folder)
    if about:
        with suppress(OSError):  # it may only be read
            os.utime(folder / ABOUT)
        return CacheFiles(folder, identity["images"], tuple(about["shape"]))
    log.warning(f"{folder} is damaged, or no cache of this tool, and is made anew.")
    remove(folder)
    return None


def create(root: Path, identity: dict[str, Any], dataset: str, shape: Shape) -> CacheFiles:
    """Empty files, or those that another process was quicker to make; the folder appears whole or not at all."""
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
    files = open_files(root, identity)
    if files is None:
        raise FileNotFoundError(errno.ENOENT, "its folder has gone")
    return files


def key(identity: dict[str, Any]) -> str:
    """The name of a cache's folder."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:KEY_LENGTH]


def read_about(folder: Path) -> dict[str, Any] | None:
    """What a cache says of itself; None where that is not what its name says, or a file has another length."""
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
    return {PIXELS: n * int(np.prod(shape)), RECORDS: RECORD.size * n}


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
    with (folder / RECORDS).open("rb") as records:
        filled = int(np.count_nonzero(present(records.fileno(), identity["images"])))
    return CacheEntry(
        key=folder.name,
        dataset=about["dataset"],
        pixels=Preprocessing.model_validate(named).describe().removesuffix(", not normalised"),
        present=filled,
        images=identity["images"],
        bytes=space,
        used=(folder / ABOUT).stat().st_mtime,
        usable=identity["decoder"] == decoder() and identity["format"] == FORMAT,
    )
