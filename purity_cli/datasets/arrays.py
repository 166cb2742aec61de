"""Named sets that fit in memory: CIFAR-10 by torchvision, and the two that ship with this package."""

from __future__ import annotations

import io
import tarfile
from http.client import HTTPException
from importlib import resources
from typing import BinaryIO

import numpy as np
from PIL import Image

from purity_cli.datasets.base import ArrayImages, DatasetKind, ImageDataset, choose_split, with_split
from purity_cli.datasets.decoding import decode
from purity_cli.errors import PurityError
from purity_cli.files import expanded
from purity_cli.machine import impatient, why_not

SPLITS = ("test", "train")
FOLDER = "cifar-10-batches-py"
SAMPLE = "cifar10-sample"
DIGITS = [str(digit) for digit in range(10)]


def open_cifar10(data_dir: str | None, split: str | None, download: bool) -> ImageDataset:
    """The 10,000 test or 50,000 train images, in the order of their files.

    torchvision compares every file with its published MD5 before it unpickles any.
    """
    if data_dir is None:
        raise PurityError(f"cifar10 needs --data-dir: the folder that holds {FOLDER}, or will with --download.")
    from torchvision.datasets import CIFAR10  # takes PyTorch's seconds, which no other images need

    chosen = choose_split("cifar10", split, SPLITS, SPLITS[0])
    root = expanded(data_dir)
    if root.name == FOLDER and not (root / FOLDER).exists():
        root = root.parent
    way_out = f"unpack {CIFAR10.filename} from {CIFAR10.url} there, or pass --download"
    if not download and not (root / FOLDER).is_dir():
        raise PurityError(f"No {FOLDER} in {data_dir}: {way_out}.")
    try:
        with impatient():
            data = CIFAR10(str(root), train=chosen == "train", download=download)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        if download:
            why = why_not(error)
            raise PurityError(f"Could not download CIFAR-10 to {data_dir} ({why}): bring {CIFAR10.url}.") from None
        raise PurityError(
            f"{FOLDER} in {data_dir} is incomplete or damaged, for its checksums differ: remove it and {way_out}."
        ) from None
    return ArrayImages(
        name=with_split("cifar10", chosen, SPLITS[0]),
        paths=[f"{chosen}/{i:05d}" for i in range(len(data))],
        labels=[int(label) for label in data.targets],
        class_names=list(data.classes),
        kind="the python version",
        pixels=data.data,
    )


def open_sample(data_dir: str | None, split: str | None, _: bool) -> ImageDataset:
    """The first 100 test images of each class, by name, as JPEGs of 32x32 (Krizhevsky 2009, saved as JPEG).

    `assets/README.md` says how they were packed. They are decoded here, which takes a tenth of a second: nothing is
    written, so that this works where no folder is writable.
    """
    choose_split(SAMPLE, split, SPLITS[:1], SPLITS[0])
    with tarfile.open(fileobj=_asset(SAMPLE, ".tar.gz", data_dir)) as tar:
        files = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    paths = sorted(files)
    class_names = sorted({path.partition("/")[0] for path in paths})
    return ArrayImages(
        name=SAMPLE,
        paths=paths,
        labels=[class_names.index(path.partition("/")[0]) for path in paths],
        class_names=class_names,
        pixels=np.stack([np.asarray(decode(files[path])) for path in paths]),
    )


def open_digits(data_dir: str | None, split: str | None, _: bool) -> ImageDataset:
    """The 1,797 digits as RGB of 32x32: 540 in the test split, 1,257 in the train split.

    The 8x8 grey values, which count the dark ones of 4x4 pixels, 0..16, become round(v / 16 * 255), which PIL enlarges
    (bilinear). They are scikit-learn's `load_digits` (UCI's optical recognition of handwritten digits, test part), and
    the split is its `train_test_split(range(1797), test_size=0.3, random_state=0, stratify=target)`; images keep the
    set's order.
    """
    chosen = choose_split("digits", split, SPLITS, SPLITS[0])
    with np.load(_asset("digits", ".npz", data_dir)) as stored:
        images, labels, in_test = stored["images"], stored["labels"], stored["test"]
    positions = np.flatnonzero(in_test == (chosen == "test"))
    grey = np.rint(images[positions] * (255 / 16)).astype(np.uint8)
    enlarged = [Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR) for image in grey]
    return ArrayImages(
        name=with_split("digits", chosen, SPLITS[0]),
        paths=[f"{chosen}/{position:04d}" for position in positions],
        labels=labels[positions].tolist(),
        class_names=DIGITS,
        kind="images that this package carries",
        pixels=np.stack([np.asarray(image.convert("RGB")) for image in enlarged]),
    )


def _asset(name: str, suffix: str, data_dir: str | None) -> BinaryIO:
    if data_dir is not None:
        raise PurityError(f"{name} comes with this package: leave out --data-dir.")
    return io.BytesIO((resources.files("purity_cli") / "assets" / f"{name}{suffix}").read_bytes())


KINDS: tuple[DatasetKind, ...] = (
    DatasetKind(
        name="cifar10",
        open=open_cifar10,
        about="10,000 test images of 32x32 and 50,000 train images",
        classes=10,
        splits=SPLITS,
        needs=f"--data-dir with {FOLDER}, or --download",
        class_names=lambda: ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    ),
    DatasetKind(
        name=SAMPLE,
        open=open_sample,
        about="1,000 test images of CIFAR-10, 100 of each class: what is scored where no data set is named",
        classes=10,
        splits=SPLITS[:1],
        needs="nothing: they ship with this package",
    ),
    DatasetKind(
        name="digits",
        open=open_digits,
        about="1,797 handwritten digits, enlarged from 8x8 to 32x32: 540 test, 1,257 train",
        classes=10,
        splits=SPLITS,
        needs="nothing: they ship with this package",
        class_names=lambda: DIGITS,
    ),
)
