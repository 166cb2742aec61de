"""Image files in a tar or a zip, read where they are."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, cast

from purity_cli.datasets.base import UnreadableImage
from purity_cli.datasets.endings import is_image, is_systems
from purity_cli.datasets.trees import File, Listing, Tree
from purity_cli.errors import PurityError
from purity_cli.files import expanded, shown

OPENERS: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    b"\xfd7zXZ\0": lambda file: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115
}
"""How a compressed file begins -> what decompresses it."""
DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, lzma.LZMAError, zlib.error)
"""What a damaged tar raises as it is read, compressed or not."""


SPECIAL = "a link or a special file in an archive"


class ArchiveTree(Tree):
    """A file with files in it. No link is followed: one that is named like an image counts as unreadable."""

    def has(self, folder: str) -> bool:
        return folder in self._found

    def _fill(self, files: Iterable[File], folders: Iterable[str]) -> None:
        """Take all files, and folders that may be without any. Of several files of one name the last counts: where an
        archive was added to, that is the newest.
        """
        known = {"": Listing([], [], [])}

        def make(folder: str) -> Listing:
            if folder not in known:
                make(posixpath.dirname(folder)).folders.append(posixpath.basename(folder))
                known[folder] = Listing([], [], [])
            return known[folder]

        for folder in folders:
            if not any(map(is_systems, folder.split("/"))):
                make(folder)
        for file in {file.path: file for file in files}.values():
            folder, name = posixpath.split(file.path)
            if folder and any(map(is_systems, folder.split("/"))):
                continue
            here = make(folder)
            if is_image(name) and not is_systems(name):
                here.images.append(file)
            else:
                here.others.append(name)
        self._found = known

    def _list(self, folder: str) -> Listing:
        return self._found[folder]


class TarTree(ArchiveTree):
    """A tar of image files, compressed or not.

    Where members lie is read once, and then each image's bytes from the place where they are. A compressed tar is
    first decompressed into an unnamed temporary file, which is gone with this object. Nothing else is written.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        changed = expanded(path).stat().st_ctime_ns
        self._file = _open_plain(path)
        weakref.finalize(self, self._file.close)
        self._offsets: dict[str, int] = {}
        files, folders = [], []
        for member in members(self._file, path):
            name = inner_name(member.name, path)
            if member.isdir():
                folders.append(name)
                continue
            files.append(File(name, member.size, problem_of(member), changed))
            self._offsets[name] = member.offset_data
        self._fill(files, folders)

    def read(self, file: File) -> bytes:
        # One descriptor serves every thread: pread moves no common position.
        return read_at(self._file.fileno(), file.size, self._offsets[file.path])


