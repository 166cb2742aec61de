"""`folder:PATH`: images in class folders or all in one, in a folder, tar or zip, with or without split folders."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from purity_cli.datasets.base import (
    SPLITS,
    DatasetKind,
    File,
    FileImages,
    ImageDataset,
    NoSplit,
    choose_split,
    default_split,
    with_split,
)
from purity_cli.datasets.labels import COLUMNS, WNID, in_order, listed, number
from purity_cli.datasets.readers import ARCHIVES, Tree, open_tree
from purity_cli.errors import PurityError, first_line
from purity_cli.files import shown, to_text

METADATA = ("metadata.csv", "metadata.jsonl", "val_annotations.txt")
"""Files that name the class of each image below their folder: those of Hugging Face's image folders, which have a
`file_name` in each row, and tiny-imagenet's, whose images lie in the folder `images` beside it."""


def open_folder(path: str | None, split: str | None, _: bool) -> ImageDataset:
    """The images at `path`: with the labels of a metadata file if there is one, else with a class per folder, numbered
    in the order of their names (`in_order`). One folder that holds everything is no class.
    """
    if not path:
        raise PurityError("folder: needs a path behind it, as in folder:photographs.")
    tree = open_tree(path)
    base, chosen, default = find_images(tree, split)
    name, place = with_split(_display_name(path), chosen, default), f"a {tree.kind}"
    here = tree.listing(base)
    in_folders = {folder: list(tree.walk(posixpath.join(base, folder))) for folder in here.folders}
    full = [folder for folder, files in in_folders.items() if files]
    files = [*here.images, *(file for folder in full for file in in_folders[folder])]
    stored = _metadata(tree, base)
    if stored is not None:
        return _by_metadata(name, tree, base, files, stored)
    if not full or (not here.images and len(full) == 1 and not WNID.fullmatch(full[0])):
        note = f"all images of {shown(name)} are in one folder, {full[0]}" if full else None
        note = note or f"{_display_name(path)} has no class folders"
        kind = f"images without class folders in {place}"
        return file_images(name, tree, base, files, kind=kind, label_note=note)
    refuse_mixture(tree, base)
    order = in_order(here.folders, shown(name))
    # A class folder without images still is a class: the others must keep their numbers.
    classes = {file.path: k for k, folder in enumerate(order.names) for file in in_folders[folder]}
    empty = [folder for folder in order.names if not in_folders[folder]]
    holds = "holds no image that is read" if len(empty) == 1 else "hold no images that are read"
    nothing = f"{listed(empty)} in {shown(name)} {holds}." if empty else None
    return file_images(
        name,
        tree,
        base,
        files,
        kind=f"class folders in {place}",
        labels=classes,
        class_names=order.names,
        order=order.how,
        notes=[note for note in (order.note, nothing, _like_splits(tree, base, full)) if note],
    )


def _like_splits(tree: Tree, base: str, full: Sequence[str]) -> str | None:
    """What to say where few folders hold nothing but the same folders, as splits do whose names are not SPLITS."""
    inside = [tree.listing(posixpath.join(base, folder)) for folder in full]
    same = {tuple(listing.folders) for listing in inside}
    if not 1 < len(full) < 5 or len(same) > 1 or len(inside[0].folders) < 2 or any(there.images for there in inside):
        return None
    return (
        f"{listed(full)} in {shown(tree.path)} are taken for classes, though each holds the same folders "
        f"({listed(inside[0].folders)}): if they are splits, give the path of one of them."
    )


def _metadata(tree: Tree, base: str) -> dict[str, str | None] | None:
    """The class that metadata files give each image that they name, by its path; None where there is no such file.

    They may lie beside the images, or in any folder above them in the tree. The nearest counts.
    """
    parts = base.split("/") if base else []
    above = ["/".join(parts[:k]) for k in range(len(parts))]
    found: dict[str, str | None] | None = None
    for folder in [*above, *tree.folders(base)]:
        for name in METADATA:
            path = posixpath.join(folder, name)
            data = tree.open_other(path) if name in tree.listing(folder).others else None
            rows = None if data is None else _rows(data, shown(path))
            if rows is not None:
                inside = {posixpath.normpath(posixpath.join(folder, file)): label for file, label in rows.items()}
                found = {**(found or {}), **inside}
    return found


def _rows(data: bytes, path: str) -> dict[str, str | None] | None:
    """The label of each file that a metadata file names; None where it is a file of another kind."""
    text, name = to_text(data, path), posixpath.basename(path)
    try:
        if name == "val_annotations.txt":
            pairs = (line.split("\t") for line in text.splitlines())
            return {f"images/{file}": label for file, label, *_ in pairs}
        rows: list[dict[str, Any]] = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if name.endswith(".jsonl")
            else list(csv.DictReader(io.StringIO(text)))
        )
        if not rows or "file_name" not in rows[0]:
            return None
        column = next((column for column in COLUMNS if column in rows[0]), None)
        return {str(row["file_name"]): None if column is None else _text(row[column]) for row in rows}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise PurityError(f"Cannot read labels from {path} ({first_line(error)}): mend it or move it away.") from None


