"""Image files in a folder on disk, and what a folder and a tar have in common."""

from __future__ import annotations

import os
import posixpath
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from purity_cli.datasets.base import ImageSource, UnreadableImage, decode, fingerprint
from purity_cli.errors import PurityError


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
    """What lies directly in one folder, but for names that begin with a dot and files without an image's suffix."""

    folders: list[str]
    """Names, in the order of their bytes."""
    images: list[File]


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
            self._seen[folder] = Listing(sorted(found.folders, key=os.fsencode), found.images)
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
        self.root = Path(path).expanduser()

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
        found = Listing([], [])
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    path = posixpath.join(folder, entry.name)
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        self._refuse_loop(entry, path)
                        found.folders.append(entry.name)
                    elif is_image(entry.name):
                        found.images.append(_examine(entry, path))
        except OSError as error:
            where = posixpath.join(self.path, folder) if folder else self.path
            raise PurityError(f"Cannot list {where} ({error.strerror}): make it readable or take it away.") from None
        return found

    def _refuse_loop(self, entry: os.DirEntry[str], path: str) -> None:
        if entry.is_symlink():
            target, parent = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
            if os.path.commonpath([target, parent]) == target:
                raise PurityError(f"The link {path} in {self.path} leads back to a folder it is in: remove it.")


def _examine(entry: os.DirEntry[str], path: str) -> File:
    try:
        status = entry.stat()
    except OSError:
        return File(path, 0, "a link to a file that is not there")
    # Opening a named pipe would wait for ever.
    problem = None if stat.S_ISREG(status.st_mode) else "not a regular file"
    return File(path, status.st_size, problem, status.st_ctime_ns)


def is_image(name: str) -> bool:
    """Whether a file's suffix is one that torchvision's ImageFolder takes, in upper or lower case."""
    return name.lower().endswith(IMG_EXTENSIONS)


@dataclass(eq=False)
class FileSource(ImageSource):
    """Images in a tree.

    The fingerprint covers each image's path below the folder of the images, its size in bytes and its label: it is
    the same for a folder and a tar of it, wherever that lies. It does not notice a file whose content was changed
    while its size was not.
    """

    tree: Tree
    files: Sequence[File]
    base: str
    """The folder of the images, relative to the tree's root."""

    @classmethod
    def of(
        cls,
        name: str,
        tree: Tree,
        base: str,
        files: Sequence[File],
        *,
        label: Callable[[File], int] | None,
        label_note: str | None,
        class_names: Sequence[str] | None,
    ) -> FileSource:
        """The source of these files, sorted; `label` gives the class of each, None where that is unknown."""
        files = sorted(files, key=lambda file: os.fsencode(file.path))
        return cls(
            name=name,
            paths=[file.path for file in files],
            labels=[label(file) for file in files] if label else None,
            label_note=label_note,
            class_names=class_names,
            tree=tree,
            files=files,
            base=base,
        )

    @cached_property
    def fingerprint(self) -> str:
        below = (path.removeprefix(f"{self.base}/") for path in self.paths)
        return fingerprint(below, (file.size for file in self.files), self.labels)

    def changed(self, i: int, /) -> int:
        return self.files[i].changed

    def load(self, i: int, /) -> Image.Image:
        file = self.files[i]
        if file.problem:
            raise UnreadableImage(file.problem)
        return decode(self.tree.read(file))
