"""`cifar10-sample`: 1,000 test images of CIFAR-10 that ship with this package, so that a first score needs no data."""

from __future__ import annotations

import tarfile
from importlib import resources

import numpy as np

from purity_cli.datasets.base import ArraySource, Family, ImageSource, choose_split, decode
from purity_cli.errors import PurityError

NAME = "cifar10-sample"
SPLITS = ("test",)


def open_sample(data_dir: str | None, split: str | None, _: bool) -> ImageSource:
    """The first 100 test images of each class, by name, as JPEGs of 32x32 (Krizhevsky 2009, saved as JPEG).

    `assets/README.md` says how they were packed. They are decoded here, which takes a tenth of a second: nothing is
    written, so that this works where no folder is writable.
    """
    if data_dir is not None:
        raise PurityError(f"{NAME} comes with this package: leave out --data-dir.")
    choose_split(NAME, split, SPLITS, SPLITS[0])
    with (
        resources.as_file(resources.files("purity_cli") / "assets" / f"{NAME}.tar.gz") as path,
        tarfile.open(path) as tar,
    ):
        files = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    paths = sorted(files)
    class_names = sorted({path.partition("/")[0] for path in paths})
    return ArraySource(
        name=NAME,
        paths=paths,
        labels=[class_names.index(path.partition("/")[0]) for path in paths],
        label_note=None,
        class_names=class_names,
        pixels=np.stack([np.asarray(decode(files[path])) for path in paths]),
    )


FAMILY = Family(
    name=NAME,
    open=open_sample,
    about="1,000 test images of CIFAR-10, 100 of each class: what is scored where no data set is named",
    classes=10,
    splits=SPLITS,
    needs="nothing: they ship with this package",
)