def _text(label: Any) -> str | None:
    return None if label in (None, "") else str(label)


def _by_metadata(
    name: str, tree: Tree, base: str, files: Sequence[File], stored: Mapping[str, str | None]
) -> FileImages:
    files = sorted(files, key=lambda file: os.fsencode(file.path))
    found = number([stored.get(file.path) for file in files], shown(name), "no class in the metadata beside them")
    return file_images(
        name,
        tree,
        base,
        files,
        kind=f"images with metadata in a {tree.kind}",
        labels=None if found.labels is None else dict(zip((file.path for file in files), found.labels, strict=True)),
        label_note=found.note,
        class_names=found.names,
        order=found.order,
        notes=found.said,
    )


def find_images(tree: Tree, split: str | None) -> tuple[str, str | None, str | None]:
    """The folder whose class folders or images are meant, its split, and the split taken by default.

    Folders named as splits are taken for splits where there are several of them or nothing else holds images; a
    single `train` among other folders is a class. A folder or tar that holds one folder of folders and nothing else
    is but a wrapper, and is looked into.
    """
    base = ""
    while True:
        here = tree.listing(base)
        named = {name.lower(): name for name in here.folders if name.lower() in SPLITS}
        splits = {low: name for low, name in named.items() if tree.holds_images(posixpath.join(base, name))}
        others = (name for name in here.folders if name not in splits.values())
        if len(splits) > 1 or (splits and not any(tree.holds_images(posixpath.join(base, name)) for name in others)):
            there = [name for name in SPLITS if name in splits]
            default = default_split(there)
            chosen = choose_split(shown(tree.path), split, there, default)
            return posixpath.join(base, splits[chosen]), chosen, default
        inner = posixpath.join(base, here.folders[0]) if len(here.folders) == 1 and not here.images else None
        if inner is None or tree.listing(inner).images or not tree.holds_images(inner):
            break
        base = inner
    if split:
        known = ", ".join(SPLITS)
        raise NoSplit(f"{shown(tree.path)} is not divided into split folders ({known}): leave out --split {split}.")
    return base, None, None


def refuse_mixture(tree: Tree, base: str) -> None:
    """PurityError where images lie beside class folders: either could be meant."""
    loose = [file.path for file in tree.listing(base).images]
    if loose:
        raise PurityError(
            f"{shown(tree.path)} has class folders and {len(loose)} images beside them, the first {shown(min(loose))}: "
            "sort them into the folders or move them away."
        )


def file_images(
    name: str,
    tree: Tree,
    base: str,
    files: Sequence[File],
    *,
    labels: Mapping[str, int] | None = None,
    class_names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    **more: Any,
) -> FileImages:
    """The data set of these files of a tree, sorted; `labels` gives the class of each by its path. PurityError where
    there are no files.
    """
    left_out = tree.left_out(base)
    if not files:
        raise PurityError(
            f"{shown(tree.path)} holds no images: files that end in .jpg, .png, .webp, .tif and whatever else PIL "
            f"reads are looked for.{f' {left_out}' if left_out else ''}"
        )
    files = sorted(files, key=lambda file: os.fsencode(file.path))
    return FileImages(
        name=shown(name),
        paths=[shown(file.path) for file in files],
        labels=None if labels is None else [labels[file.path] for file in files],
        class_names=class_names and [shown(name) for name in class_names],
        notes=(*notes, left_out) if left_out else tuple(notes),
        reader=tree,
        files=files,
        root=tree.root,
        base=base,
        **more,
    )


def _display_name(path: str) -> str:
    name = os.path.basename(os.path.abspath(os.path.expanduser(path))) or "images"
    suffixes = [suffix for its in ARCHIVES.values() for suffix in its if name.lower().endswith(suffix)]
    return name[: len(name) - len(max(suffixes, key=len, default=""))] or name


KIND = DatasetKind(
    name="folder:PATH",
    open=open_folder,
    about="class folders or a flat folder of images, or an archive of either; class folders with WordNet ids are "
    "ImageNet's classes, as in ImageNet-R, -A and -Sketch, and numbered ones count by number, as ImageNetV2's",
    classes=None,
    splits=(),
    needs=f"the path of a folder, or of a {' or '.join(ARCHIVES)} of one; folder: may be left out",
    fits=lambda path: os.path.exists(os.path.expanduser(path)),
)
