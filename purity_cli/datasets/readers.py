"""Image files in a folder, a tar or a zip: listed folder by folder, and read where they lie.

What is in an archive is listed once, and nothing of it is kept but where each file lies. A compressed tar is first
decompressed into an unnamed temporary file, which is gone with its tree. Nothing else is written.
"""

from __future__ import annotations

import bz2
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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple, cast

from purity_cli.datasets.base import File
from purity_cli.datasets.decoding import UnreadableImage, is_image, is_systems, maybe_images
from purity_cli.errors import PurityError
from purity_cli.files import expanded, shown

COMPRESSED: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    b"\xfd7zXZ\0": lambda file: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115
}
"""How a compressed file begins -> what decompresses it."""
DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, lzma.LZMAError, zlib.error)
"""What a damaged tar raises as it is read, compressed or not."""
SPECIAL = "a link or a special file in an archive"
ARCHIVES = {
    "tar": (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz"),
    "zip": (".zip",),
}
"""How archives are called, in lower case."""


class Listing(NamedTuple):
    """What lies directly in one folder, but for folders that are hidden or the system's."""

    folders: list[str]
    """Names, in the order of their bytes."""
    images: list[File]
    others: list[str]
    """Names of files that are hidden, or do not end as images do."""


class Tree(ABC):
    """Folders of image files; each is looked at only once. Folders are relative to the root, which is `""`."""

    kind: str

    def __init__(self, path: str) -> None:
        self.path = path
        """As the user wrote it."""
        self.root = os.path.realpath(expanded(path))
        self._listings: dict[str, Listing] = {}

    def listing(self, folder: str) -> Listing:
        if folder not in self._listings:
            found = self._list(folder)
            self._listings[folder] = found._replace(folders=sorted(found.folders, key=os.fsencode))
        return self._listings[folder]

    def folders(self, folder: str) -> Iterator[str]:
        """The folder and all below it."""
        yield folder
        for name in self.listing(folder).folders:
            yield from self.folders(posixpath.join(folder, name))

    def walk(self, folder: str) -> Iterator[File]:
        """The images in `folder` and in all folders below it."""
        for each in self.folders(folder):
            yield from self.listing(each).images

    def holds_images(self, folder: str) -> bool:
        """Whether there are any; looks no further than the first."""
        return any(True for _ in self.walk(folder))

    def left_out(self, folder: str) -> str | None:
        """A sentence that counts the files in `folder` and below it, as far as that was looked at, that may be images
        and are not read; None where there are none.
        """
        inside = (seen for seen in self._listings if not folder or seen == folder or seen.startswith(f"{folder}/"))
        counted = maybe_images(name for each in inside for name in self._listings[each].others)
        if not counted:
            return None
        parts = [f"{count:,} {what}" for what, count in counted.most_common(8)]
        more = ", ..." if len(counted) > len(parts) else ""
        files = "1 file" if counted.total() == 1 else f"{counted.total():,} files"
        where = shown(posixpath.join(self.path, folder) if folder else self.path)
        return f"Left out in {where}: {files} not named as images that are read ({', '.join(parts)}{more})."

    @abstractmethod
    def has(self, folder: str) -> bool:
        """Whether there is such a folder."""

    @abstractmethod
    def read(self, file: File) -> bytes:
        """A file's bytes; UnreadableImage where it has gone or may not be read. Threads may call this at once."""

    @abstractmethod
    def open_other(self, path: str) -> bytes | None:
        """The bytes of a file that is no image; None where there is none."""

    @abstractmethod
    def _list(self, folder: str) -> Listing: ...


class Folder(Tree):
    """A folder on disk. Links are followed, as torchvision's ImageFolder follows them."""

    kind = "folder"

    def has(self, folder: str) -> bool:
        return os.path.isdir(os.path.join(self.root, folder))

    def read(self, file: File) -> bytes:
        try:
            with open(os.path.join(self.root, file.path), "rb") as opened:
                return opened.read()
        except OSError as error:
            raise UnreadableImage(error.strerror or type(error).__name__) from None

    def open_other(self, path: str) -> bytes | None:
        whole = os.path.join(self.root, path)
        return open_file(whole).read() if os.path.isfile(whole) else None

    def _list(self, folder: str) -> Listing:
        found = Listing([], [], [])
        parts = folder.split("/")
        above = {os.path.realpath(os.path.join(self.root, *parts[:k])) for k in range(len(parts) + 1)}
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                for entry in entries:
                    path = posixpath.join(folder, entry.name)
                    if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                        if entry.is_symlink() and os.path.realpath(entry.path) in above:
                            raise PurityError(
                                f"The link {shown(path)} in {shown(self.path)} leads back to a folder above: remove it."
                            )
                        if not is_systems(entry.name):
                            found.folders.append(entry.name)
                    elif is_image(entry.name) and not is_systems(entry.name):
                        found.images.append(_examine(entry, path))
                    else:
                        found.others.append(entry.name)
        except OSError as error:
            where = shown(posixpath.join(self.path, folder) if folder else self.path)
            raise PurityError(f"Cannot list {where} ({error.strerror}): make it readable or take it away.") from None
        return found


def _examine(entry: os.DirEntry[str], path: str) -> File:
    try:
        status = entry.stat()
    except OSError:
        return File(path, 0, 0, "a link to a file that is not there")
    # Opening a named pipe would wait for ever.
    problem = None if stat.S_ISREG(status.st_mode) else "not a regular file"
    return File(path, status.st_size, status.st_ctime_ns, problem)


class Archive(Tree):
    """A file with files in it. No symbolic link is followed: one that is named like an image counts as unreadable."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._file = self._open(path)
        weakref.finalize(self, self._file.close)
        self._others: dict[str, File] = {}
        known = {"": Listing([], [], [])}

        def make(folder: str) -> Listing:
            if folder not in known:
                make(posixpath.dirname(folder)).folders.append(posixpath.basename(folder))
                known[folder] = Listing([], [], [])
            return known[folder]

        files: dict[str, File] = {}
        for file, is_folder in self._members():
            if is_folder and not any(map(is_systems, file.path.split("/"))):
                make(file.path)
            elif not is_folder:
                # Of several files of one name the last counts: where an archive was added to, that is the newest.
                files[file.path] = file
        for file in files.values():
            folder, name = posixpath.split(file.path)
            if folder and any(map(is_systems, folder.split("/"))):
                continue
            if is_image(name) and not is_systems(name):
                make(folder).images.append(file)
            else:
                make(folder).others.append(name)
                self._others[file.path] = file
        self._found = known

    def has(self, folder: str) -> bool:
        return folder in self._found

    def open_other(self, path: str) -> bytes | None:
        return self.read(self._others[path]) if path in self._others else None

    def _list(self, folder: str) -> Listing:
        return self._found[folder]

    def _open(self, path: str) -> BinaryIO:
        return open_file(path)

    @abstractmethod
    def _members(self) -> Iterator[tuple[File, bool]]:
        """Everything in the archive in its order, and whether it is a folder."""


class Tar(Archive):
    """A tar of image files, compressed or not."""

    kind = "tar"

    def _open(self, path: str) -> BinaryIO:
        """The tar itself, or a temporary file of what is compressed in it."""
        file = open_file(path)
        opener = opener_of(file)
        if opener is None:
            return file
        with file:
            return _decompress(path, opener(file))

    def _members(self) -> Iterator[tuple[File, bool]]:
        return members(self._file, self.path)

    def read(self, file: File) -> bytes:
        # One descriptor serves every thread: pread moves no common position.
        return read_at(self._file.fileno(), file)


class Zip(Archive):
    """A zip of image files."""

    kind = "zip"

    def _members(self) -> Iterator[tuple[File, bool]]:
        changed = os.stat(self.root).st_ctime_ns
        try:
            # The library locks around each reading of this one file, and decompresses in every thread at once.
            self._zip = zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise damaged(self.path, error) from None
        for member in self._zip.infolist():
            # Windows' own tools wrote backslashes for long.
            name = inner_name(member.filename.replace("\\", "/"), self.path)
            mode = stat.S_IFMT(member.external_attr >> 16)
            problem = "encrypted in the zip" if member.flag_bits & 1 else None if mode in (0, stat.S_IFREG) else SPECIAL
            yield File(name, member.file_size, changed, problem, member), member.filename.endswith(("/", "\\"))

    def read(self, file: File) -> bytes:
        try:
            return self._zip.read(file.place)
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes raise anything: BadZipFile, zlib.error, EOFError, struct.error
            text = str(error).partition(" for file ")[0] or type(error).__name__
            raise UnreadableImage(f"damaged in the zip, or compressed in an unknown way ({text})") from None


def open_tree(path: str) -> Tree:
    """The files of the folder, tar or zip at `path`; PurityError where there is nothing of these."""
    place, kinds = expanded(path), " or ".join(ARCHIVES)
    if not os.path.exists(place):
        raise PurityError(f"{shown(path)} is not there: give a folder of images, or a {kinds} of one.")
    if place.is_dir():
        return Folder(path)
    if is_image(place.name):
        raise PurityError(f"{shown(path)} is a single image: give the folder that it is in.")
    if not place.is_file():
        raise PurityError(f"{shown(path)} is a special file: give a folder of images, or an archive of one.")
    with open_file(path) as file:
        # An empty zip begins with its end. Looking for that end elsewhere would find it in a tar of a zip, too.
        return Zip(path) if file.read(4) in (b"PK\x03\x04", b"PK\x05\x06") else Tar(path)


def open_file(path: str) -> BinaryIO:
    """The file at `path`, to be read; PurityError where it may not be."""
    try:
        return expanded(path).open("rb")
    except OSError as error:
        raise PurityError(f"Cannot read {shown(path)} ({error.strerror}): make it readable.") from None


def damaged(path: str, error: object) -> PurityError:
    return PurityError(f"{shown(path)} is damaged or truncated ({error}): fetch or pack it again.")


def read_at(descriptor: int, file: File) -> bytes:
    """A file that lies at an offset of an open one; UnreadableImage where that ends before it, or the disk fails."""
    parts, missing, offset = [], file.size, file.place
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
    start = file.read(max(map(len, COMPRESSED)))
    file.seek(0)
    return next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), None)


def _decompress(path: str, compressed: BinaryIO) -> BinaryIO:
    try:
        plain = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
        try:
            shutil.copyfileobj(compressed, plain, 1 << 20)
            plain.seek(0)  # which writes what is in the buffer
            return plain
        except DAMAGE as error:
            with suppress(OSError):  # what did not fit is still in the buffer
                plain.close()
            if isinstance(error, OSError) and error.errno:
                raise
            raise damaged(path, error) from None
    except OSError as error:
        raise PurityError(
            f"Cannot decompress {shown(path)} ({error.strerror}): unpack it yourself, or set TMPDIR to a folder with "
            "more room."
        ) from None


def members(file: BinaryIO, path: str) -> Iterator[tuple[File, bool]]:
    """The members of an open tar in their order, and whether each is a folder.

    A hard link is the file that it names. PurityError where this is no tar, or ends too early.
    """
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except (tarfile.TarError, OSError, ValueError):
        raise PurityError(
            f"{shown(path)} is neither a folder nor a {' or '.join(ARCHIVES)}, compressed or not: give a folder of "
            "images, or an archive of one."
        ) from None
    changed, last, whole = os.stat(expanded(path)).st_ctime_ns, "its start", dict[str, File]()
    try:
        while (member := tar.next()) is not None:
            if member.size < 0:
                raise tarfile.ReadError("a member of negative size")
            last = shown(member.name)
            tar.members = []  # type: ignore[attr-defined]  # it would keep a kilobyte of each
            name = inner_name(member.name, path)
            found = File(name, member.size, changed, SPECIAL)
            if member.isreg() and not member.issparse():
                found = File(name, member.size, changed, None, member.offset_data)
            elif member.islnk() and (target := posixpath.normpath(member.linkname)) in whole:
                found = whole[target]._replace(path=name)
            if not found.problem:
                whole[name] = found
            yield found, member.isdir()
        # tarfile stops at the first header that it cannot read, as if the archive ended there.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no readable header after {last}")
    except DAMAGE as error:
        raise damaged(path, error) from None


def inner_name(member: str, path: str) -> str:
    """A member's name without `./` and the like; PurityError for one that lies outside of the archive's folder."""
    name = posixpath.normpath(member)
    if name.startswith(("/", "../")) or name == "..":
        raise PurityError(
            f"{shown(path)} has a member {shown(member)}, outside of its own folder: pack it again without such names."
        )
    return "" if name == "." else name
