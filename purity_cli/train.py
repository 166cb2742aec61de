"""Train a network by the recipe of the paper's Table 3 (SPEC, "CIFAR-10 training"), and keep its weights.

The loop is a plain one. All that chance decides in an epoch follows from the seed and the epoch's number, so an
interrupted training goes on to the same weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import safetensors.torch
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from purity_cli import locks, models, store
from purity_cli.datasets import ImageDataset, NoSplit, open_dataset
from purity_cli.engine import autocast
from purity_cli.errors import PurityError, log, no_memory, said
from purity_cli.machine import device_name, float32_of, resolve_device, versions
from purity_cli.pixels import Pixels, normalise
from purity_cli.plan import Frozen, Preprocessing, Size, complaint

CHECKPOINTS = (10, 20, 50, 100)
BATCH_SIZE = {"resnet18_cifar": 64}
"""The published batch size by the network's name; all others get 128."""
MARGIN = 4
"""Black pixels around an image before it is cropped."""
LR_DIVISOR = 3
TEST_BATCH = 512
RESUME = "resume.pt"

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
            "lr_divisor": float(LR_DIVISOR),
            "batch_size": self.batch_size,
            **training.model_dump(include={"lr", "lr_every", "precision", "seed"}),
        }

    def selection(self, source: ImageDataset) -> list[int]:
        """The images of a split that take part: all, or `limit` evenly spaced ones, so that no class is left out."""
        n = len(source)
        kept = min(self.training.limit or n, n)
        return [i * n // kept for i in range(kept)]


class Epoch(NamedTuple):
    """What one epoch came to; accuracies are per cent."""

    epoch: int
    loss: float
    """Mean cross-entropy of the augmented training images, measured during the epoch."""
    train_top1: float
    """Accuracy on the same images, also measured during the epoch."""
    test_top1: float | None
    """Accuracy on the test split after the epoch; None where the epoch leaves no checkpoint."""
    seconds: float


def resolve(training: Training, *, download: bool = False) -> ResolvedTraining:
    """Resolve every name; PurityError for what is missing, misspelt or does not fit together."""
    device = resolve_device(training.device, training.precision)
    network = models.load(training.model, "none", seed=training.seed)
    try:
        where = {"data_dir": training.data_dir, "download": download}
        # The default split is test or else val: accuracies are measured on it.
        train, test = (open_dataset(training.dataset, split=split, **where) for split in ("train", None))
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
    network = models.tried(network, size, scored=False, seed=training.seed)
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


def train(
    resolved: ResolvedTraining,
    output: Path,
    *,
    workers: int,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Path]:
    """Train to the last epoch; returns the weight files in the order of their epochs.

    The training goes on where one by the same recipe in `output` was interrupted, and further where that ended
    earlier. On one device the weights are the same bit by bit, however often it was interrupted; on a CPU the number
    of threads must be the same too. `command` is recorded beside each checkpoint.

    `workers` threads decode. `progress` is called with the images done in this call and their number in all; `report`
    is called after each epoch. Raises PurityError.
    """
    training, kept, network, device = resolved.training, resolved.training.kept(), resolved.network, resolved.device
    with locks.claim(output, "purity train"), repeatable(device, training.precision):
        folder = TrainingFolder(output, network.name, resolved.recipe())
        net: nn.Module = network.module.requires_grad_(True).to(device, memory_format=network.memory_format)  # type: ignore[call-overload]
        # Fused: one pass over the parameters per step.
        optimizer = torch.optim.Adam(net.parameters(), training.lr, fused=True)
        done = folder.resume({"network": net, "optimizer": optimizer}, kept, device)
        if done >= training.epochs:
            return [folder.weights(epoch) for epoch in kept]
        images, test = (decode(resolved, source, workers) for source in (resolved.train, resolved.test))
        total = (training.epochs - done) * len(images.labels)
        for number in range(done + 1, training.epochs + 1):
            start = time.perf_counter()
            before = (number - done - 1) * len(images.labels)
            loss, top1 = train_epoch(resolved, net, optimizer, number, images, lambda n: progress(before + n, total))
            accuracy = evaluate(resolved, net, test) if number in kept else None
            epoch = Epoch(number, loss, top1, accuracy, time.perf_counter() - start)
            if number in kept:
                about = {"command": command, "device": device_name(device), "versions": versions()}
                folder.write_checkpoint(number, net.state_dict(), {**epoch._asdict(), **about})
            # Written after the checkpoint, so that an epoch that counts as finished has left its own.
            folder.write_resume(number, {"network": net.state_dict(), "optimizer": optimizer.state_dict()})
            report(epoch)
    return [folder.weights(epoch) for epoch in kept]


def train_epoch(
    resolved: ResolvedTraining,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    number: int,
    images: TrainingImages,
    progress: Callable[[int], None],
) -> tuple[float, float]:
    """Train `net` for the epoch `number`; returns the mean loss and the accuracy in per cent during the epoch.

    `progress` is called with the number of images that are done.
    """
    training, n = resolved.training, len(images.labels)
    net.train()
    for group in optimizer.param_groups:
        group["lr"] = training.rate(number)
    torch.manual_seed(epoch_seed(training.seed, number))
    draws = draw(n, training.flips(), resolved.device)
    sums = torch.zeros(2, dtype=torch.float64, device=resolved.device)
    done = 0
    for chosen in batches(draws.order, resolved.batch_size):
        pixels, labels = augment(images.pixels, chosen, draws), images.labels[chosen]
        optimizer.zero_grad()
        with _naming(training, len(chosen)), autocast(resolved.device, training.precision):
            logits = net(normalise(pixels, resolved.preprocessing))
            loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        sums += torch.stack([loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()])
        done += len(chosen)
        progress(done)
    mean_loss, accuracy = (sums / n).tolist()
    if not math.isfinite(mean_loss):
        precision = "" if training.precision == "fp32" else ", or --precision fp32"
        raise PurityError(
            f"The loss became {mean_loss} in epoch {number}: give a smaller --lr than {training.lr:g}{precision}."
        )
    return mean_loss, 100 * accuracy


@contextmanager
def _naming(training: Training, size: int) -> Iterator[None]:
    """An exception from a user's network becomes a sentence that names the network and the batch."""
    try:
        yield
    except Exception as error:  # a user's network may raise anything
        if no_memory(error):
            raise
        if isinstance(error, ValueError) and size == 1:
            hint = "give --batch-size 2 or more, and two images or more."
        else:
            hint = "mend its forward, or choose another --batch-size."
        raise PurityError(
            f"{training.model} cannot be trained on a batch of {size} ({said(error)}): {hint}"
        ) from error


@torch.inference_mode()
def evaluate(resolved: ResolvedTraining, net: nn.Module, images: TrainingImages) -> float:
    """The accuracy of `net` in eval mode, in per cent."""
    net.eval()
    hits = torch.zeros((), dtype=torch.int64, device=resolved.device)
    for pixels, labels in zip(images.pixels.split(TEST_BATCH), images.labels.split(TEST_BATCH), strict=True):
        with autocast(resolved.device, resolved.training.precision):
            logits = net(normalise(pixels, resolved.preprocessing))
        hits += (logits.argmax(1) == labels).sum()
    return 100 * hits.item() / len(images.labels)


class TrainingImages(NamedTuple):
    """All images of a split: `pixels` uint8 (n, 3, h, w), channels last in memory, and `labels` int64 (n,)."""

    pixels: Tensor
    labels: Tensor


def decode(resolved: ResolvedTraining, source: ImageDataset, workers: int) -> TrainingImages:
    """The images of a split on the device; PurityError where one cannot be read or has another size."""
    selection = resolved.selection(source)
    pixels = Pixels(
        source, selection, resolved.preprocessing, batch_size=TEST_BATCH, workers=workers, on_bad_image="fail"
    )
    blocks = [(block.pixels, block.labels) for block in pixels.blocks()]
    height, width = blocks[0][0].shape[2:]
    if (height, width) != resolved.size:
        raise PurityError(
            f"The images of {source.name} are {height}x{width}, and the network takes {resolved.size[0]}x"
            f"{resolved.size[1]}: give --resize {min(resolved.size)}."
        )
    return TrainingImages(*(torch.cat(parts).to(resolved.device) for parts in zip(*blocks, strict=True)))


class Draws(NamedTuple):
    """What chance decides in one epoch, for each of n images."""

    order: Tensor
    """int64 (n,): the order in which the images are taken."""
    top: Tensor
    """int64 (n,): the row of the padded image where the crop begins, 0..2 MARGIN."""
    left: Tensor
    """int64 (n,): the column."""
    mirrored: Tensor
    """bool (n,)."""


def draw(n: int, flip: bool, device: torch.device) -> Draws:
    """Drawn on the CPU from the global random state, so that every device gets the same."""
    top, left = torch.randint(0, 2 * MARGIN + 1, (2, n))
    mirrored = torch.rand(n) < (0.5 if flip else 0)
    return Draws(*(values.to(device) for values in (torch.randperm(n), top, left, mirrored)))


def augment(images: Tensor, chosen: Tensor, draws: Draws) -> Tensor:
    """The images `chosen` of (n, 3, h, w), uint8, channels last in memory: padded, cropped to their size, mirrored."""
    height, width = images.shape[2:]
    padded = pad(images[chosen], (MARGIN,) * 4).permute(0, 2, 3, 1)
    number, down, right = (torch.arange(end, device=chosen.device) for end in (len(chosen), height, width))
    rows = draws.top[chosen, None] + down
    columns = draws.left[chosen, None] + torch.where(draws.mirrored[chosen, None], right.flip(0), right)
    return padded[number[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches(order: Tensor, size: int) -> list[Tensor]:
    """`order` in parts of `size`; a last part of one image joins the part before it.

    BatchNorm cannot average over a single image where its maps are 1x1.
    """
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of everything that chance decides in an epoch: a resumed training needs no stored random state."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@contextmanager
def repeatable(device: torch.device, precision: str) -> Iterator[None]:
    """Repeatable kernels in `precision`; the settings and random state of the process are put back at the end."""
    cudnn, devices = torch.backends.cudnn, range(torch.cuda.device_count()) if device.type == "cuda" else []
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with float32_of(precision), torch.random.fork_rng(devices):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


class TrainingFolder:
    """The folder of one training: `<model>_epoch010.safetensors` and `.json` for every checkpoint, and `resume.pt`.

    PurityError where it holds a training by another `recipe`.
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
        # Copies, because safetensors takes neither tied weights nor tensors that lie channels last.
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
        """Replace the file from which the training goes on; `state` holds the state dicts by name."""
        buffer = io.BytesIO()
        torch.save({"epoch": epoch, "recipe": json.dumps(self.recipe), "state": state}, buffer)
        store.write_bytes(self.path / RESUME, buffer.getvalue())

    def resume(self, parts: Mapping[str, Any], kept: Sequence[int], device: torch.device) -> int:
        """Load the end of the last finished epoch into `parts`; returns its number, 0 where there is none.

        PurityError where one of the `kept` epochs up to there left no checkpoint.
        """
        path = self.path / RESUME
        if not path.exists():
            return 0
        try:
            content = torch.load(path, map_location=device, weights_only=True)
            done, recipe, state = int(content["epoch"]), json.loads(content["recipe"]), content["state"]
            self._compare(recipe)
            for name, part in parts.items():
                part.load_state_dict(state[name])
        except Exception as error:  # a damaged pickle can raise anything
            if no_memory(error) or isinstance(error, (OSError, PurityError)):
                raise
            raise PurityError(f"{path} is damaged or of another network: remove it to train from the beginning.") from None
        missing = next((epoch for epoch in kept if epoch <= done and not self.weights(epoch).exists()), None)
        if missing is not None:
            raise PurityError(
                f"{self.path} is at epoch {done} and holds no checkpoint of epoch {missing}: leave that out of "
                f"--checkpoints, or remove {path} to train from the beginning."
            )
        return done

    def _compare(self, other: Mapping[str, Any]) -> None:
        key = next((key for key in {**self.recipe, **other} if self.recipe.get(key) != other.get(key)), None)
        if key is not None:
            raise PurityError(
                f"{self.path} holds a training by another recipe ({key} {other.get(key)}, not {self.recipe.get(key)}): "
                "give another --output, or remove that folder."
            )
