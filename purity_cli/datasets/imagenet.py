"""`imagenet`: ILSVRC2012's photographs, in any of the layouts that people have them in, its classes, and the labels of
images that are not in class folders.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from purity_cli.datasets.base import DatasetKind, ImageDataset, choose_split, with_split
from purity_cli.datasets.folder import file_images, refuse_mixture
from purity_cli.datasets.labels import WNID
from purity_cli.datasets.readers import Tree, open_tree
from purity_cli.errors import PurityError, first_line
from purity_cli.files import expanded, read_text, shown, to_text
from purity_cli.imagenet import class_names, wnids

SPLITS = ("val", "train")
PLACES = ("{split}", "ILSVRC2012_img_{split}", "ILSVRC/Data/CLS-LOC/{split}", "Data/CLS-LOC/{split}", "CLS-LOC/{split}")
"""Where images lie below --data-dir, if they are not in it itself; the last three are Kaggle's."""
PACKED = ("ILSVRC2012_img_val.tar", "val_images.tar.gz")
"""The official validation images, and Hugging Face's."""
VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(?=[._]|$)")
NAMED = re.compile(r"(?:^|_)(n\d{8})(?=[._])")
"""A WordNet id in a file's name: `n01440764_10026.JPEG`, or Hugging Face's `ILSVRC2012_val_00000293_n01440764.JPEG`."""
DEVKIT = "ILSVRC2012_devkit_t12"
ABOVE = 4
"""How far above the images labels are looked for: as far as in Kaggle's tree."""