class ZipTree(ArchiveTree):
    """A zip of image files: its table of contents is read once, and then each image from where it is."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        changed = expanded(path).stat().st_ctime_ns
        self._file = open_file(path)
        weakref.finalize(self, self._file.close)
        try:
            # The library locks around each reading of this one file, and decompresses in every thread at once.
            self._zip = zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise PurityError(f"{shown(path)} is damaged or truncated ({error}): fetch or pack it again.") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        files, folders = [], []
        for member in self._zip.infolist():
            # Windows' own tools wrote backslashes for long.
            name = inner_name(member.filename.replace("\\", "/"), path)
            if member.is_dir() or member.filename.endswith("\\"):
                folders.append(name)
                continue
            mode = stat.S_IFMT(member.external_attr >> 16)
            problem = "encrypted in the zip" if member.flag_bits & 1 else None if mode in (0, stat.S_IFREG) else SPECIAL
            files.append(File(name, member.file_size, problem, changed))
            self._members[name] = member
        self._fill(files, folders)

    def read(self, file: File) -> bytes:
        try:
            return self._zip.read(self._members[file.path])
        except MemoryError:
            raise
        except NotImplementedError as error:
            raise UnreadableImage(f"compressed in a way that is not read ({error})") from None
        except Exception as error:  # damaged bytes raise anything: BadZipFile, zlib.error, EOFError, struct.error
            text = str(error).partition(" for file ")[0] or type(error).__name__
            raise UnreadableImage(f"damaged in the zip ({text})") from None


@dataclass(frozen=True)
class Archive:
    """A kind of file with files in it."""

    open: Callable[[str], Tree]
    suffixes: tuple[str, ...]
    """How such files are called, in lower case, the first as a name for the kind."""
    fits: Callable[[str], bool]
    """Whether the file at this path is one, by its content."""


def _is_zip(path: str) -> bool:
    with open_file(path) as file:
        # One that is empty begins with its end. Looking for that end elsewhere would find it in a tar of a zip, too.
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _is_tar(path: str) -> bool:
    with open_file(path) as file, suppress(tarfile.TarError, OSError, ValueError):
        # What is compressed is taken for a tar, for only reading it all tells.
        return opener_of(file) is not None or bool(tarfile.open(fileobj=file, mode="r:"))
    return False


ARCHIVES: dict[str, Archive] = {
    "tar": Archive(TarTree, (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz"), _is_tar),
    "zip": Archive(ZipTree, (".zip",), _is_zip),
}
"""What a file with images in it may be; the first that fits is taken."""


def open_archive(path: str) -> tuple[str, Tree]:
    """The kind of the archive at `path`, and its files; PurityError where it is none."""
    name = next((name for name, archive in ARCHIVES.items() if archive.fits(path)), None)
    if name is None:
        raise _no_archive(path)
    return name, ARCHIVES[name].open(path)


def _no_archive(path: str) -> PurityError:
    kinds = " or ".join(ARCHIVES)
    return PurityError(
        f"{shown(path)} is neither a folder nor a {kinds}, compressed or not: give a folder of images, or "
        f"a {kinds} of one."
    )


def open_file(path: str) -> BinaryIO:
    """The file at `path`, to be read; PurityError where it may not be."""
    try:
        return expanded(path).open("rb")
    except OSError as error:
        raise PurityError(f"Cannot read {shown(path)} ({error.strerror}): make it readable.") from None


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """A part of an open file; UnreadableImage where the file ends before it, or the disk fails."""
    parts, missing = [], size
    while missing:
        try:
            part = os.pread(descriptor, missing, offset)
        except OSError as error:
            raise UnreadableImage(error.strerror or "unreadable") from None
        if not part:
            raise UnreadableImage("the archive ends before it does")
        parts.append(part)
        missing, offset = missing - len(part), offset + len(part)
    return b"".join(parts)


def opener_of(file: BinaryIO) -> Callable[[BinaryIO], BinaryIO] | None:
    """What decompresses an open file, None where it is not compressed."""
    start = file.read(max(map(len, OPENERS)))
    file.seek(0)
    return next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)


def _open_plain(path: str) -> BinaryIO:
    """The tar itself, or a temporary file of what is compressed in it."""
    file = open_file(path)
    opener = opener_of(file)
    if opener is None:
        return file
    with file:
        return _decompress(path, opener(file))


def _decompress(path: str, compressed: BinaryIO) -> BinaryIO:
    try:
        plain = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
    except OSError as error:
        raise PurityError(
            f"No folder to decompress {shown(path)} in ({error.strerror or error}): unpack it yourself, or set TMPDIR "
            "to a folder that can be written to."
        ) from None
    try:
        shutil.copyfileobj(compressed, plain, 1 << 20)
        plain.flush()
        plain.seek(0)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        with suppress(OSError):  # what did not fit is still in its buffer
            plain.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PurityError(
                f"No room in {tempfile.gettempdir()} to decompress {shown(path)}: unpack it yourself, or set TMPDIR "
                "to a folder with more room."
            ) from None
        raise PurityError(f"{shown(path)} is damaged or truncated ({error}): fetch or pack it again.") from None
    return plain


def members(file: BinaryIO, path: str) -> Iterator[tarfile.TarInfo]:
    """The members of an open tar, in their order; PurityError where it is none, or ends too early."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except (tarfile.TarError, OSError, ValueError):
        raise _no_archive(path) from None
    last = None
    try:
        while (member := tar.next()) is not None:
            if member.size < 0:
                raise tarfile.ReadError("a member of negative size")
            last = member.name
            tar.members = []  # type: ignore[attr-defined]  # it would keep a kilobyte of each
            yield member
        # tarfile stops at the first header that it cannot read, as if the archive ended there.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            after = "at its start" if last is None else f"after {shown(last)}"
            raise tarfile.ReadError(f"with no readable header {after}")
    except DAMAGE as error:
        raise PurityError(f"{shown(path)} is damaged or truncated, {error}: fetch or pack it again.") from None


def problem_of(member: tarfile.TarInfo) -> str | None:
    """Why a member cannot be read from its place."""
    return None if member.isreg() and not member.issparse() else SPECIAL


def inner_name(member: str, path: str) -> str:
    """A member's name without `./` and the like; PurityError for one that lies outside of the archive's folder."""
    name = posixpath.normpath(member)
    if name.startswith(("/", "../")) or name == "..":
        raise PurityError(
            f"{shown(path)} has a member {shown(member)}, outside of its own folder: pack it again without such names."
        )
    return "" if name == "." else name
