"""Image files in a tar, read where they are."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import posixpath
import shutil
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from purity_cli.datasets.base import UnreadableImage
from purity_cli.datasets.trees import File, Listing, Tree, is_image
from purity_cli.errors import PurityError

OPENERS: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    b"\xfd7zXZ\0": lambda file: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115
}
"""How a compressed file begins -> what decompresses it."""

SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")


class TarTree(Tree):
    """A tar of image files, compressed or not.

    Where members lie is read once, and then each image's bytes from the place where they are. A compressed tar is
    first decompressed into an unnamed temporary file, which is gone with this object. Nothing else is written, and no
    link is followed: one that is named like an image counts as unreadable.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        changed = os.stat(os.path.expanduser(path)).st_ctime_ns
        self._file = _open_plain(path)
        weakref.finalize(self, self._file.close)
        self._offsets: dict[str, int] = {}
        files: dict[str, File] = {}
        folders = {""}
        for member in _members(self._file, path):
            name = _inner_name(member, path)
            if any(part.startswith(".") for part in name.split("/")):
                continue
            if not member.isdir():
                if not is_image(name):
                    continue
                plain = member.isreg() and not member.issparse()
                problem = None if plain else "a link or a special file in an archive"
                # Where a tar holds a name twice, the later one is the newer one.
                files[name] = File(name, member.size, problem, changed)
                self._offsets[name] = member.offset_data
                name = posixpath.dirname(name)
            while name not in folders:
                folders.add(name)
                name = posixpath.dirname(name)
        found: dict[str, Listing] = {folder: Listing([], []) for folder in folders}
        for folder in folders - {""}:
            found[posixpath.dirname(folder)].folders.append(posixpath.basename(folder))
        for file in files.values():
            found[posixpath.dirname(file.path)].images.append(file)
        self._found = found

    def has(self, folder: str) -> bool:
        return folder in self._found

    def read(self, file: File) -> bytes:
        # One descriptor serves every thread: pread moves no common position.
        parts, missing, offset = [], file.size, self._offsets[file.path]
        while missing:
            part = os.pread(self._file.fileno(), missing, offset)
            if not part:
                raise UnreadableImage("the archive ends before it does")
            parts.append(part)
            missing, offset = missing - len(part), offset + len(part)
        return b"".join(parts)

    def _list(self, folder: str) -> Listing:
        return self._found[folder]


def _open_plain(path: str) -> BinaryIO:
    """The tar itself, or a temporary file of what is compressed in it."""
    try:
        file = Path(path).expanduser().open("rb")
        start = file.read(max(map(len, OPENERS)))
        file.seek(0)
    except OSError as error:
        raise PurityError(f"Cannot read {path} ({error.strerror}): make it readable.") from None
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
    if opener is None:
        return file
    with file:
        return _decompress(path, opener(file))


def _decompress(path: str, compressed: BinaryIO) -> BinaryIO:
    plain: BinaryIO | None = None
    try:
        plain = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(compressed, plain, 1 << 20)
        plain.flush()
        plain.seek(0)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if plain is not None:
            with suppress(OSError):  # what did not fit is still in its buffer
                plain.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PurityError(
                f"No room in {tempfile.gettempdir()} to decompress {path}: unpack it yourself, or set TMPDIR to a "
                "folder with more room."
            ) from None
        raise PurityError(f"{path} is damaged or truncated ({error}): fetch or pack it again.") from None
    return plain


def _members(file: BinaryIO, path: str) -> list[tarfile.TarInfo]:
    damaged = f"{path} is damaged or truncated, {{}}: fetch or pack it again."
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except (tarfile.TarError, OSError, ValueError):
        raise PurityError(
            f"{path} is neither a folder nor a tar (plain, .gz, .bz2 or .xz): give a folder of images or a tar of one."
        ) from None
    members: list[tarfile.TarInfo] = []
    try:
        for member in tar:
            if member.size < 0:
                raise tarfile.ReadError("a member of negative size")
            members.append(member)
        # tarfile stops at the first header that it cannot read, as if the archive ended there.
        file.seek(tar.offset)
        end = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        raise PurityError(damaged.format(error)) from None
    if end != tarfile.NUL * tarfile.BLOCKSIZE:
        after = f"after {members[-1].name}" if members else "at its start"
        raise PurityError(damaged.format(f"with no readable header {after}"))
    return members


def _inner_name(member: tarfile.TarInfo, path: str) -> str:
    """A member's name without `./` and the like; PurityError for one that lies outside of the archive's folder."""
    name = posixpath.normpath(member.name)
    if name.startswith(("/", "../")) or name == "..":
        raise PurityError(f"{path} has a member {member.name}, outside of its own folder: pack it again without -P.")
    return "" if name == "." else name
