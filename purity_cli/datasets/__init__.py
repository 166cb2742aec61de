"""Names and paths become images: `open_dataset` for all of them, `select` for a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from purity_cli.datasets import arrays, folder, imagenet, parquet, shards
from purity_cli.datasets.base import ArrayImages, DatasetKind, ImageDataset, NoSplit
from purity_cli.datasets.decoding import UnreadableImage, decode
from purity_cli.datasets.labels import LabelMatch, chance_note, limit_note, match_labels
from purity_cli.errors import PurityError, did_you_mean
from purity_cli.files import shown
from purity_cli.plugins import Registry

__all__ = [
    "KINDS",
    "ArrayImages",
    "DatasetKind",
    "ImageDataset",
    "LabelMatch",
    "NoSplit",
    "UnreadableImage",
    "chance_note",
    "class_names",
    "decode",
    "limit_note",
    "match_labels",
    "open_dataset",
    "path_of",
    "select",
]  # fmt: skip

KINDS: Registry[DatasetKind] = Registry(
    "purity_cli.datasets",
    DatasetKind,
    {
        kind.name.partition(":")[0]: kind
        for kind in (imagenet.KIND, *arrays.KINDS, shards.KIND, parquet.KIND, folder.KIND)
    },
)
"""Sets of images that can be named, and kinds of paths. A path is of the first kind that fits it, or of the one that
stands before it, as in `folder:PATH`.
"""


def path_of(name: str) -> tuple[str, str | None]:
    """The kind before the path in what names a data set, with its colon, and that path: `("shards:", "a/b.tar")` of
    `shards:a/b.tar`, `("", "photos")` of `photos`; the path is None where a set of images is named, as `digits`.
    """
    prefix, colon, path = name.partition(":")
    kind = KINDS.get(prefix)
    if kind and colon and kind.fits:
        return f"{prefix}:", path
    return "", None if kind and not colon and not kind.fits else name


def open_dataset(
    name: str, *, data_dir: str | None = None, split: str | None = None, download: bool = False
) -> ImageDataset:
    """The images that `name` stands for: one of `KINDS`, or a path.

    `data_dir` is where a named set lies. `split` is one that the set has; the default is its test split, else its
    validation split. Nothing is downloaded without leave. Raises PurityError for a name that is unknown and images
    that are not there or not in a layout that is known.
    """
    prefix, path = path_of(name)
    if path is None:
        return KINDS[name].open(data_dir, split, download)
    fitting = (each for each in KINDS.values() if path and each.fits and each.fits(path))
    kind = KINDS[prefix[:-1]] if prefix else next(fitting, None)
    if kind is None:
        hint = did_you_mean(name.partition(":")[0].lower(), KINDS)
        raise PurityError(f"No data set {shown(name)!r}, and no such file or folder: see `purity datasets`.{hint}")
    if data_dir is not None:
        raise PurityError(f"{shown(name)} is itself the place of the images: leave out --data-dir.")
    return kind.open(path, split, download)


def class_names(name: str) -> Sequence[str] | None:
    """What the classes of a named set are called, without opening it; None where that is not known."""
    kind = KINDS.get(name)
    return kind.class_names() if kind and kind.class_names else None


def select(source: ImageDataset, per_class: int | None = None, limit: int | None = None) -> Sequence[int]:
    """Positions of the images to score, ascending: the first `per_class` of each class, and of those the first `limit`.

    First means in the set's order, so `limit` alone sees only the first classes where images lie in class folders, and
    `limit_note` says how many. A class with fewer than `per_class` images gives all it has. PurityError where
    `per_class` is asked for and labels are unknown.
    """
    chosen: Sequence[int] = range(len(source))
    if per_class is not None:
        if source.labels is None:
            raise PurityError(f"--per-class needs labels, but {source.label_note}: leave it out, or use --limit.")
        seen: Counter[int] = Counter()
        chosen = []
        for position, label in enumerate(source.labels):
            seen[label] += 1
            if seen[label] <= per_class:
                chosen.append(position)
    return chosen if limit is None else chosen[:limit]
