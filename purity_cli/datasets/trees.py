"""Image files in a folder on disk, and what a folder and a tar have in common."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from PIL import Image

from purity_cli.datasets.base import ImageDataset, UnreadableImage, decode, fingerprint
from purity_cli.datasets.endings import formats, is_image, is_systems, strange
from purity_cli.errors import PurityError
from purity_cli.files import expanded, shown


class File(NamedTuple):
    """One image file; `path` is relative to the tree's root, with `/`."""

    path: str
    size: int
    """Bytes."""
    problem: str | None = None
    """Why it cannot be read, where that is known without opening it."""
    changed: int = 0
    """When the file, or the archive that it is in, last changed in any way: its ctime in ns, which no program sets."""


class Listing(NamedTuple):
    """What lies directly in one folder, but for folders that are hidden or the system's."""

    folders: list[str]
    """Names, in the order of their bytes."""
    images: list[File]
    others: list[str]
    """Names of files that are hidden, or do not end as images do."""


class Reader(Protocol):
    """Gives a file's bytes; UnreadableImage where it cannot. Threads may call this at once."""

    def read(self, file: File) -> bytes: ...


class Tree(ABC):
    """Folders of image files, each folder looked at only once."""

    def __init__(self, path: str) -> None:
        self.path = path
        """As the user wrote it."""
        self._seen: dict[str, Listing] = {}

    def listing(self, folder: str) -> Listing:
        """What is in `folder`, relative to the root, `""` for the root itself."""
        if folder not in self._seen:
            found = self._list(folder)
            self._seen[folder] = found._replace(folders=sorted(found.folders, key=os.fsencode))
        return self._seen[folder]

    def walk(self, folder: str) -> Iterator[File]:
        """The images in `folder` and in all folders below it."""
        here = self.listing(folder)
        yield from here.images
        for name in here.folders:
            yield from self.walk(posixpath.join(folder, name))

    def holds_images(self, folder: str) -> bool:
        """Whether there are any; looks no further than the first."""
        return any(True for _ in self.walk(folder))

    def left_out(self, folder: str) -> str | None:
        """A sentence that counts the files in `folder` and below it, as far as that was looked at, that may be images
        and are not read; None where there are none.
        """
        inside = (seen for seen in self._seen if not folder or seen == folder or seen.startswith(f"{folder}/"))
        counted = strange(name for seen in inside for name in self._seen[seen].others)
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
    def _list(self, folder: str) -> Listing: ...


class FolderTree(Tree):
    """A folder on disk. Links are followed, as torchvision's ImageFolder follows them."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.root = expanded(path)

    def has(self, folder: str) -> bool:
        return (self.root / folder).is_dir()

    def read(self, file: File) -> bytes:
        try:
            return (self.root / file.path).read_bytes()
        except PermissionError:
            raise UnreadableImage("permission denied") from None
        except OSError as error:
            raise UnreadableImage(error.strerror or type(error).__name__) from None

    def _list(self, folder: str) -> Listing:
        found = Listing([], [], [])
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    path = posixpath.join(folder, entry.name)
                    if _is_dir(entry):
                        if not is_systems(entry.name):
                            self._refuse_loop(entry, path)
                            found.folders.append(entry.name)
                    elif is_image(entry.name) and not is_systems(entry.name):
                        found.images.append(_examine(entry, path))
                    else:
                        found.others.append(entry.name)
        except OSError as error:
            where = posixpath.join(self.path, folder) if folder else self.path
            raise PurityError(
                f"Cannot list {shown(where)} ({error.strerror}): make it readable or take it away."
            ) from None
        return found

    def _refuse_loop(self, entry: os.DirEntry[str], path: str) -> None:
        if not entry.is_symlink():
            return
        target, above = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
        # Up from where the link lies, and up from where links before it were found: two may lead into each other.
        parts = posixpath.dirname(path).split("/")
        way = [os.path.realpath(self.root.joinpath(*parts[:k])) for k in range(len(parts) + 1)]
        if os.path.commonpath([target, above]) == target or target in way:
            raise PurityError(
                f"The link {shown(path)} in {shown(self.path)} leads back to a folder it is in: remove it."
            )


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself leads nowhere
            return False
        raise


def _examine(entry: os.DirEntry[str], path: str) -> File:
    try:
        status = entry.stat()
    except OSError:
        return File(path, 0, "a link to a file that is not there")
    # Opening a named pipe would wait for ever.
    problem = None if stat.S_ISREG(status.st_mode) else "not a regular file"
    return File(path, status.st_size, problem, status.st_ctime_ns)


@dataclass(eq=False)
class FileSource(ImageDataset):
    """Images in a tree, or in anything else that gives a file's bytes.

    The fingerprint covers each image's path below the folder of the images, its size in bytes and its label: it is
    the same for a folder and a tar of it, wherever that lies. It does not notice a file whose content was changed
    while its size was not.
    """

    tree: Reader
    files: Sequence[File]
    base: str
    """The folder of the images, relative to the tree's root."""
    place: str
    """The whole path of that root."""

    @classmethod
    def of(
        cls,
        name: str,
        tree: Tree,
        base: str,
        files: Sequence[File],
        *,
        kind: str,
        labels: Mapping[str, int] | None = None,
        label_note: str | None = None,
        class_names: Sequence[str] | None = None,
        order: str | None = None,
        notes: Sequence[str] = (),
    ) -> FileSource:
        """The source of these files, sorted; `labels` gives the class of each by its path, None where it is unknown."""
        files = sorted(files, key=lambda file: os.fsencode(file.path))
        left_out = tree.left_out(base)
        return cls(
            name=shown(name),
            paths=[shown(file.path) for file in files],
            labels=None if labels is None else [labels[file.path] for file in files],
            label_note=label_note,
            class_names=class_names and [shown(name) for name in class_names],
            kind=kind,
            order=order,
            notes=(*notes, left_out) if left_out else tuple(notes),
            tree=tree,
            files=files,
            base=base,
            place=os.path.realpath(expanded(tree.path)),
        )

    @cached_property
    def fingerprint(self) -> str:
        below = (file.path.removeprefix(f"{self.base}/") for file in self.files)
        return fingerprint(below, (file.size for file in self.files), self.labels)

    def stamp(self, i: int, /) -> str:
        file = self.files[i]
        return f"{self.place}/{file.path} {file.size} {file.changed}"

    def read(self, i: int, /) -> bytes:
        file = self.files[i]
        if file.problem:
            raise UnreadableImage(file.problem)
        return self.tree.read(file)

    def decode(self, i: int, data: bytes, /) -> Image.Image:
        return decode(data, formats(self.files[i].path))
