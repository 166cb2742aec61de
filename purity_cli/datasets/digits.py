"""`digits`: small handwritten digits that ship with this package; `purity train` without options learns them."""

from __future__ import annotations

from importlib import resources

import numpy as np
from PIL import Image

from purity_cli.datasets.base import ArraySource, Family, ImageSource, choose_split, with_split
from purity_cli.errors import PurityError

SPLITS = ("test", "train")
SIZE = 32
LEVELS = 16
"""Pixels count the dark ones of 4x4, so they go from 0 to 16."""


def open_digits(data_dir: str | None, split: str | None, _: bool) -> ImageSource:
    """The 1,797 digits as RGB of 32x32: 540 in the test split, 1,257 in the train split.

    The 8x8 grey values 0..16 become round(v / 16 * 255), which PIL enlarges (bilinear). They are scikit-learn's
    `load_digits` (UCI's optical recognition of handwritten digits, test part), and the split is its
    `train_test_split(range(1797), test_size=0.3, random_state=0, stratify=target)`; images keep the set's order.
    """
    if data_dir is not None:
        raise PurityError("digits comes with this package: leave out --data-dir.")
    chosen = choose_split("digits", split, SPLITS, SPLITS[0])
    with resources.as_file(resources.files("purity_cli") / "assets" / "digits.npz") as path, np.load(path) as stored:
        images, labels, in_test = stored["images"], stored["labels"], stored["test"]
    positions = np.flatnonzero(in_test == (chosen == "test"))
    grey = np.rint(images[positions] * (255 / LEVELS)).astype(np.uint8)
    enlarged = [Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in grey]
    return ArraySource(
        name=with_split("digits", chosen, SPLITS[0]),
        paths=[f"{chosen}/{position:04d}" for position in positions],
        labels=labels[positions].tolist(),
        label_note=None,
        class_names=[str(digit) for digit in range(10)],
        kind="images that this package carries",
        pixels=np.stack([np.asarray(image.convert("RGB")) for image in enlarged]),
    )


FAMILY = Family(
    name="digits",
    open=open_digits,
    about="1,797 handwritten digits, enlarged from 8x8 to 32x32: 540 test, 1,257 train",
    classes=10,
    splits=SPLITS,
    needs="nothing: they ship with this package",
    class_names=lambda: [str(k) for k in range(10)],
)
