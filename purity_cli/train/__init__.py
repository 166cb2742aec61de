"""Train a network by the recipe of the paper's Table 3, and keep its weights at chosen epochs.

The loop is a plain one. Everything that chance decides in an epoch follows from the seed and the epoch's number, so
an interrupted training goes on to the same weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from purity_cli import locks, store
from purity_cli.datasets import ImageDataset
from purity_cli.engine import autocast
from purity_cli.errors import PurityError, no_memory, said
from purity_cli.machine import device_name, float32_of, versions
from purity_cli.pixels import Pixels, normalise
from purity_cli.train.settings import MARGIN, ResolvedTraining, Training, resolve

__all__ = ["Epoch", "ResolvedTraining", "Training", "TrainingFolder", "resolve", "train"]

TEST_BATCH = 512
RESUME = "resume.pt"


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
            count = partial(lambda before, n: progress(before + n, total), (number - done - 1) * len(images.labels))
            loss, top1 = train_epoch(resolved, net, optimizer, number, images, count)
            accuracy = evaluate(resolved, net, test) if number in kept else None
            epoch = Epoch(number, loss, top1, accuracy, time.perf_counter() - start)
            if number in kept:
                about = {"command": command, "device": device_name(device), "versions": versions()}
                folder.write_checkpoint(number, net.state_dict(), {**epoch._asdict(), **about})
            # Written after the checkpoint, so that an epoch that counts as finished has left its own.
            folder.write_resume(number, {"network": net.state_dict(), "optimizer": optimizer.state_dict()})
            report(epoch)
    return [folder.weights(epoch) for epoch in kept]


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
            raise PurityError(f"{path} is damaged, or of another network: remove it to train anew.") from None
        missing = next((epoch for epoch in kept if epoch <= done and not self.weights(epoch).exists()), None)
        if missing is not None:
            raise PurityError(
                f"{self.path} is at epoch {done} and holds no checkpoint of epoch {missing}: leave that out of "
                f"--checkpoints, or remove {path} to train anew."
            )
        return done

    def _compare(self, other: Mapping[str, Any]) -> None:
        key = next((key for key in {**self.recipe, **other} if self.recipe.get(key) != other.get(key)), None)
        if key is not None:
            raise PurityError(
                f"{self.path} holds a training by another recipe ({key} {other.get(key)}, not {self.recipe.get(key)}): "
                "give another --output, or remove that folder."
            )


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
        with _naming(training.model, len(chosen)), autocast(resolved.device, training.precision):
            logits = net(normalise(pixels, resolved.preprocessing))
            loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        sums += torch.stack([loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()])
        done += len(chosen)
        progress(done)
    mean_loss, accuracy = (sums / n).tolist()
    if not math.isfinite(mean_loss):
        raise PurityError(f"The loss became {mean_loss} in epoch {number}: give a smaller --lr than {training.lr:g}.")
    return mean_loss, 100 * accuracy


@contextmanager
def _naming(model: str, size: int) -> Iterator[None]:
    """An exception in a user's network becomes a sentence that names the network and the batch."""
    try:
        yield
    except Exception as error:  # a user's network may raise anything
        if no_memory(error):
            raise
        raise PurityError(
            f"{model} cannot be trained on a batch of {size} ({said(error)}): mend its forward, or give another "
            "--batch-size."
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
    what = (source, resolved.selection(source), resolved.preprocessing)
    blocks = list(Pixels(*what, batch_size=TEST_BATCH, workers=workers).blocks())
    for block in blocks:
        for path, reason in block.skipped:
            raise PurityError(f"{path} in {source.name} cannot be read ({reason}): mend or remove it.")
        height, width = block.pixels.shape[2:]
        if (height, width) != resolved.size:
            wanted = "{}x{}".format(*resolved.size)
            raise PurityError(
                f"Images of {source.name} are {height}x{width}, and the network takes {wanted}: give --resize "
                f"{min(resolved.size)}."
            )
    pixels, labels = (torch.cat([getattr(block, name) for block in blocks]) for name in ("pixels", "labels"))
    return TrainingImages(pixels.to(resolved.device), labels.to(resolved.device))


class Draws(NamedTuple):
    """What chance decides in one epoch, for each of n images."""

    order: Tensor
    """int64 (n,): the images in the order in which they are taken."""
    top: Tensor
    """int64 (n,): the row of the padded image where the crop begins, 0..2 MARGIN; `left` is the column."""
    left: Tensor
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
