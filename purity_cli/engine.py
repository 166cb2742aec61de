"""The one loop: blocks of pixels -> every tap's accumulators, in one forward and one backward pass per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Protocol, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from purity_cli.errors import PurityError
from purity_cli.layouts import Layout
from purity_cli.machine import float32_of
from purity_cli.metrics import METRICS
from purity_cli.metrics.accumulators import Accumulator, FiringCounts, LayerBatch
from purity_cli.purity import MapStatistics, map_statistics
from purity_cli.taps import Taps

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
NEVER = torch.iinfo(torch.int64).max
ROOM = 2**30
"""Bytes that a job's accumulators may take beside those of purity; while a batch is added they take twice that."""


class Batch(Protocol):
    """What the engine needs of a block: `pixels` uint8 (n, 3, h, w), `positions` int64 (n,) in the job's list, and
    `labels` int64 (n,), -1 where unknown."""

    @property
    def pixels(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...


class NonFinite(PurityError):
    """A NaN or an infinity in the logits, a feature map or a gradient; `position` is the image's in the job's list."""

    def __init__(self, where: str, position: int, image: str | None = None) -> None:
        self.where, self.position = where, position
        super().__init__(
            f"{where} holds a NaN or an infinity for image {image or position}: check the weights and the "
            "preprocessing, or use --precision fp32."
        )


class Engine:
    """Every tap's accumulators, accuracy and nothing else, for one network; a context manager, since it holds hooks.

    All states add. They stay on the device: no batch waits for the host, but for the CPU itself. When the device runs
    out of memory the batch is halved and goes on; a batch counts only when all of it is done, so no image counts twice.

    `normalise` turns uint8 pixels into the network's input on the pixels' own device. `metrics` are the measures of
    `METRICS` to be taken of every tap; where none of them needs gradients there is no backward pass, and the network
    need not predict classes. Accumulators for which there is no `ROOM` stand in `left_out`, by tap and name.
    `memory_format` is that of weights, images and maps, and `statistics` what reduces a map as `map_statistics` does:
    neither changes more than rounding.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Mapping[str, Layout] | Sequence[str],
        *,
        normalise: Callable[[Tensor], Tensor],
        thresholds: Sequence[float],
        groups: int,
        device: torch.device,
        precision: str = "fp32",
        batch_size: int,
        metrics: Sequence[str] = ("purity",),
        memory_format: torch.memory_format = torch.channels_last,
        statistics: Callable[[Tensor], MapStatistics] = map_statistics,
    ) -> None:
        self.net = net.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        self.normalise, self.memory_format = normalise, memory_format
        self.thresholds, self.groups = tuple(thresholds), groups
        self.device, self.precision = device, precision
        self.batch_size = batch_size
        self.begun = 0
        """Images that count, or that are just being counted: what is read of the states while this stays is whole."""
        self.shapes: dict[str, tuple[int, int, int]] = {}
        self.left_out: list[tuple[str, str]] = []
        self._kinds = list(dict.fromkeys(METRICS[name].accumulator() for name in metrics))
        self._accumulators: dict[tuple[str, str], Accumulator] = {}
        # Images scored, images with a label, hits among the first 1 and 5 classes.
        self.tally = torch.zeros(4, dtype=torch.int64, device=device)
        self._first_bad = torch.full((len(layers) + 1,), NEVER, dtype=torch.int64, device=device)
        self._gradients = any(METRICS[name].gradient for name in metrics)
        self._taps = Taps(self.net, layers, statistics, gradients=self._gradients)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._taps)
            stack.enter_context(float32_of(self.precision))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, blocks: Iterable[Batch]) -> None:
        """Score every block; raises NonFinite at the end at the latest."""
        for block in blocks:
            self.add(block)
        self.check()

    def add(self, block: Batch) -> None:
        """Score one block, in pieces of `batch_size` where it is larger."""
        start, n = 0, len(block.positions)
        while start < n:
            piece = slice(start, start + self.batch_size)
            try:
                self._score(block.pixels[piece], block.positions[piece], block.labels[piece])
                start += self.batch_size
                continue
            except torch.OutOfMemoryError:
                pass  # and leave the handler, whose traceback keeps the batch's tensors alive
            self._halve_batch(n - start)
        if self.device.type == "cpu":
            self.check()

    def _halve_batch(self, left: int) -> None:
        if self.batch_size == 1:
            raise PurityError(
                f"{self.device} has too little memory for one image: tap fewer or deeper layers, crop smaller, or use "
                "--device cpu."
            )
        self.batch_size = max(1, min(self.batch_size, left) // 2)
        torch.cuda.empty_cache()

    def check(self) -> None:
        """Raise NonFinite for the first bad image seen so far. On CUDA this waits for the device."""
        names = ["the logits" if self._gradients else "the output", *(f"layer {name}" for name in self._taps.modules)]
        for where, position in zip(names, self._first_bad.tolist(), strict=True):
            if position != NEVER:
                raise NonFinite(where, position)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All states on the host, as `tap/accumulator/state`. On CUDA this waits for the device."""
        return {
            f"{module}/{kind}/{name}": array
            for (module, kind), accumulator in self._accumulators.items()
            for name, array in accumulator.arrays().items()
        }

    def counts(self, module: str) -> Tensor:
        """Firings of one tapped layer on the host, int64 (G, T, c)."""
        return torch.from_numpy(self._accumulators[module, FiringCounts.name].arrays()["counts"])

    def _score(self, pixels: Tensor, positions: Tensor, labels: Tensor) -> None:
        pixels, positions, labels = (x.to(self.device, non_blocking=True) for x in (pixels, positions, labels))
        with autocast(self.device, self.precision):
            images = self.normalise(pixels).contiguous(memory_format=self.memory_format)
            if not self.shapes:
                self._prepare(images[:1])
            reading = self._taps(images)
        batches = {
            name: LayerBatch(maps, reading.gradients.get(name), positions, labels)
            for name, maps in reading.maps.items()
        }
        finite = torch.stack([_finite_output(reading.logits, images), *(batches[n].finite for n in self.shapes)])
        increments = [(one, one.increments(batches[module])) for (module, _), one in self._accumulators.items()]
        bad, labelled = torch.where(finite, NEVER, positions).amin(1), (labels >= 0).sum()
        hits = self._hits(reading.logits, labels) if self._gradients else torch.zeros_like(self.tally[2:])
        # From here on nothing needs memory: either all of the batch counts or none of it.
        self.begun += len(positions)
        torch.minimum(self._first_bad, bad, out=self._first_bad)
        for accumulator, increment in increments:
            accumulator.add(increment)
        self.tally[0] += len(positions)
        self.tally[1] += labelled
        self.tally[2:] += hits

    @staticmethod
    def _hits(logits: Tensor, labels: Tensor) -> Tensor:
        ranked = logits.float().topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
        return torch.stack([ranked[:, 0].sum(), ranked.any(1).sum()])

    def _prepare(self, images: Tensor) -> None:
        shapes, taken, self.left_out = self._taps.shapes(images), 0, []
        for module, (channels, _, _) in shapes.items():
            for kind in self._kinds:
                size = 0 if kind is FiringCounts else kind.bytes(channels, self.thresholds, self.groups)
                if taken + size > ROOM:
                    self.left_out.append((module, kind.name))
                    continue
                taken += size
                self._accumulators[module, kind.name] = kind(channels, self.thresholds, self.groups, self.device)
        self.shapes = shapes


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What a network is run within to compute in `precision`, where that is half of float32's."""
    return torch.autocast(device.type, HALF[precision]) if precision in HALF else nullcontext()


def _finite_output(output: Any, images: Tensor) -> Tensor:
    """Which images have a finite output, bool (n,); all where it is no tensor with a row per image."""
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(images):
        return torch.ones(len(images), dtype=torch.bool, device=images.device)
    return output.isfinite().flatten(1).all(1)
