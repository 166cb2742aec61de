"""A few pictures to look at: single files, or one of each class of a data set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from PIL import Image

from purity_cli.datasets import ImageSource, UnreadableImage
from purity_cli.datasets.base import decode, fingerprint
from purity_cli.errors import PurityError, did_you_mean


class Chosen(NamedTuple):
    """Images of a source with what to call them, and their classes where these were chosen."""

    source: ImageSource
    images: Sequence[int]
    names: Sequence[str]
    classes: Sequence[int] | None


@dataclass(eq=False)
class PictureFiles(ImageSource):
    """Single files, in the order given."""

    @classmethod
    def of(cls, files: Sequence[str]) -> Self:
        """PurityError for a file that is not there."""
        for file in files:
            if not Path(file).is_file():
                raise PurityError(f"There is no picture {file}: give files, or a number of classes.")
        return cls("the panel", files, None, "single pictures carry no labels", None)

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            self.paths, (hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.paths), None
        )

    def load(self, i: int, /) -> Image.Image:
        try:
            return decode(Path(self.paths[i]).read_bytes())
        except OSError as error:
            raise UnreadableImage(error.strerror or "unreadable") from None


def find_class(source: ImageSource, text: str) -> int:
    """The class of this name, or number; PurityError where there is none."""
    if source.labels is None:
        raise PurityError(f"--class needs labels, but {source.label_note}: give --images instead.")
    names = list(source.class_names or [str(k) for k in range(max(source.labels) + 1)])
    for known in (names, readable(names)):
        if text in known:
            return known.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise PurityError(
        f"{source.name} has no class {text!r}: it has {len(names)}, from {names[0]} to {names[-1]}."
        f"{did_you_mean(text, {*names, *readable(names)})}"
    )


def readable(names: Sequence[str]) -> list[str]:
    """Names of classes with words for WordNet ids: `n01440764` and `n01440764 tench` become `tench`."""
    if not all(re.match(r"n\d{8}( |$)", name) for name in names):
        return list(names)
    from purity_cli.datasets.imagenet import class_names

    words = dict(name.split(" ", 1) for name in class_names())
    return [words.get(name[:9], name) for name in names]


def of_files(files: Sequence[str]) -> Chosen:
    """Every file, called by its name."""
    return Chosen(PictureFiles.of(files), range(len(files)), [Path(file).name for file in files], None)


def of_classes(source: ImageSource, classes: Sequence[int]) -> Chosen:
    """The first image of each class, called by the class."""
    labels = list(source.labels or ())
    names = readable(source.class_names or [str(k) for k in range(max(labels) + 1)])
    for k in classes:
        if k not in labels:
            raise PurityError(f"{source.name} has no image of class {names[k]}: choose another.")
    return Chosen(source, [labels.index(k) for k in classes], [names[k] for k in classes], classes)


def first(source: ImageSource, n: int) -> Chosen:
    """One image of each of the first n classes that have any; where there are no labels, the first n images."""
    if source.labels is None:
        images = range(min(n, len(source)))
        return Chosen(source, images, [Path(source.paths[i]).name for i in images], None)
    return of_classes(source, sorted(set(source.labels))[:n])
