"""Names and paths become images: `open_dataset` for all of them, `select` for a part."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from purity_cli.datasets import cifar10, digits, folder, imagenet, sample
from purity_cli.datasets.base import Family, ImageSource, NoSplit, UnreadableImage
from purity_cli.errors import PurityError, did_you_mean

__all__ = ["FAMILIES", "Family", "ImageSource", "NoSplit", "UnreadableImage", "open_dataset", "select"]

FAMILIES: dict[str, Family] = {
    family.name.partition(":")[0]: family
    for family in (imagenet.FAMILY, cifar10.FAMILY, sample.FAMILY, digits.FAMILY, folder.FAMILY)
}
"""What can be named; anything else is taken for a path, which `folder:` can stand before."""


def open_dataset(
    name: str, *, data_dir: str | None = None, split: str | None = None, download: bool = False
) -> ImageSource:
    """The images that `name` stands for: a name of `FAMILIES`, or the path of a folder or a tar.

    `data_dir` is where a named set lies. `split` is one that the set has; the default is its test split, else its
    validation split. Nothing is downloaded without leave. Raises PurityError for a name that is unknown and images
    that are not there or not in a layout that is known.
    """
    prefix, colon, path = name.partition(":")
    if not colon and name in FAMILIES and name != "folder":
        return FAMILIES[name].open(data_dir, split, download)
    is_path = colon == ":" and prefix == "folder"
    if not is_path and not (name and os.path.exists(os.path.expanduser(name))):
        hint = did_you_mean(prefix.lower(), FAMILIES)
        raise PurityError(f"No data set {name!r}, and no such file or folder: see `purity datasets`.{hint}")
    if data_dir is not None:
        raise PurityError(f"{name} is itself the place of the images: leave out --data-dir.")
    return FAMILIES["folder"].open(path if is_path else name, split, download)


def select(source: ImageSource, per_class: int | None = None, limit: int | None = None) -> Sequence[int]:
    """Positions of the images to score, ascending: the first `per_class` of each class, and of those the first `limit`.

    First means by path, so `limit` alone sees only the first classes where images lie in class folders. A class with
    fewer than `per_class` images gives all it has. PurityError where `per_class` is asked for and labels are unknown.
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
