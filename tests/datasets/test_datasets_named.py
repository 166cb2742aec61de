"""Data sets with names: ImageNet in every layout, CIFAR-10, digits; torchvision and scikit-learn are the oracle."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torchvision
from click.testing import CliRunner
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10

from purity_cli.cli.datasets import command
from purity_cli.datasets import KINDS, open_dataset, select
from purity_cli.errors import PurityError
from purity_cli.imagenet import wnids
from tests.datasets.test_datasets import NOISE, labelled, pack, picture

# ImageNet

COUNT = 12
DEVKIT = "ILSVRC2012_devkit_t12"


def name_of(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}.JPEG"


def write_devkit(folder: Path) -> None:
    """The devkit as it is published: 1000 leaf synsets numbered in an order of their own, then 860 above them."""
    fields = [
        *("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    ]
    leaves = NOISE.permutation(wnids())
    synsets = np.empty((1860, 1), dtype=[(field, object) for field in fields])
    for k in range(1860):
        leaf = k < 1000
        wnid = str(leaves[k]) if leaf else f"n{90000000 + k}"
        children = np.zeros((0, 1)) if leaf else np.array([[1.0, 2.0]])
        synsets[k, 0] = (k + 1, wnid, f"word {k}, other word", "gloss", 0 if leaf else 2, children, 0, 1300)
    (folder / "data").mkdir(parents=True)
    savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{k}\n" for k in NOISE.integers(1, 1001, 50000))
    (folder / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


class Layouts:
    """A tiny ILSVRC2012 in its official form, and what torchvision makes of it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.devkit = place / "source" / DEVKIT
        write_devkit(self.devkit)
        self.flat = place / "source" / "flat"
        for number in range(1, COUNT + 1):
            picture(self.flat / name_of(number))
        self.devkit_archive = place / "source" / f"{DEVKIT}.tar.gz"
        with tarfile.open(self.devkit_archive, "w:gz") as tar:
            tar.add(self.devkit, arcname=DEVKIT)
        self.images_archive = place / "source" / "ILSVRC2012_img_val.tar"
        with tarfile.open(self.images_archive, "w") as tar:
            for path in sorted(self.flat.iterdir()):
                tar.add(path, arcname=path.name)
        self.torchvision = place / "torchvision"
        self.truth = self._by_torchvision()
        """Class of each image by file name."""
        self.csv = place / "source" / "LOC_val_solution.csv"
        rows = [f"{Path(name).stem},{self.wnid(name)} 1 2 3 4 {self.wnid(name)} 5 6 7 8 " for name in self.truth]
        self.csv.write_text("\n".join(["ImageId,PredictionString", *NOISE.permutation(rows).tolist()]) + "\n")

    def wnid(self, name: str) -> str:
        return wnids()[self.truth[name]]

    def _by_torchvision(self) -> dict[str, int]:
        theirs: Any = torchvision.datasets.imagenet
        self.torchvision.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            for key, archive in (("devkit", self.devkit_archive), ("val", self.images_archive)):
                shutil.copy(archive, self.torchvision)
                checksum = hashlib.md5(archive.read_bytes()).hexdigest()
                patch.setitem(theirs.ARCHIVE_META, key, (archive.name, checksum))
            theirs.parse_devkit_archive(str(self.torchvision))
            theirs.parse_val_archive(str(self.torchvision))
        # ImageNet itself wants an image in each of the 1000 folders; the order of the classes is that of ImageFolder.
        val = self.torchvision / "val"
        known = theirs.load_meta_file(str(self.torchvision))[1]
        for wnid in set(known) | set(wnids()):
            (val / wnid).mkdir(exist_ok=True)
        samples = torchvision.datasets.ImageFolder(str(val), allow_empty=True).samples
        return {Path(path).name: label for path, label in samples}


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    return Layouts(tmp_path_factory.mktemp("imagenet"))


