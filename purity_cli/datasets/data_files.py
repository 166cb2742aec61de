"""Sets that come in several files: which files a path stands for, and which split each of them is of."""

from __future__ import annotations

import glob
import math
import os
import re

from purity_cli.datasets.base import SPLITS, NoSplit, choose_split, default_split, with_split
from purity_cli.datasets.decoding import is_image, is_systems
from purity_cli.errors import PurityError
from purity_cli.files import natural, shown

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""webdataset's way to write many names: `shard-{000000..000099}.tar`."""
MOST = 10**6
"""Files that such a name may stand for, because a mistyped range would fill the memory."""
SPLIT = re.compile(rf"(?:^|[^a-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?=[^a-z]|$)")


class DataFiles:
    """The files with one of `suffixes` behind a path: itself, those that a pattern names, or all in a folder.

    They are in the order of their names, numbers in these by value. There are none where the path stands for anything
    else: a folder with images in it is a folder of images.
    """

    def __init__(self, path: str, suffixes: tuple[str, ...]) -> None:
        place = os.path.expanduser(path)
        self.path, self.root, self.missing = path, os.path.dirname(place), list[str]()
        self.is_folder = os.path.isdir(place)
        if self.is_folder:
            self.root, found = place, _inside(place, suffixes)
        else:
            names = {place} if os.path.exists(place) else _expanded(place)
            found = [name for name in names if os.path.exists(name)]
            self.missing = sorted(names - set(found)) if found else []
            found = found if all(name.lower().endswith(suffixes) for name in found) else []
            self.root = os.path.commonpath([os.path.dirname(name) for name in found]) if found else ""
        self.files = sorted(found, key=lambda file: (natural(self.inner(file)), file))

    def inner(self, file: str) -> str:
        """A file's name below the path."""
        return os.path.relpath(file, self.root) if self.root else file

    def chosen(self, split: str | None) -> tuple[str, list[str]]:
        """The set's name and its files of one split, the default one if none is asked for.

        Files say their split in their names or in those of their folders; PurityError where some of them do not, and
        where a file is not there that was named.
        """
        if not self.files:
            raise PurityError(f"{shown(self.path)} stands for no such files: give a folder of them, or a pattern.")
        if self.missing:
            raise PurityError(f"{shown(self.missing[0])} is not there: bring it, or leave it out of the pattern.")
        single = len(self.files) == 1 and not self.is_folder
        name = os.path.basename(os.path.abspath(self.files[0] if single else self.root))
        name = (name.partition(".")[0] if single else name) or "images"
        splits = [_split_of(self.inner(file)) for file in self.files]
        there = [known for known in SPLITS if known in splits]
        if not there:
            if split:
                raise NoSplit(
                    f"No file of {shown(self.path)} names a split ({', '.join(SPLITS)}): leave out --split {split}."
                )
            return name, self.files
        if None in splits:
            other = self.inner(self.files[splits.index(None)])
            raise PurityError(
                f"{shown(self.path)} has files of the splits {', '.join(there)}, and {shown(other)}, which names "
                "none: give a pattern of the files that are meant."
            )
        # Who names files means them.
        default = default_split(there) or (None if self.is_folder else there[0])
        wanted = choose_split(shown(self.path), split, there, default)
        files = [file for file, its in zip(self.files, splits, strict=True) if its == wanted]
        return with_split(name, wanted, default), files


def _inside(place: str, suffixes: tuple[str, ...]) -> list[str]:
    def refuse(error: OSError) -> None:
        where = shown(str(error.filename))
        raise PurityError(f"Cannot list {where} ({error.strerror}): make it readable or take it away.")

    found = []
    for folder, folders, files in os.walk(place, onerror=refuse):
        folders[:] = sorted(name for name in folders if not is_systems(name))
        visible = [name for name in files if not is_systems(name)]
        if any(map(is_image, visible)):
            return []
        found += [os.path.join(folder, name) for name in visible if name.lower().endswith(suffixes)]
    return found


def _expanded(pattern: str) -> set[str]:
    """The files that a pattern matches, and those that it names one by one, there or not."""
    count = math.prod(int(last) - int(first) + 1 for first, last in BRACES.findall(pattern))
    if count > MOST:
        raise PurityError(f"{shown(pattern)} names {count:,} files: give a smaller range.")
    braces = BRACES.search(pattern)
    if braces is None:
        return set(glob.glob(pattern)) if glob.has_magic(pattern) else {pattern}
    first, last = braces.groups()
    before, behind = pattern[: braces.start()], pattern[braces.end() :]
    numbers = range(int(first), int(last) + 1)
    return {name for k in numbers for name in _expanded(f"{before}{k:0{len(first)}d}{behind}")}


def _split_of(inner: str) -> str | None:
    """The split that a file's name says, or else the nearest of its folders'."""
    return next((found[1] for part in reversed(inner.lower().split("/")) if (found := SPLIT.search(part))), None)
