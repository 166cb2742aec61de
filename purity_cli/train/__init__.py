"""Table 3's training: a named network on a named data set, to checkpoints, the same weights each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from purity_cli import locks, models
from purity_cli.datasets import ImageSource, NoSplit, open_dataset
from purity_cli.errors import PurityError
from purity_cli.machine import device_name, resolve_device, versions
from purity_cli.models.base import output_shape
from purity_cli.plan import Preprocessing, Size
from purity_cli.train.folder import Folder
from purity_cli.train.images import Images, decode
from purity_cli.train.loop import Loop, numerics
from purity_cli.train.settings import BATCH_SIZE, Training

__all__ = ["Course", "Epoch", "Training", "resolve", "train"]


@dataclass(frozen=True)
class Course:
    """A Training with every name resolved."""

    training: Training
    network: models.Network
    train: ImageSource
    test: ImageSource
    preprocessing: Preprocessing
    size: Size
    """(h, w) of the images."""
    device: torch.device
    batch_size: int

    def recipe(self) -> dict[str, Any]:
        """All that decides the path of the weights but the device: one recipe, one training."""
        training = self.training
        return {
            "model": f"{self.network.source}:{self.network.name}",
            "initial_weights": "random" if self.network.weights == "none" else self.network.weights,
            "dataset": self.test.name,
            "train_images": len(self.selection(self.train)),
            "test_images": len(self.selection(self.test)),
            "train_fingerprint": self.train.fingerprint,
            "test_fingerprint": self.test.fingerprint,
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "augmentation": training.augmentation().model_dump(mode="json"),
            "optimizer": "Adam",
            "lr": training.lr,
            "lr_divisor": training.lr_divisor,
            "lr_every": training.lr_every,
            "batch_size": self.batch_size,
            "precision": training.precision,
            "seed": training.seed,
        }

    def selection(self, source: ImageSource) -> list[int]:
        """Which images of a split take part: all, or `limit` evenly spaced ones, so that no class is left out."""
        n = len(source)
        kept = min(self.training.limit or n, n)
        return [i * n // kept for i in range(kept)]

    def images(self, source: ImageSource, workers: int) -> Images:
        """The images of a split, decoded by `workers` threads, on the device."""
        return decode(source, self.selection(source), self.preprocessing, self.size, workers).to(self.device)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; accuracies are per cent."""

    epoch: int
    loss: float
    """Mean cross-entropy of the augmented training images while the epoch went on."""
    train_top1: float
    """Of the same images, also while it went on."""
    test_top1: float | None
    """Of the test split after the epoch; None where it leaves no checkpoint."""
    seconds: float


def resolve(training: Training, *, download: bool = False, warn: Callable[[str], None] = lambda _: None) -> Course:
    """Resolve every name; PurityError for whatever is missing, misspelt or does not fit together."""
    device = resolve_device(training.device, training.precision)
    network = models.load(training.model, "none", seed=training.seed)
    train, test = _open(training, download)
    preprocessing, size = network.preprocessing, network.input_size
    if training.resize:
        size = (training.resize, training.resize)
        preprocessing = preprocessing.model_copy(update={"resize": training.resize, "crop": size})
        if size != network.input_size and output_shape(network.module, size) is None:
            raise PurityError(f"{network.name} takes no images of {size[0]}x{size[1]}: give another --resize.")
    elif network.preprocessing_note:
        warn(network.preprocessing_note)
    network = models.tried(network, size, scored=False, seed=training.seed)
    for note in network.notes:
        warn(note)
    _check_classes(network, train, test)
    return Course(
        training=training,
        network=network,
        train=train,
        test=test,
        preprocessing=preprocessing,
        size=size,
        device=device,
        batch_size=network.largest_batch or training.batch_size or BATCH_SIZE.get(network.name, 128),
    )


def _open(training: Training, download: bool) -> list[ImageSource]:
    """The train split, and the default one, of which accuracies are: test, or else val."""
    name, data_dir = training.dataset, training.data_dir
    try:
        return [open_dataset(name, data_dir=data_dir, split=split, download=download) for split in ("train", None)]
    except NoSplit:
        raise PurityError(
            f"{name} cannot be trained on: it needs a train split and a test or val split, as folders of class folders."
        ) from None


def _check_classes(network: models.Network, train: ImageSource, test: ImageSource) -> None:
    for source in (train, test):
        if source.labels is None:
            raise PurityError(f"{source.name} cannot be trained on: {source.label_note or 'it carries no labels'}.")
    if train.class_names != test.class_names:
        raise PurityError(f"{train.name} and {test.name} differ in their classes: give both the same class folders.")
    classes = len(train.class_names or set(train.labels or ()))
    if network.num_classes != classes:
        raise PurityError(
            f"{train.name} has {classes} classes and {network.name} {network.num_classes}: give --model "
            f"FILE.py:FUNCTION with a function that builds the network for {classes} classes."
        )


def train(
    course: Course,
    output: Path,
    *,
    workers: int,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Path]:
    """Train to the last epoch and return the weight files, in the order of their epochs.

    Goes on where a training by the same recipe in `output` was interrupted, and further where it ended earlier. On one
    device the weights come out the same, bit by bit, however often it was interrupted; on a CPU the number of threads
    must be the same as well. `command`, if given, is recorded beside each checkpoint.

    `workers` threads decode. `progress` is called with the images done in this call and their number in all;
    `report` after each epoch. Raises PurityError.
    """
    training, kept, network = course.training, course.training.kept(), course.network
    with locks.claim(output, "purity train"), numerics(course.device, training.precision):
        folder = Folder(output, network.name, course.recipe())
        loop = Loop(
            network.module, training, course.batch_size, course.preprocessing, course.device, network.memory_format
        )
        done = folder.resume(loop, kept, course.device)
        if done >= training.epochs:
            return [folder.weights(epoch) for epoch in kept]
        images, test = (course.images(source, workers) for source in (course.train, course.test))
        total = (training.epochs - done) * len(images)
        for number in range(done + 1, training.epochs + 1):
            clock = time.perf_counter()
            count = partial(lambda before, n: progress(before + n, total), (number - done - 1) * len(images))
            loss, top1 = loop.epoch(number, images, count)
            accuracy = loop.accuracy(test) if number in kept else None
            epoch = Epoch(number, loss, top1, accuracy, time.perf_counter() - clock)
            if number in kept:
                about = {"command": command, "device": device_name(course.device), "versions": versions()}
                folder.write_checkpoint(number, loop.net.state_dict(), {**asdict(epoch), **about})
            # After the checkpoint, so that an epoch that counts as finished has left its own.
            folder.write_resume(number, loop.state())
            report(epoch)
    return [folder.weights(epoch) for epoch in kept]