def lay(layouts: Layouts, root: Path, kind: str) -> Path:
    """One layout below `root`; what to give as --data-dir."""
    images, label, data_dir = {
        "classes": ("", None, ""),
        "val classes": ("val", None, ""),
        "img_val classes": ("ILSVRC2012_img_val", None, ""),
        "kaggle classes": ("ILSVRC/Data/CLS-LOC/val", None, ""),
        "flat, devkit": ("", layouts.devkit, ""),
        "flat, devkit archive": ("", layouts.devkit_archive, ""),
        "flat, meta.bin": ("", layouts.torchvision / "meta.bin", ""),
        "val, devkit": ("val", layouts.devkit, ""),
        "img_val, devkit archive": ("ILSVRC2012_img_val", layouts.devkit_archive, ""),
        "val itself, devkit above": ("val", layouts.devkit, "val"),
        "kaggle": ("ILSVRC/Data/CLS-LOC/val", layouts.csv, ""),
        "kaggle's val": ("ILSVRC/Data/CLS-LOC/val", layouts.csv, "ILSVRC/Data/CLS-LOC/val"),
        "kaggle's CLS-LOC": ("ILSVRC/Data/CLS-LOC/val", layouts.csv, "ILSVRC/Data/CLS-LOC"),
        "names with ids": ("val", None, ""),
        "tar, devkit": (None, layouts.devkit, ""),
        "tar itself, csv": (None, layouts.csv, "ILSVRC2012_img_val.tar"),
        "tar of classes": (None, None, "ILSVRC2012_img_val.tar"),
        "hugging face": (None, None, "val_images.tar.gz"),
    }[kind]
    place = root / "images" if images is None else root / images
    for path in layouts.flat.iterdir():
        folder = place / layouts.wnid(path.name) if "classes" in kind else place
        folder.mkdir(parents=True, exist_ok=True)
        named = kind in ("names with ids", "hugging face")
        shutil.copy(path, folder / (f"{path.stem}_{layouts.wnid(path.name)}.JPEG" if named else path.name))
    if label:
        (shutil.copytree if label.is_dir() else shutil.copy)(label, root / label.name)
    if images is None:
        tar = "val_images.tar.gz" if kind == "hugging face" else "ILSVRC2012_img_val.tar"
        pack(place, root / tar, "w:gz" if tar.endswith("gz") else "w")
        shutil.rmtree(place)
    return root / data_dir


LAYOUTS = [
    "classes", "val classes", "img_val classes", "kaggle classes", "flat, devkit", "flat, devkit archive",
    "flat, meta.bin", "val, devkit", "img_val, devkit archive", "val itself, devkit above", "kaggle", "kaggle's val",
    "kaggle's CLS-LOC", "names with ids", "tar, devkit", "tar itself, csv", "tar of classes", "hugging face",
]  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_has_torchvisions_labels(layouts: Layouts, tmp_path: Path, kind: str) -> None:
    data_dir = lay(layouts, tmp_path / "data", kind)
    source = open_dataset("imagenet", data_dir=str(data_dir))
    found = {re.sub(r"_n\d+", "", Path(path).name): label for path, label in labelled(source).items()}
    assert found == layouts.truth
    assert len(set(found.values())) > 5
    assert (source.name, source.label_note, len(source.class_names or ())) == ("imagenet", None, 1000)
    assert list(source.paths) == sorted(source.paths)
    for i, path in enumerate(source.paths):
        with Image.open(layouts.flat / re.sub(r"_n\d+", "", Path(path).name)) as known:
            assert source.load(i).tobytes() == known.tobytes()
        if data_dir.is_dir() and not kind.startswith("tar"):
            assert (data_dir / path).is_file()


def test_what_torchvision_left_behind_is_read_as_it_is(layouts: Layouts) -> None:
    source = open_dataset("imagenet", data_dir=str(layouts.torchvision))
    assert {Path(path).name: label for path, label in labelled(source).items()} == layouts.truth


def test_the_first_of_each_class_are_the_same_in_every_layout(layouts: Layouts, tmp_path: Path) -> None:
    chosen = []
    for kind in ("classes", "flat, devkit", "tar, devkit"):
        source = open_dataset("imagenet", data_dir=str(lay(layouts, tmp_path / kind, kind)))
        chosen.append(sorted(Path(source.paths[i]).name for i in select(source, 1)))
    first = {label: name for name, label in sorted(layouts.truth.items(), reverse=True)}
    assert chosen == [sorted(first.values())] * 3


