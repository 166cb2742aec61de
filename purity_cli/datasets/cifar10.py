"""`cifar10`: the python version of CIFAR-10, by torchvision."""

from __future__ import annotations

from http.client import HTTPException

from purity_cli.connections import impatient, why_not
from purity_cli.datasets.base import ArraySource, Family, ImageSource, choose_split, with_split
from purity_cli.errors import PurityError
from purity_cli.files import expanded

SPLITS = ("test", "train")
FOLDER = "cifar-10-batches-py"


def open_cifar10(data_dir: str | None, split: str | None, download: bool) -> ImageSource:
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
    return ArraySource(
        name=with_split("cifar10", chosen, SPLITS[0]),
        paths=[f"{chosen}/{i:05d}" for i in range(len(data))],
        labels=[int(label) for label in data.targets],
        label_note=None,
        class_names=list(data.classes),
        kind="the python version",
        pixels=data.data,
    )


FAMILY = Family(
    name="cifar10",
    open=open_cifar10,
    about="10,000 test images of 32x32 and 50,000 train images",
    classes=10,
    splits=SPLITS,
    needs=f"--data-dir with {FOLDER}, or --download",
    class_names=lambda: ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
)
