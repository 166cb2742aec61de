"""The settings of a training, by default the published recipe (SPEC, "CIFAR-10 training"), and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, ValidationError

from purity_cli import models
from purity_cli.datasets import ImageDataset, NoSplit, open_dataset
from purity_cli.errors import PurityError, log
from purity_cli.machine import resolve_device
from purity_cli.plan import Frozen, Preprocessing, Size, complaint

CHECKPOINTS = (10, 20, 50, 100)
BATCH_SIZE = {"resnet18_cifar": 64}
"""The published batch size by the network's name; all others get 128."""
MARGIN = 4
"""Black pixels around an image before it is cropped."""
LR_DIVISOR = 3.0

Positive = Annotated[int, Field(ge=1)]


class Training(Frozen):
    """The settings of one training; the defaults are the published recipe.

    `epochs`, `checkpoints` and `device` decide how far it goes, what it leaves and where it runs. Everything else
    decides the weights. The learning rate is `lr`, divided by 3 after every `lr_every` epochs. `resize` is the short
    side, before a central crop. `limit` keeps so many images of each split, evenly spaced.
    """

    model: str = "tiny_vgg_10"
    dataset: str = "digits"
    data_dir: str | None = None
    resize: Positive | None = None
    limit: Positive | None = None
    epochs: Positive = 100
    checkpoints: tuple[Positive, ...] | None = None
    batch_size: Positive | None = None
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    lr_every: Positive = 20
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    device: str = "auto"

    @classmethod
    def of(cls, **settings: object) -> Self:
        """A Training; PurityError names the setting that is wrong."""
        try:
            training = cls.model_validate(settings)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise PurityError(f"{where}: {complaint(error, cls.model_fields)}") from None
        late = [epoch for epoch in training.checkpoints or () if epoch > training.epochs]
        if late:
            raise PurityError(
                f"There is no epoch {late[0]} to keep a checkpoint of: {training.epochs} epochs were asked for; "
                f"give --epochs {max(late)} or earlier --checkpoints."
            )
        return training

    def kept(self) -> list[int]:
        """The epochs that leave a checkpoint: those asked for, else the published ones and the last."""
        published = [epoch for epoch in CHECKPOINTS if epoch < self.epochs]
        return sorted(set(self.checkpoints or [*published, self.epochs]))

    def flips(self) -> bool:
        """Whether images are mirrored at random: a mirrored digit is another sign."""
        return self.dataset != "digits"

    def rate(self, epoch: int) -> float:
        """The learning rate in `epoch`, from 1."""
        return self.lr / LR_DIVISOR ** ((epoch - 1) // self.lr_every)


@dataclass(frozen=True)
class ResolvedTraining:
    """A Training with every name resolved; `size` is the (h, w) of the images."""

    training: Training
    network: models.Network
    train: ImageDataset
    test: ImageDataset
    preprocessing: Preprocessing
    size: Size
    device: torch.device
    batch_size: int

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the weights, but the device: one recipe, one training."""
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
            "augmentation": {"pad": MARGIN, "flip": training.flips()},
            "optimizer": "Adam",
            "lr_divisor": LR_DIVISOR,
            "batch_size": self.batch_size,
            **training.model_dump(include={"lr", "lr_every", "precision", "seed"}),
        }

    def selection(self, source: ImageDataset) -> list[int]:
        """The images of a split that take part: all, or `limit` evenly spaced ones, so that no class is left out."""
        n = len(source)
        kept = min(self.training.limit or n, n)
        return [i * n // kept for i in range(kept)]


def resolve(training: Training, *, download: bool = False) -> ResolvedTraining:
    """Resolve every name; PurityError for what is missing, misspelt or does not fit together."""
    device = resolve_device(training.device, training.precision)
    network = models.load(training.model, "none", seed=training.seed)
    try:
        # The default split is test or else val: accuracies are measured on it.
        train, test = (
            open_dataset(training.dataset, data_dir=training.data_dir, split=split, download=download)
            for split in ("train", None)
        )
    except NoSplit:
        raise PurityError(
            f"{training.dataset} cannot be trained on: it needs a train split and a test or val split, as folders of "
            "class folders."
        ) from None
    preprocessing, size = network.preprocessing, network.input_size
    if training.resize:
        size = (training.resize, training.resize)
        preprocessing = preprocessing.model_copy(update={"resize": training.resize, "crop": size})
    elif network.preprocessing_note:
        log.warning(network.preprocessing_note)
    network = models.validate(network, size, scored=False, seed=training.seed)
    for note in network.notes:
        log.warning(note)
    _check_classes(network, train, test)
    batch_size = network.largest_batch or training.batch_size or BATCH_SIZE.get(network.name, 128)
    return ResolvedTraining(training, network, train, test, preprocessing, size, device, batch_size)


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