def test_the_fingerprint_is_that_of_the_images_wherever_they_lie(layouts: Layouts, tmp_path: Path) -> None:
    def of(*kinds: str) -> set[str]:
        places = [lay(layouts, tmp_path / kind, kind) for kind in kinds]
        return {open_dataset("imagenet", data_dir=str(place)).fingerprint for place in places}

    in_classes = of("classes", "kaggle classes", "tar of classes")
    flat = of("flat, devkit", "kaggle", "tar, devkit", "tar itself, csv")
    assert (len(in_classes), len(flat), len(in_classes | flat)) == (1, 1, 2)  # images have other places in the order


@pytest.mark.parametrize("kind", ["flat, devkit", "kaggle", "tar, devkit"])
def test_images_without_labels(layouts: Layouts, tmp_path: Path, kind: str) -> None:
    place = lay(layouts, tmp_path, kind)
    for label in (DEVKIT, "LOC_val_solution.csv"):
        if (tmp_path / label).is_dir():
            shutil.rmtree(tmp_path / label)
        (tmp_path / label).unlink(missing_ok=True)
    source = open_dataset("imagenet", data_dir=str(place))
    assert (len(source), source.labels, source.class_names) == (COUNT, None, None)
    assert "in no class folders, and none of LOC_val_solution.csv, ILSVRC2012_devkit_t12" in (source.label_note or "")


