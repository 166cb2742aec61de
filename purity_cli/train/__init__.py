"""Table 3's training: a named network on a named data set, to checkpoints, the same weights each time."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from purity_cli import locks, models, store
from purity_cli.datasets import ImageDataset, NoSplit, open_dataset
from purity_cli.errors import PurityError, log, no_memory
from purity_cli.machine import device_name, resolve_device, versions
from purity_cli.models.base import output_shape
from purity_cli.plan import Preprocessing, Size
from purity_cli.train.loop import Loop, TrainingImages, decode, numerics
from purity_cli.train.settings import BATCH_SIZE, Training

__all__ = ["Epoch", "Folder", "ResolvedTraining", "Training", "resolve", "train"]

RESUME = "resume.pt"


@dataclass(frozen=True)
class ResolvedTraining:
    """A Training with every name resolved."""

    training: Training
    network: models.Network
    train: ImageDataset
    test: ImageDataset
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

    def selection(self, source: ImageDataset) -> list[int]:
        """Which images of a split take part: all, or `limit` evenly spaced ones, so that no class is left out."""
        n = len(source)
        kept = min(self.training.limit or n, n)
        return [i * n // kept for i in range(kept)]

    def images(self, source: ImageDataset, workers: int) -> TrainingImages:
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


def resolve(training: Training, *, download: bool = False) -> ResolvedTraining:
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
        log.warning(network.preprocessing_note)
    network = models.tried(network, size, scored=False, seed=training.seed)
    for note in network.notes:
        log.warning(note)
    _check_classes(network, train, test)
    return ResolvedTraining(
        training=training,
        network=network,
        train=train,
        test=test,
        preprocessing=preprocessing,
        size=size,
        device=device,
        batch_size=network.largest_batch or training.batch_size or BATCH_SIZE.get(network.name, 128),
    )


def _open(training: Training, download: bool) -> list[ImageDataset]:
    """The train split, and the default one, of which accuracies are: test, or else val."""
    name, data_dir = training.dataset, training.data_dir
    try:
        return [open_dataset(name, data_dir=data_dir, split=split, download=download) for split in ("train", None)]
    except NoSplit:
        raise PurityError(
            f"{name} cannot be trained on: it needs a train split and a test or val split, as folders of class folders."
        ) from None


def _check_classes(network: models.Network, train: ImageDataset, test: ImageDataset) -> None:
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


class TrainingFolder:
    """The folder of one training: `<model>_epoch010.safetensors` and `.json` for every checkpoint, and `resume.pt`,
    from which it goes on after it was interrupted; each written atomically.

    `recipe` is what decides the path of the weights. PurityError where the folder holds a training by another one.
    """

    def __init__(self, path: Path, model: str, recipe: Mapping[str, Any]) -> None:
        self.path, self.model = path, model
        self.recipe = json.loads(json.dumps(recipe))
        for file in sorted(path.glob("*_epoch*.json")):
            try:
                other = json.loads(file.read_text("utf-8"))["recipe"]
            except (ValueError, KeyError, TypeError, OSError):
                raise PurityError(f"{file} is not of a training: give another --output, or remove it.") from None
            self._compare(other)

    def weights(self, epoch: int) -> Path:
        """Where the checkpoint of this epoch is or will be."""
        return self.path / f"{self.model}_epoch{epoch:03}.safetensors"

    def write_checkpoint(self, epoch: int, weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write the weights, and beside them a JSON of `record`, their SHA-256 and the recipe."""
        # Copies: safetensors takes no tensors that share memory, as tied weights do, or that lie channels last.
        plain = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in weights.items()
        }
        content = safetensors.torch.save(plain, {"format": "pt"})
        path = self.weights(epoch)
        store.write_bytes(path, content)
        sha256 = hashlib.sha256(content).hexdigest()
        about = {"model": self.model, "epoch": epoch, **record, "weights_sha256": sha256, "recipe": self.recipe}
        store.write_text(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")

    def write_resume(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Replace what the training goes on from; `state` holds tensors and plain containers."""
        buffer = io.BytesIO()
        torch.save({"epoch": epoch, "recipe": json.dumps(self.recipe), "state": state}, buffer)
        store.write_bytes(self.path / RESUME, buffer.getvalue())

    def resume(self, loop: Loop, kept: Sequence[int], device: torch.device) -> int:
        """Bring `loop` to the end of the last epoch that was finished here, whose number is returned; 0 for none.

        PurityError where one of the `kept` epochs up to there left no checkpoint.
        """
        path = self.path / RESUME
        if not path.exists():
            return 0
        try:
            content = torch.load(path, map_location=device, weights_only=True)
            done, recipe, state = int(content["epoch"]), json.loads(content["recipe"]), content["state"]
        except Exception as error:  # a damaged pickle can raise anything
            if no_memory(error) or isinstance(error, OSError):
                raise
            raise PurityError(f"{path} is damaged: remove it to train from the beginning.") from None
        self._compare(recipe)
        for epoch in kept:
            if epoch <= done and not self.weights(epoch).exists():
                raise PurityError(
                    f"{self.path} is at epoch {done} and holds no checkpoint of epoch {epoch}: leave that out of "
                    f"--checkpoints, or remove {path} to train from the beginning."
                )
        try:
            loop.load(state)
        except (RuntimeError, KeyError, ValueError):
            raise PurityError(f"{path} is of another network: give another --output, or remove it.") from None
        return done

    def _compare(self, other: Mapping[str, Any]) -> None:
        key = next((key for key in {**self.recipe, **other} if self.recipe.get(key) != other.get(key)), None)
        if key is not None:
            raise PurityError(
                f"{self.path} holds a training by another recipe ({key} {other.get(key)}, not {self.recipe.get(key)}): "
                "give another --output, or remove that folder."
            )


def train(
    course: ResolvedTraining,
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
        folder = TrainingFolder(output, network.name, course.recipe())
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
