"""Names and paths become images: `open_dataset` for all of them, `select` for a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from purity_cli.datasets import arrays, folder, imagenet, parquet, shards
from purity_cli.datasets.base import Family, ImageDataset, NoSplit, UnreadableImage
from purity_cli.datasets.classes import LabelMatch, chance_note, labels_fit, seen_note
from purity_cli.errors import PurityError, did_you_mean
from purity_cli.files import shown
from purity_cli.plugins import Registry

__all__ = [
    "FAMILIES",
    "Family",
    "ImageDataset",
    "LabelMatch",
    "NoSplit",
    "UnreadableImage",
    "chance_note",
    "class_names",
    "labels_fit",
    "open_dataset",
    "seen_note",
    "select",
]  # fmt: skip

_OWN: tuple[Family, ...] = (imagenet.FAMILY, *arrays.FAMILIES, shards.FAMILY, parquet.FAMILY, folder.FAMILY)
FAMILIES: Registry[Family] = Registry(
    "purity_cli.datasets", Family, {family.name.partition(":")[0]: family for family in _OWN}
)
"""Sets of images that can be named, and kinds of paths. A path is of the first kind that fits it, or of the one that
stands before it, as in `folder:PATH`.
"""


def open_dataset(
    name: str, *, data_dir: str | None = None, split: str | None = None, download: bool = False
) -> ImageDataset:
    """The images that `name` stands for: one of `FAMILIES`, or a path.

    `data_dir` is where a named set lies. `split` is one that the set has; the default is its test split, else its
    validation split. Nothing is downloaded without leave. Raises PurityError for a name that is unknown and images
    that are not there or not in a layout that is known.
    """
    prefix, colon, path = name.partition(":")
    family = FAMILIES.get(prefix)
    if family and not colon and family.fits is None:
        return family.open(data_dir, split, download)
    if not (family and colon and family.fits):
        path = name
        family = next((kind for kind in FAMILIES.values() if name and kind.fits and kind.fits(name)), None)
    if family is None:
        hint = did_you_mean(prefix.lower(), FAMILIES)
        raise PurityError(f"No data set {shown(name)!r}, and no such file or folder: see `purity datasets`.{hint}")
    if data_dir is not None:
        raise PurityError(f"{shown(name)} is itself the place of the images: leave out --data-dir.")
    return family.open(path, split, download)


def class_names(name: str) -> Sequence[str] | None:
    """What the classes of a named set are called, without opening it; None where that is not known."""
    family = FAMILIES.get(name)
    return family.class_names() if family and family.class_names else None


def select(source: ImageDataset, per_class: int | None = None, limit: int | None = None) -> Sequence[int]:
    """Positions of the images to score, ascending: the first `per_class` of each class, and of those the first `limit`.

    First means in the set's order, so `limit` alone sees only the first classes where images lie in class folders, and
    `seen_note` says how many. A class with fewer than `per_class` images gives all it has. PurityError where
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