def test_the_last_image_of_the_ground_truth(layouts: Layouts, tmp_path: Path) -> None:
    """Labels go by the number in the name: a part of the flat folder, or one renumbered beyond it."""
    truth = (layouts.devkit / "data" / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    shutil.copytree(layouts.devkit, tmp_path / DEVKIT)
    for number in (7, 49999, 50000):
        picture(tmp_path / name_of(number))
    numbers = {layouts.wnid(name): truth[int(name[15:23]) - 1] for name in layouts.truth}
    source = open_dataset("imagenet", data_dir=str(tmp_path))
    assert labelled(source)[name_of(7)] == layouts.truth[name_of(7)]
    # An image of another part of the list that has the number of a class which torchvision has named.
    known = {number: wnid for wnid, number in numbers.items()}
    far = next(k for k in range(40000, 50000) if truth[k - 1] in known)
    picture(tmp_path / name_of(far))
    assert wnids()[labelled(open_dataset("imagenet", data_dir=str(tmp_path)))[name_of(far)]] == known[truth[far - 1]]
    picture(tmp_path / name_of(50001))
    source = open_dataset("imagenet", data_dir=str(tmp_path))
    assert source.labels is None
    assert source.label_note is not None
    assert source.label_note.startswith(f"{name_of(50001)} has no line in {DEVKIT}")


def test_a_partial_imagenet_keeps_its_labels(tmp_path: Path) -> None:
    """Ten folders are not classes 0..9."""
    for wnid in ("n15075141", "n01440764", "n02102040"):
        picture(tmp_path / wnid / "1.JPEG")
    (tmp_path / "notes").mkdir()
    source = open_dataset("imagenet", data_dir=str(tmp_path))
    assert labelled(source) == {"n01440764/1.JPEG": 0, "n02102040/1.JPEG": 217, "n15075141/1.JPEG": 999}
    assert source.class_names is not None
    assert source.class_names[217] == "n02102040 English springer"
    assert open_dataset("imagenet", data_dir=str(tmp_path), split="val").labels == source.labels


def test_folders_of_other_classes_give_no_labels(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n00007846"):
        picture(tmp_path / wnid / "1.JPEG")
    source = open_dataset("imagenet", data_dir=str(tmp_path))
    assert (source.labels, source.class_names, len(source)) == (None, None, 2)
    assert str(source.label_note).startswith("n00007846/1.JPEG has no class folder that gives one of ILSVRC2012's")


def test_imagenet_splits(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "n02102040" / "n02102040_1.JPEG")
    with pytest.raises(PurityError, match="holds no ImageNet val images, .* or another --split"):
        open_dataset("imagenet", data_dir=str(tmp_path))
    picture(tmp_path / "val" / "n01440764" / "ILSVRC2012_val_00000293.JPEG")
    assert labelled(open_dataset("imagenet", data_dir=str(tmp_path))) == {
        "val/n01440764/ILSVRC2012_val_00000293.JPEG": 0
    }
    picture(tmp_path / "overview.png")  # beside the folder of the images, not among them
    assert open_dataset("imagenet", data_dir=str(tmp_path)).paths == ["val/n01440764/ILSVRC2012_val_00000293.JPEG"]
    train = open_dataset("imagenet", data_dir=str(tmp_path), split="train")
    assert (train.name, labelled(train)) == ("imagenet-train", {"train/n02102040/n02102040_1.JPEG": 217})
    with pytest.raises(PurityError, match="holds no ImageNet train images, .* or another --split"):
        open_dataset("imagenet", data_dir=str(tmp_path / "val"), split="train")
    with pytest.raises(PurityError, match="imagenet has no split 'test': it has val, train"):
        open_dataset("imagenet", data_dir=str(tmp_path), split="test")


def test_half_sorted_images_are_refused(layouts: Layouts, tmp_path: Path) -> None:
    place = lay(layouts, tmp_path, "val classes")
    picture(place / "val" / name_of(50))
    with pytest.raises(PurityError, match="1 images beside them, the first val/ILSVRC2012_val_00000050"):
        open_dataset("imagenet", data_dir=str(place))


@pytest.mark.parametrize("kind", ["kaggle", "flat, devkit", "flat, devkit archive"])
def test_lists_of_labels_as_other_systems_write_them(layouts: Layouts, tmp_path: Path, kind: str) -> None:
    place = lay(layouts, tmp_path, kind)

    def rewritten(data: bytes) -> bytes:
        return b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") + b"\r\n  \r\n"

    listed = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
    if kind.endswith("archive"):
        with tarfile.open(layouts.devkit_archive) as old, tarfile.open(tmp_path / f"{DEVKIT}.tar.gz", "w:gz") as new:
            for member in filter(tarfile.TarInfo.isfile, old):
                data = old.extractfile(member).read()  # type: ignore[union-attr]
                data = rewritten(data) if member.name == listed else data
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    else:
        path = tmp_path / ("LOC_val_solution.csv" if kind == "kaggle" else listed)
        if kind == "kaggle":
            path = next(tmp_path.rglob("LOC_val_solution.csv"))
        path.write_bytes(rewritten(path.read_bytes()))
    source = open_dataset("imagenet", data_dir=str(place))
    assert {Path(path).name: label for path, label in labelled(source).items()} == layouts.truth


def damage() -> Iterator[Any]:
    csv, meta, truth = "LOC_val_solution.csv", f"{DEVKIT}/data/meta.mat", "ILSVRC2012_validation_ground_truth.txt"
    yield csv, "ImageId;PredictionString\nx;y\n", "is no image and its class"
    yield csv, "ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "is no image and its class"
    yield csv, "ImageId,PredictionString\nILSVRC2012_val_00000001,n99999999 1 2\n", "'n99999999' is not one of"
    yield csv, "", "it holds none"
    yield meta, "MATLAB 5.0 MAT-file, but no more", "Cannot read labels from ILSVRC2012_devkit_t12"
    yield meta, None, r"ILSVRC2012_devkit_t12 \(meta\.mat: No such file or directory\)"
    yield f"{DEVKIT}/data/{truth}", None, rf"\({truth}: No such file"
    yield f"{DEVKIT}/data/{truth}", "1\n2\n1001\n", "'class 1001' is not one of"
    yield f"{DEVKIT}/data/{truth}", "n01440764\n", "Cannot read labels"
    yield f"{DEVKIT}.tar.gz", "not gzip", rf"Cannot read labels from {DEVKIT}\.tar\.gz \("
    yield "meta.bin", "not torch", r"Cannot read labels from meta\.bin \("


@pytest.mark.parametrize(("name", "content", "expected"), damage())
def test_damaged_labels(layouts: Layouts, tmp_path: Path, name: str, content: str | None, expected: str) -> None:
    place = lay(layouts, tmp_path, "flat, devkit")
    if not name.startswith(f"{DEVKIT}/"):
        shutil.rmtree(tmp_path / DEVKIT)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(PurityError, match=expected) as caught:
        open_dataset("imagenet", data_dir=str(place))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_meta_bin_runs_no_code(layouts: Layouts, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    place = lay(layouts, tmp_path, "flat, meta.bin")
    (tmp_path / "meta.bin").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(PurityError, match=r"Cannot read labels from meta\.bin"):
        open_dataset("imagenet", data_dir=str(place))
    assert not (tmp_path / "unpickled").exists()


def test_a_folder_without_imagenet(tmp_path: Path) -> None:
    picture(tmp_path / "0" / "1.png")
    with pytest.raises(PurityError, match=r"holds no ImageNet val images, .* \(val, ILSVRC2012_img_val, .*give"):
        open_dataset("imagenet", data_dir=str(tmp_path))
    with pytest.raises(PurityError, match="nowhere is not there"):
        open_dataset("imagenet", data_dir=str(tmp_path / "nowhere"))


def test_the_photographs(shared: Path) -> None:
    root = shared / "data" / "imagenet-sample"
    source = open_dataset("imagenet", data_dir=str(root))
    folders = sorted(path.name for path in root.iterdir())
    assert wnids() == tuple(folders)
    assert source.labels == list(range(1000))
    assert [path.split("/")[0] for path in source.paths] == folders
    # The photographs' own names are words of their classes.
    words = [Path(path).stem.split("_", 1)[1].replace("_", " ").lower() for path in source.paths]
    names = [name.split(" ", 1)[1].lower() for name in source.class_names or ()]
    assert np.mean([word == name for word, name in zip(words, names, strict=True)]) > 0.8
    folder = open_dataset(str(root))
    assert (folder.name, folder.labels, folder.paths) == ("imagenet-sample", source.labels, source.paths)
    assert folder.fingerprint == source.fingerprint


# digits


def test_digits_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = open_dataset("digits", split="train"), open_dataset("digits")
    assert (len(train), len(test), train.name, test.name) == (1257, 540, "digits-train", "digits")
    assert test.class_names == [str(k) for k in range(10)]
    theirs = load_digits()
    for source, positions in zip(
        (train, test),
        train_test_split(range(1797), test_size=0.3, random_state=0, stratify=theirs.target),
        strict=True,
    ):
        assert source.paths == [f"{'test' if source is test else 'train'}/{k:04}" for k in sorted(positions)]
        assert source.labels == [theirs.target[k] for k in sorted(positions)]
        for i in (0, 7, len(source) - 1):
            image, grey = source.load(i), np.round(theirs.images[sorted(positions)[i]] * 255 / 16).astype(np.uint8)
            assert (image.mode, image.size) == ("RGB", (32, 32))
            big = Image.fromarray(grey).resize((32, 32), Image.Resampling.BILINEAR)
            assert np.array_equal(np.asarray(image), np.repeat(np.asarray(big)[..., None], 3, axis=2))
    for source in (train, test):
        share = np.bincount(source.labels) / len(source)  # type: ignore[arg-type]
        assert np.abs(share - np.bincount(theirs.target) / 1797).max() < 0.002
    assert test.fingerprint == open_dataset("digits", split="test").fingerprint != train.fingerprint
    with pytest.raises(PurityError, match="digits has no split 'val': it has test, train"):
        open_dataset("digits", split="val")


# The sample of CIFAR-10 that ships


def test_the_sample_is_the_first_hundred_of_each_class(shared: Path) -> None:
    source = open_dataset("cifar10-sample")
    with tarfile.open(shared / "data" / "cifar10-jpeg.tar.xz") as tar:
        there = {m.name: m for m in tar if m.isfile() and "test/" in m.name}
        names = sorted(name for name in there if int(Path(name).stem) < 100)
        assert [name.split("test/")[1] for name in names] == list(source.paths)
        for i in range(0, 1000, 37):
            theirs = Image.open(tar.extractfile(there[names[i]])).convert("RGB")  # type: ignore[arg-type]
            assert np.array_equal(np.asarray(source.load(i)), np.asarray(theirs))
    assert source.labels == [i // 100 for i in range(1000)]
    assert source.class_names == sorted({Path(name).parent.name for name in names})
    with pytest.raises(PurityError, match="cifar10-sample has no split 'train': it has test"):
        open_dataset("cifar10-sample", split="train")
    with pytest.raises(PurityError, match="cifar10-sample comes with this package: leave out --data-dir"):
        open_dataset("cifar10-sample", data_dir="elsewhere")


# CIFAR-10


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 in its own layout, with the checksums that torchvision then expects; its parent folder."""
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name: str) -> list[str]:
        pixels = NOISE.integers(0, 256, (20, 3072), dtype=np.uint8)
        return [name, write(name, {"data": pixels, "labels": NOISE.integers(0, 10, 20).tolist()})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{k}") for k in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    checksum = write("batches.meta", {"label_names": [f"class {k}" for k in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksum})
    return tmp_path / "data"


def test_cifar10_is_torchvisions(batches: Path) -> None:
    for split, name, count in (("test", "cifar10", 20), ("train", "cifar10-train", 100)):
        theirs = CIFAR10(str(batches), train=split == "train")
        for data_dir in (batches, batches / CIFAR10.base_folder):
            source = open_dataset("cifar10", data_dir=str(data_dir), split=split)
            assert (source.name, len(source), source.class_names) == (name, count, theirs.classes)
            assert source.labels == theirs.targets
            assert list(source.paths) == sorted(source.paths)
            assert all(source.load(i).tobytes() == theirs[i][0].tobytes() for i in range(count))
    assert open_dataset("cifar10", data_dir=str(batches)).name == "cifar10"


def test_cifar10_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(
        PurityError, match=r"No cifar-10-batches-py in .*: unpack cifar-10-python\.tar\.gz .* --download"
    ):
        open_dataset("cifar10", data_dir=str(tmp_path))


def test_nothing_is_unpickled_that_is_not_cifar10(batches: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    for name in ("test_batch", "batches.meta"):
        before = (batches / CIFAR10.base_folder / name).read_bytes()
        (batches / CIFAR10.base_folder / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(PurityError, match="incomplete or damaged"):
            open_dataset("cifar10", data_dir=str(batches))
        assert not (tmp_path / "unpickled").exists()
        (batches / CIFAR10.base_folder / name).write_bytes(before)


def test_cifar10_is_downloaded_only_with_leave(
    batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "web" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches / CIFAR10.base_folder, arcname=CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("no_proxy", "*")
    place = str(tmp_path / "new")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(archive.parent))) as web:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{web.server_port}/{archive.name}")
        Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(PurityError, match="No cifar-10-batches-py"):
            open_dataset("cifar10", data_dir=place)
        assert not Path(place).exists()
        source = open_dataset("cifar10", data_dir=place, download=True)
        web.shutdown()
    assert source.labels == open_dataset("cifar10", data_dir=place).labels
    assert source.labels == CIFAR10(str(batches), train=False).targets
    assert capsys.readouterr().out == ""


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(PurityError, match=r"Could not download CIFAR-10 to .* not known.*: bring https://.*gz"):
        open_dataset("cifar10", data_dir=str(tmp_path), download=True)


# The command


def test_the_command_lists_what_can_be_opened() -> None:
    table, as_json, as_csv = (CliRunner().invoke(command, ["--format", kind]) for kind in ("table", "json", "csv"))
    assert {result.exit_code for result in (table, as_json, as_csv)} == {0}
    names = ["imagenet", "cifar10", "cifar10-sample", "digits", "shards:PATH", "parquet:PATH", "folder:PATH"]
    entries = json.loads(as_json.output)["datasets"]
    assert [entry["name"] for entry in entries] == names == [family.name for family in KINDS.values()]
    rows = list(csv.DictReader(io.StringIO(as_csv.output)))
    assert [row["name"] for row in rows] == names
    assert [row["classes"] for row in rows] == ["1000", "10", "10", "10", "", "", ""]
    assert [line.strip() for line in table.output.splitlines() if line.startswith("  ")] == names
    for bundled in (entry for entry in entries if entry["needs"].startswith("nothing")):
        for split in bundled["splits"]:
            source = open_dataset(bundled["name"], split=split)
            assert len(source.class_names or ()) == bundled["classes"]
            assert f"{len(source):,} {split}" in bundled["about"]
