"""The loop of a training: forward, backward, step, over batches augmented where they are trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from purity_cli.engine import HALF
from purity_cli.errors import PurityError
from purity_cli.machine import float32_of
from purity_cli.pixels import normalise
from purity_cli.plan import Preprocessing
from purity_cli.train.pictures import Draws, Pictures, augment, epoch_seed
from purity_cli.train.settings import Training

TEST_BATCH = 512


@dataclass
class Loop:
    """A network, its optimiser and the pictures; `network` is trained in place."""

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

    def epoch(self, number: int, pictures: Pictures, progress: Callable[[int], None]) -> tuple[float, float]:
        """Train for one epoch; mean loss and accuracy in per cent of the pictures as they were met.

        `pictures` lie on the device; `progress` is called with how many of them are done. All that chance decides,
        in the network as well, follows from the seed and `number`.
        """
        self.net.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate(number)
        torch.manual_seed(epoch_seed(self.training.seed, number))
        augmentation = self.training.augmentation()
        draws = Draws.of(len(pictures), augmentation).to(self.device)
        tally = torch.zeros(2, dtype=torch.float64, device=self.device)
        done = 0
        for chosen in draws.order.split(self.batch_size):
            try:
                tally += self._step(augment(pictures, chosen, draws, augmentation.pad), pictures.labels[chosen])
            except torch.OutOfMemoryError:
                raise PurityError(f"{self.device} has too little memory: give a smaller --batch-size.") from None
            done += len(chosen)
            progress(done)
        loss, hits = (tally / len(pictures)).tolist()
        if not math.isfinite(loss):
            raise PurityError(
                f"The loss became {loss} in epoch {number}: give a smaller --lr than {self.training.lr:g}"
                + (", or --precision fp32." if self.training.precision != "fp32" else ".")
            )
        return loss, 100 * hits

    def _step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Sums over the batch: the loss, and the pictures that were classified rightly."""
        self.optimizer.zero_grad()
        with self._autocast():
            logits = self.net(normalise(pixels, self.preprocessing))
            loss = cross_entropy(logits, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()])

    @torch.inference_mode()
    def accuracy(self, pictures: Pictures) -> float:
        """Per cent of `pictures` that the network, in eval mode, classifies rightly."""
        self.net.eval()
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(pictures), TEST_BATCH):
            batch = slice(start, start + TEST_BATCH)
            with self._autocast():
                logits = self.net(normalise(pictures.pixels[batch], self.preprocessing))
            hits += (logits.argmax(1) == pictures.labels[batch]).sum()
        return 100 * hits.item() / len(pictures)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.training.precision in HALF:
            return torch.autocast(self.device.type, HALF[self.training.precision])
        return nullcontext()


@contextmanager
def numerics(device: torch.device, precision: str) -> Iterator[None]:
    """Repeatable kernels in `precision`; the process's settings and random state are put back at the end."""
    cudnn = torch.backends.cudnn
    settings: list[tuple[Any, str, Any]] = [
        (cudnn, "deterministic", True),
        (cudnn, "benchmark", False),
    ]
    with ExitStack() as stack:
        stack.enter_context(float32_of(precision))
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []))
        for owner, name, value in settings:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield
