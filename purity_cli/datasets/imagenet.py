"""`imagenet`: ILSVRC2012's photographs, in any of the layouts that people have them in."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from purity_cli.datasets.archive import open_archive
from purity_cli.datasets.base import Family, ImageSource, choose_split, with_split
from purity_cli.datasets.classes import WNID
from purity_cli.datasets.folder import open_tree, refuse_mixture, some
from purity_cli.datasets.imagenet_labels import class_names, label_flat, wnids
from purity_cli.datasets.trees import File, FileSource, Tree
from purity_cli.errors import PurityError
from purity_cli.files import expanded, shown

SPLITS = ("val", "train")
PLACES = ("{split}", "ILSVRC2012_img_{split}", "ILSVRC/Data/CLS-LOC/{split}", "Data/CLS-LOC/{split}", "CLS-LOC/{split}")
"""Where images lie below --data-dir, if they are not in it itself; the last three are Kaggle's."""
PACKED = ("ILSVRC2012_img_val.tar", "val_images.tar.gz")
"""The official validation images, and Hugging Face's."""


def open_imagenet(data_dir: str | None, split: str | None, _: bool) -> ImageSource:
    """The validation (or train) images below `data_dir`, or in the tar that it is or holds.

    Classes are 0..999, the sorted WordNet ids of ILSVRC2012, also where only some of them are there. Images in class
    folders are labelled by these, others as `imagenet_labels` says.
    """
    if data_dir is None or not os.path.exists(os.path.expanduser(data_dir)):
        missing = f", and {data_dir} is not there" if data_dir else ""
        raise PurityError(
            f"imagenet needs --data-dir: the folder that holds ILSVRC2012's validation images, or their tar{missing}."
        )
    archive, tree = open_tree(data_dir)
    chosen = choose_split("imagenet", split, SPLITS, SPLITS[0])
    base = _find(tree, chosen)
    if base is None and chosen == "val" and archive == "folder":
        packed = next((path for name in PACKED if os.path.isfile(expanded(path := os.path.join(data_dir, name)))), None)
        if packed:
            archive, tree = open_archive(packed)
            base = _find(tree, chosen)
    if base is None:
        raise PurityError(_nothing_found(tree, chosen))
    name = with_split("imagenet", chosen, SPLITS[0])
    folders = [folder for folder in tree.listing(base).folders if WNID.fullmatch(folder)]
    files = [file for folder in folders for file in tree.walk(posixpath.join(base, folder))]
    if not files:
        return _flat(name, tree, base, archive)
    refuse_mixture(tree, base)
    index = {wnid: k for k, wnid in enumerate(wnids())}
    unknown = next((folder for folder in folders if folder not in index), None)
    depth = len(base.split("/")) if base else 0

    def label(file: File) -> int:
        return index[file.path.split("/")[depth]]

    return FileSource.of(
        name,
        tree,
        base,
        files,
        label=None if unknown else label,
        label_note=f"class folder {unknown} is not one of ILSVRC2012's 1000 classes" if unknown else None,
        class_names=None if unknown else class_names(),
        kind=f"ILSVRC2012 in class folders in a {archive}",
        order=None if unknown else "classes by their WordNet ids",
    )


def _find(tree: Tree, split: str) -> str | None:
    """The folder of the images; `data_dir` itself only where no split is named below it, and as val."""
    places = [place.format(split=split) for place in PLACES]
    for base in [*places, ""] if split == SPLITS[0] else places:
        if tree.has(base):
            here = tree.listing(base)
            if here.images or any(WNID.fullmatch(folder) for folder in here.folders):
                return base
    return None


def _nothing_found(tree: Tree, split: str) -> str:
    there = [other for other in SPLITS if other != split and _find(tree, other) is not None]
    hint = f"pass --split {there[0]} for what is there" if there else "give the folder in which they lie"
    places = [place.format(split=split) for place in PLACES[:3]]
    looked = ", ".join(["itself", *places, PACKED[0]] if split == SPLITS[0] else places)
    return (
        f"{shown(tree.path)} holds no ImageNet {split} images, in class folders ({wnids()[0]}, ...) or flat, where "
        f"they are looked for ({looked}): {hint}."
    )


def _flat(name: str, tree: Tree, base: str, archive: str) -> ImageSource:
    files = some(tree, tree.listing(base).images)
    root = Path(os.path.abspath(expanded(tree.path)))
    labels, note = label_flat([posixpath.basename(file.path) for file in files], root / base)
    by_path = dict(zip((file.path for file in files), labels or (), strict=False))
    return FileSource.of(
        name,
        tree,
        base,
        files,
        label=(lambda file: by_path[file.path]) if labels else None,
        label_note=note,
        class_names=class_names() if labels else None,
        kind=f"ILSVRC2012 without class folders in a {archive}",
        order="classes by their WordNet ids, from a list of labels or the images' names" if labels else None,
    )


FAMILY = Family(
    name="imagenet",
    open=open_imagenet,
    about="ILSVRC2012's 50,000 validation photographs, or any part of them",
    classes=1000,
    splits=SPLITS,
    needs="--data-dir with class folders, the flat images (with the devkit or Kaggle's csv for labels) or their tar",
    class_names=class_names,
)