def open_imagenet(data_dir: str | None, split: str | None, _: bool) -> ImageDataset:
    """The validation (or train) images below `data_dir`, or in the tar that it is or holds.

    Classes are 0..999, the sorted WordNet ids of ILSVRC2012, also where only some of them are there. Images in class
    folders are labelled by these, others as `label_flat` says.
    """
    if data_dir is None or not os.path.exists(os.path.expanduser(data_dir)):
        missing = f", and {data_dir} is not there" if data_dir else ""
        raise PurityError(
            f"imagenet needs --data-dir: the folder that holds ILSVRC2012's validation images, or their tar{missing}."
        )
    tree = open_tree(data_dir)
    chosen = choose_split("imagenet", split, SPLITS, SPLITS[0])
    base = _find(tree, chosen)
    packed = [path for name in PACKED if os.path.isfile(expanded(path := os.path.join(data_dir, name)))]
    if base is None and chosen == "val" and packed:
        tree = open_tree(packed[0])
        base = _find(tree, chosen)
    if base is None:
        places = ", ".join(place.format(split=chosen) for place in PLACES[:3])
        raise PurityError(
            f"{shown(tree.path)} holds no ImageNet {chosen} images, in class folders ({wnids()[0]}, ...) or flat, "
            f"where they are looked for ({places}, {PACKED[0]}): give the folder in which they lie, or another --split."
        )
    name = with_split("imagenet", chosen, SPLITS[0])
    folders = [folder for folder in tree.listing(base).folders if WNID.fullmatch(folder)]
    inside = {file.path: folder for folder in folders for file in tree.walk(posixpath.join(base, folder))}
    kind = f"ILSVRC2012 in class folders in a {tree.kind}"
    if inside:
        refuse_mixture(tree, base)
        files = [file for folder in folders for file in tree.walk(posixpath.join(base, folder))]
        found, order, what = list(inside.values()), "classes by their WordNet ids", "class folder"
        labels, note = _to_classes([file.path for file in files], found, what)
    else:
        files = tree.listing(base).images
        names = [posixpath.basename(file.path) for file in files]
        labels, note = label_flat(names, Path(os.path.abspath(expanded(tree.path))) / base)
        kind = f"ILSVRC2012 without class folders in a {tree.kind}"
        order = "classes by their WordNet ids, from a list of labels or the images' names"
    known = labels is not None
    return file_images(
        name,
        tree,
        base,
        files,
        kind=kind,
        labels=dict(zip((file.path for file in files), labels, strict=True)) if labels is not None else None,
        label_note=note,
        class_names=class_names() if known else None,
        order=order if known else None,
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


def label_flat(names: Sequence[str], images: Path) -> tuple[list[int] | None, str | None]:
    """Labels of the images with these file names in the folder (or tar) `images`; else None and why.

    A file that carries its WordNet id in its name needs nothing else. Validation images are looked up by their number
    in the first of `READERS` that lies beside them or in a folder above. PurityError where that is damaged.
    """
    named = [found[1] if (found := NAMED.search(name)) else None for name in names]
    if all(named):
        return _to_classes(names, named, "WordNet id in the name")
    places = (place for place in [images, *images.parents][: ABOVE + 1])
    source = next((path for place in places for name in READERS if (path := place / name).exists()), None)
    if source is None:
        return None, f"the images are in no class folders, and none of {', '.join(READERS)} lies beside or above them"
    table = read_table(source)
    numbers = [int(found[1]) if (found := VALIDATION.match(name)) else 0 for name in names]
    return _to_classes(names, [table.get(number) for number in numbers], f"line in {source.name}")


def _to_classes(names: Sequence[str], found: Sequence[str | None], what: str) -> tuple[list[int] | None, str | None]:
    """The number of each image's class, of which `found` is the WordNet id; else None and why."""
    index = {wnid: k for k, wnid in enumerate(wnids())}
    wrong = next((name for name, wnid in zip(names, found, strict=True) if wnid not in index), None)
    if wrong is not None:
        return None, f"{shown(wrong)} has no {what} that gives one of ILSVRC2012's 1000 classes"
    return [index[wnid] for wnid in found if wnid], None


def read_table(path: Path) -> dict[int, str]:
    """Number of each validation image (1..50000) -> WordNet id; PurityError where the file is not what it should be."""
    try:
        table = READERS[path.name](path)
        strange = set(table.values()) - set(wnids())
        if strange or not table:
            raise ValueError(f"{min(strange)!r} is not one of ILSVRC2012's classes" if strange else "it holds none")
    except Exception as error:  # tarfile, scipy, csv and torch each have their own for damaged files
        reason = first_line(error)
        if isinstance(error, OSError) and error.filename:
            reason = f"{Path(error.filename).name}: {error.strerror}"
        raise PurityError(f"Cannot read labels from {path.name} ({reason}): mend it or move it away.") from None
    return table


def _read_kaggle(path: Path) -> dict[int, str]:
    """`ILSVRC2012_val_00048981,n03995372 85 1 499 272`: the id is followed by boxes, each perhaps with the id again."""
    table = {}
    for row in csv.DictReader(io.StringIO(read_text(path))):
        found = VALIDATION.match(row.get("ImageId") or "")
        boxes = (row.get("PredictionString") or "").split()
        if not found or not boxes:
            raise ValueError(f"{','.join(map(str, row.values()))!r} is no image and its class")
        table[int(found[1])] = boxes[0]
    return table


def _read_devkit(open_part: Callable[[str], Any]) -> dict[int, str]:
    """The ground truth gives each image's ILSVRC2012_ID, in an order of its own, which meta.mat maps to WordNet ids."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(open_part("data/meta.mat").read()), squeeze_me=True)["synsets"]
    # Ids beyond the leaves' 1000 are of synsets above them.
    rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
    names = {int(number): str(wnid) for number, wnid, children in rows if children == 0}
    listed = "data/ILSVRC2012_validation_ground_truth.txt"
    truth = to_text(open_part(listed).read(), listed).split()
    return {k: names.get(int(number), f"class {int(number)}") for k, number in enumerate(truth, start=1)}


def _read_devkit_folder(path: Path) -> dict[int, str]:
    return _read_devkit(lambda part: io.BytesIO((path / part).read_bytes()))


def _read_devkit_archive(path: Path) -> dict[int, str]:
    with tarfile.open(path) as tar:
        return _read_devkit(lambda part: tar.extractfile(f"{DEVKIT}/{part}"))


def _read_torchvision(path: Path) -> dict[int, str]:
    """What torchvision makes of the devkit: the WordNet ids of images 1, 2, ..."""
    from torchvision.datasets.imagenet import load_meta_file  # takes PyTorch's seconds

    return dict(enumerate(load_meta_file(path.parent, path.name)[1], start=1))


READERS: dict[str, Callable[[Path], dict[int, str]]] = {
    "LOC_val_solution.csv": _read_kaggle,
    DEVKIT: _read_devkit_folder,
    f"{DEVKIT}.tar.gz": _read_devkit_archive,
    "meta.bin": _read_torchvision,
}
"""Files that label the validation images by number, the first of them preferred."""


KIND = DatasetKind(
    name="imagenet",
    open=open_imagenet,
    about="ILSVRC2012's 50,000 validation photographs, or any part of them",
    classes=1000,
    splits=SPLITS,
    needs="--data-dir with class folders, the flat images (with the devkit or Kaggle's csv for labels) or their tar",
    class_names=class_names,
)
