"""`folder:PATH`: images in class folders or all in one, in a folder or a tar, with or without split folders."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from purity_cli.datasets.archive import SUFFIXES, TarTree
from purity_cli.datasets.base import Family, ImageSource, NoSplit, choose_split, with_split
from purity_cli.datasets.trees import File, FileSource, FolderTree, Tree, is_image
from purity_cli.errors import PurityError

SPLITS = ("test", "val", "validation", "train")
"""Names of split folders, the one taken by default first; train never is."""


def open_folder(path: str | None, split: str | None, _: bool) -> ImageSource:
    """The images at `path`, with a class per folder, counted in the order of the folders' names, if they are in any."""
    if not path:
        raise PurityError("folder: needs a path behind it, as in folder:photographs.")
    tree = open_tree(path)
    base, chosen, default = find_images(tree, split)
    name = with_split(_display_name(path), chosen, default)
    here = tree.listing(base)
    in_folders = {folder: list(tree.walk(posixpath.join(base, folder))) for folder in here.folders}
    if not any(in_folders.values()):
        note = f"{_display_name(path)} has no class folders"
        return FileSource.of(name, tree, base, some(tree, here.images), label=None, label_note=note, class_names=None)
    refuse_mixture(tree, base)
    # A class folder without images still is a class: the others must keep their numbers.
    classes = {file.path: k for k, files in enumerate(in_folders.values()) for file in files}
    return FileSource.of(
        name,
        tree,
        base,
        [file for files in in_folders.values() for file in files],
        label=lambda file: classes[file.path],
        label_note=None,
        class_names=here.folders,
    )


def open_tree(path: str) -> Tree:
    """The folder or tar at `path`; PurityError where there is neither."""
    place = Path(os.path.expanduser(path))
    if not os.path.exists(place):
        raise PurityError(f"{path} is not there: give a folder of images or a tar of one.")
    if place.is_dir():
        return FolderTree(path)
    if is_image(place.name):
        raise PurityError(f"{path} is a single image: give the folder that it is in.")
    if not place.is_file():
        raise PurityError(f"{path} is a special file: give a folder of images or a tar of one.")
    return TarTree(path)


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
        if len(splits) > 1 or (splits and not _others_hold_images(tree, base, splits.values())):
            default = next((name for name in SPLITS[:-1] if name in splits), None)
            there = [name for name in SPLITS if name in splits]
            chosen = choose_split(tree.path, split, there, default)
            return posixpath.join(base, splits[chosen]), chosen, default
        inner = posixpath.join(base, here.folders[0]) if len(here.folders) == 1 and not here.images else None
        if inner is None or tree.listing(inner).images or not tree.holds_images(inner):
            break
        base = inner
    if split:
        known = ", ".join(SPLITS)
        raise NoSplit(f"{tree.path} is not divided into split folders ({known}): leave out --split {split}.")
    return base, None, None


def _others_hold_images(tree: Tree, base: str, splits: Collection[str]) -> bool:
    return any(
        tree.holds_images(posixpath.join(base, name)) for name in tree.listing(base).folders if name not in splits
    )


def refuse_mixture(tree: Tree, base: str) -> None:
    """PurityError where images lie beside class folders: either could be meant."""
    loose = [file.path for file in tree.listing(base).images]
    if loose:
        raise PurityError(
            f"{tree.path} has class folders and {len(loose)} images beside them, the first {min(loose)}: "
            "sort them into the folders or move them away."
        )


def some(tree: Tree, files: Sequence[File]) -> Sequence[File]:
    """The files; PurityError where there are none."""
    if not files:
        raise PurityError(f"{tree.path} holds no images: files that end in {', '.join(IMG_EXTENSIONS)} are looked for.")
    return files


def _display_name(path: str) -> str:
    name = os.path.basename(os.path.abspath(os.path.expanduser(path))) or "images"
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)] or name


FAMILY = Family(
    name="folder:PATH",
    open=open_folder,
    about="class folders or a flat folder of images, or a tar of either; folder: may be left out",
    classes=None,
    splits=(),
    needs="the path",
)
