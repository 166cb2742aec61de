"""The loop of a training: forward, backward, step, over batches augmented where they are trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from purity_cli.engine import HALF
from purity_cli.errors import PurityError, no_memory, said
from purity_cli.machine import float32_of
from purity_cli.pixels import normalise
from purity_cli.plan import Preprocessing
from purity_cli.train.images import Draws, Images, augment, epoch_seed
from purity_cli.train.settings import Training

TEST_BATCH = 512


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

    def epoch(self, number: int, images: Images, progress: Callable[[int], None]) -> tuple[float, float]:
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
        with self._autocast():
            logits = self.net(normalise(pixels, self.preprocessing))
            loss = cross_entropy(logits, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()])

    @torch.inference_mode()
    def accuracy(self, images: Images) -> float:
        """Per cent of `images` that the network, in eval mode, classifies rightly."""
        self.net.eval()
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(images), TEST_BATCH):
            batch = slice(start, start + TEST_BATCH)
            with self._autocast():
                logits = self.net(normalise(images.pixels[batch], self.preprocessing))
            hits += (logits.argmax(1) == images.labels[batch]).sum()
        return 100 * hits.item() / len(images)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.training.precision in HALF:
            return torch.autocast(self.device.type, HALF[self.training.precision])
        return nullcontext()


def batches(order: Tensor, size: int) -> list[Tensor]:
    """`order` in parts of `size`; a last part of one image joins the one before it.

    BatchNorm takes no average over a single image where its maps are 1x1.
    """
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


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
