"""`folder:PATH`: images in class folders or all in one, in a folder, tar or zip, with or without split folders."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence

from purity_cli.datasets.archive import ARCHIVES, open_archive
from purity_cli.datasets.base import SPLITS, Family, ImageDataset, NoSplit, choose_split, default_split, with_split
from purity_cli.datasets.classes import in_order, listed
from purity_cli.datasets.endings import is_image
from purity_cli.datasets.trees import File, FileSource, FolderTree, Tree
from purity_cli.errors import PurityError
from purity_cli.files import expanded, shown


def open_folder(path: str | None, split: str | None, _: bool) -> ImageDataset:
    """The images at `path`, with a class per folder if they are in any, numbered in the order of these (`in_order`)."""
    if not path:
        raise PurityError("folder: needs a path behind it, as in folder:photographs.")
    archive, tree = open_tree(path)
    place = f"a {archive}"
    base, chosen, default = find_images(tree, split)
    name = with_split(_display_name(path), chosen, default)
    here = tree.listing(base)
    in_folders = {folder: list(tree.walk(posixpath.join(base, folder))) for folder in here.folders}
    if not any(in_folders.values()):
        note = f"{_display_name(path)} has no class folders"
        images = some(tree, here.images)
        return FileSource.of(name, tree, base, images, kind=f"images without class folders in {place}", label_note=note)
    refuse_mixture(tree, base)
    order = in_order(here.folders, shown(name))
    # A class folder without images still is a class: the others must keep their numbers.
    classes = {file.path: k for k, folder in enumerate(order.names) for file in in_folders[folder]}
    empty = [folder for folder in order.names if not in_folders[folder]]
    holds = "holds no image that is read" if len(empty) == 1 else "hold no images that are read"
    nothing = f"{listed(empty)} in {shown(name)} {holds}." if empty else None
    return FileSource.of(
        name,
        tree,
        base,
        [file for files in in_folders.values() for file in files],
        kind=f"class folders in {place}",
        labels=classes,
        class_names=order.names,
        order=order.how,
        notes=[note for note in (order.note, nothing, _like_splits(tree, base, in_folders)) if note],
    )


def _like_splits(tree: Tree, base: str, in_folders: Mapping[str, Sequence[File]]) -> str | None:
    """What to say where few folders hold nothing but the same folders, as splits do whose names are not SPLITS."""
    full = [folder for folder, files in in_folders.items() if files]
    inside = [tree.listing(posixpath.join(base, folder)) for folder in full]
    same = {tuple(listing.folders) for listing in inside}
    if not 1 < len(full) < 5 or len(same) > 1 or len(inside[0].folders) < 2 or any(there.images for there in inside):
        return None
    return (
        f"{listed(full)} in {shown(tree.path)} are taken for classes, though each holds the same folders "
        f"({listed(inside[0].folders)}): if they are splits, give the path of one of them."
    )


def open_tree(path: str) -> tuple[str, Tree]:
    """What is at `path`, `folder` or one of `ARCHIVES`, and its files; PurityError where there is nothing of these."""
    place = expanded(path)
    if not os.path.exists(place):
        raise PurityError(f"{shown(path)} is not there: give a folder of images, or a {' or '.join(ARCHIVES)} of one.")
    if place.is_dir():
        return "folder", FolderTree(path)
    if is_image(place.name):
        raise PurityError(f"{shown(path)} is a single image: give the folder that it is in.")
    if not place.is_file():
        raise PurityError(f"{shown(path)} is a special file: give a folder of images, or an archive of one.")
    return open_archive(path)


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


def some(tree: Tree, files: Sequence[File]) -> Sequence[File]:
    """The files; PurityError where there are none."""
    if not files:
        left_out = f" {note}" if (note := tree.left_out("")) else ""
        raise PurityError(
            f"{shown(tree.path)} holds no images: files that end in .jpg, .png, .webp, .tif and whatever else PIL "
            f"reads are looked for.{left_out}"
        )
    return files


def _display_name(path: str) -> str:
    name = os.path.basename(os.path.abspath(os.path.expanduser(path))) or "images"
    suffixes = [suffix for archive in ARCHIVES.values() for suffix in archive.suffixes]
    suffix = max((s for s in suffixes if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)] or name


FAMILY = Family(
    name="folder:PATH",
    open=open_folder,
    about="class folders or a flat folder of images, or an archive of either; class folders with WordNet ids are "
    "ImageNet's classes, as in ImageNet-R, -A and -Sketch, and numbered ones count by number, as ImageNetV2's",
    classes=None,
    splits=(),
    needs=lambda: f"the path of a folder, or of a {' or '.join(ARCHIVES)} of one; folder: may be left out",
    fits=lambda path: os.path.exists(os.path.expanduser(path)),
)
