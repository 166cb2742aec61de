"""The loop of a training: images decoded once, augmented in batches where they are trained on, and the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from purity_cli.datasets import ImageDataset, UnreadableImage
from purity_cli.engine import autocast
from purity_cli.errors import PurityError, no_memory, said
from purity_cli.machine import float32_of
from purity_cli.pixels import normalise, prepare
from purity_cli.plan import Preprocessing, Size
from purity_cli.train.settings import Augmentation, Training

TEST_BATCH = 512


@dataclass(frozen=True)
class TrainingImages:
    """All images of a split: `pixels` uint8 (n, 3, h, w), channels last in memory, and `labels` int64 (n,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> TrainingImages:
        return TrainingImages(self.pixels.to(device), self.labels.to(device))


def decode(
    source: ImageDataset, selection: Sequence[int], preprocessing: Preprocessing, size: Size, workers: int
) -> TrainingImages:
    """The images of a selection, resized and cropped; PurityError where one is unreadable or not of `size` (h, w)."""
    pixels = np.empty((len(selection), *size, 3), np.uint8)

    def load(row: int) -> None:
        path = source.paths[selection[row]]
        try:
            image = prepare(source, selection[row], preprocessing)
        except UnreadableImage as error:
            raise PurityError(f"{path} in {source.name} cannot be read ({error}): mend or remove it.") from None
        if (image.height, image.width) != size:
            raise PurityError(
                f"{path} is {image.height}x{image.width}, and the network takes {size[0]}x{size[1]}: give "
                f"--resize {min(size)}."
            )
        pixels[row] = np.asarray(image)

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        list(pool.map(load, range(len(selection))))
    labels = [(source.labels or ())[i] for i in selection]
    return TrainingImages(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(labels))


@dataclass(frozen=True)
class Draws:
    """What chance decides in one epoch, for each of n images."""

    order: Tensor
    """int64 (n,): when its turn comes."""
    top: Tensor
    """int64 (n,): where its crop begins in the padded image, 0..2 pad."""
    left: Tensor
    """int64 (n,): the same from the left."""
    mirrored: Tensor
    """bool (n,)."""

    @classmethod
    def of(cls, n: int, augmentation: Augmentation) -> Draws:
        """Drawn on the CPU from the global random state, so that every device sees the same."""
        top, left = torch.randint(0, 2 * augmentation.pad + 1, (2, n))
        mirrored = torch.rand(n) < (0.5 if augmentation.flip else 0)
        return cls(torch.randperm(n), top, left, mirrored)

    def to(self, device: torch.device) -> Draws:
        return Draws(*(draw.to(device) for draw in vars(self).values()))


def augment(images: TrainingImages, chosen: Tensor, draws: Draws, margin: int) -> Tensor:
    """The images `chosen`, uint8 (n, 3, h, w), channels last in memory: padded with `margin` black pixels, cropped to
    their old size and mirrored as `draws` says.
    """
    height, width = images.pixels.shape[2:]
    padded = pad(images.pixels[chosen], (margin,) * 4).permute(0, 2, 3, 1)
    number, down, right = (torch.arange(end, device=chosen.device) for end in (len(chosen), height, width))
    rows = draws.top[chosen, None] + down
    columns = draws.left[chosen, None] + torch.where(draws.mirrored[chosen, None], right.flip(0), right)
    return padded[number[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass
class Loop:
    """A network, its optimiser and the images; `network` is trained in place."""

    network: nn.Module
    training: Training
    batch_size: int
    preprocessing: Preprocessing
    device: torch.device
    memory_format: torch.memory_format = torch.channels_last

    def __post_init__(self) -> None:
        self.net = self.network.requires_grad_(True).to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        # Fused: one pass over the parameters per step, where the default makes several.
        self.optimizer = torch.optim.Adam(self.net.parameters(), self.training.lr, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.training.precision == "fp16")

    def state(self) -> dict[str, Any]:
        """Everything that a later epoch depends on, apart from the recipe."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {"network": self.net, "optimizer": self.optimizer, "scaler": self.scaler}

    def epoch(self, number: int, images: TrainingImages, progress: Callable[[int], None]) -> tuple[float, float]:
        """Train for one epoch; mean loss and accuracy in per cent of the images as they were met.

        `images` lie on the device; `progress` is called with how many of them are done. All that chance decides,
        in the network as well, follows from the seed and `number`.
        """
        self.net.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate(number)
        torch.manual_seed(epoch_seed(self.training.seed, number))
        augmentation = self.training.augmentation()
        draws = Draws.of(len(images), augmentation).to(self.device)
        tally = torch.zeros(2, dtype=torch.float64, device=self.device)
        done = 0
        for chosen in batches(draws.order, self.batch_size):
            try:
                tally += self._step(augment(images, chosen, draws, augmentation.pad), images.labels[chosen])
            except torch.OutOfMemoryError:
                raise PurityError(f"{self.device} has too little memory: give a smaller --batch-size.") from None
            except Exception as error:  # a user's network raises what it likes
                if no_memory(error):
                    raise
                if isinstance(error, ValueError) and len(chosen) == 1:
                    hint = "give --batch-size 2 or more, and two images or more."
                else:
                    hint = "mend its forward, or choose another --batch-size."
                says = f"{self.training.model} cannot be trained on a batch of {len(chosen)} ({said(error)})"
                raise PurityError(f"{says}: {hint}") from error
            done += len(chosen)
            progress(done)
        loss, hits = (tally / len(images)).tolist()
        if not math.isfinite(loss):
            raise PurityError(
                f"The loss became {loss} in epoch {number}: give a smaller --lr than {self.training.lr:g}"
                + (", or --precision fp32." if self.training.precision != "fp32" else ".")
            )
        return loss, 100 * hits

    def _step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Sums over the batch: the loss, and the images that were classified rightly."""
        self.optimizer.zero_grad()
        with autocast(self.device, self.training.precision):
            logits = self.net(normalise(pixels, self.preprocessing))
            loss = cross_entropy(logits, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()])

    @torch.inference_mode()
    def accuracy(self, images: TrainingImages) -> float:
        """Per cent of `images` that the network, in eval mode, classifies rightly."""
        self.net.eval()
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(images), TEST_BATCH):
            batch = slice(start, start + TEST_BATCH)
            with autocast(self.device, self.training.precision):
                logits = self.net(normalise(images.pixels[batch], self.preprocessing))
            hits += (logits.argmax(1) == images.labels[batch]).sum()
        return 100 * hits.item() / len(images)


def batches(order: Tensor, size: int) -> list[Tensor]:
    """`order` in parts of `size`; a last part of one image joins the one before it.

    BatchNorm takes no average over a single image where its maps are 1x1.
    """
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of all that chance decides in an epoch, so that a resumed training needs no stored random state."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@contextmanager
def numerics(device: torch.device, precision: str) -> Iterator[None]:
    """Repeatable kernels in `precision`; the process's settings and random state are put back at the end."""
    cudnn, devices = torch.backends.cudnn, range(torch.cuda.device_count()) if device.type == "cuda" else []
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with float32_of(precision), torch.random.fork_rng(devices):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
