"""Accumulators: for each tapped layer, sums over images that add over batches, ranks and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from purity_cli.purity import MapStatistics, activation, at_least, images_by_group, levels_passed


class LayerBatch(NamedTuple):
    """What one batch of n images gives at one tapped layer of c channels."""

    maps: MapStatistics
    beta: Tensor | None
    """A positive multiple of the Grad-CAM weight, float32 (n, c); None where no gradient was asked for."""
    positions: Tensor
    """int64 (n,): the images' places in the job's list."""
    labels: Tensor
    """int64 (n,), -1 where unknown."""

    @property
    def pooled(self) -> Tensor:
        """Z, the spatial means of the feature map, float32 (n, c)."""
        return self.maps.mean_positive - self.maps.mean_negative

    @property
    def finite(self) -> Tensor:
        """Which images have neither a NaN nor an infinity in the map or the gradient, bool (n,)."""
        values = torch.stack([*self.maps, *([] if self.beta is None else [self.beta])])
        return values.isfinite().all(2).all(0)


class Accumulator:
    """Sums of what `increments` makes of each batch; a subclass adds its states in `prepare`, with `add_sum`.

    `increments` is called before anything is added, and adding needs no memory. So where memory runs out, no layer has
    counted an image. Integer states are the same to the bit however images were split, float64 ones to rounding.
    """

    name: ClassVar[str]
    """In files: unlike any other accumulator's."""

    def __init__(
        self, channels: int, thresholds: Sequence[float] = (), groups: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.channels, self.thresholds, self.groups, self.device = channels, tuple(thresholds), groups, device
        self.states: dict[str, Tensor] = {}
        self.prepare()

    def prepare(self) -> None:
        """Add the states."""
        raise NotImplementedError

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        """Add a state of zeros."""
        self.states[name] = torch.zeros(shape, dtype=dtype, device=self.device)

    def increments(self, batch: LayerBatch) -> Mapping[str, Tensor | int]:
        """What one batch adds to each state."""
        raise NotImplementedError

    def add(self, increments: Mapping[str, Tensor | int]) -> None:
        """Add what `increments` gave."""
        for name, value in increments.items():
            self.states[name] += value

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The states by name, on the host."""
        return {name: state.cpu().numpy() for name, state in self.states.items()}

    @classmethod
    def bytes(cls, channels: int, thresholds: Sequence[float], groups: int) -> int:
        """Memory of the states of a layer."""
        return sum(state.nbytes for state in cls(channels, thresholds, groups, "meta").states.values())


class FiringCounts(Accumulator):
    """On how many images a channel fires: `counts` int64 (G, T, c) by group and threshold, `images` int64 (G,).

    `images` is the number of images of each group that were counted. While batches come, a histogram is kept instead of
    the counts, so that the time for a batch does not depend on the number of thresholds.
    """

    name = "purity"

    def prepare(self) -> None:
        self._levels = torch.tensor(self.thresholds, dtype=torch.float32, device=self.device)
        self.add_sum("histogram", self.groups, len(self.thresholds) + 1, self.channels, dtype=torch.int32)
        self.add_sum("images", self.groups, dtype=torch.int64)

    def increments(self, batch: LayerBatch) -> Mapping[str, Tensor | int]:
        assert batch.beta is not None
        cells = levels_passed(activation(batch.maps, batch.beta), batch.positions, self._levels, self.groups)
        images = images_by_group(batch.positions, self.groups)
        return {"cells": cells, "ones": torch.ones_like(cells, dtype=torch.int32), "images": images}

    def add(self, increments: Mapping[str, Any]) -> None:
        self.states["histogram"].view(-1).scatter_add_(0, increments["cells"], increments["ones"])
        self.states["images"] += increments["images"]

    def arrays(self) -> dict[str, NDArray[Any]]:
        counts = at_least(self.states["histogram"].cpu().long())
        return {"counts": counts.numpy(), "images": self.states["images"].cpu().numpy()}


class SecondMoments(Accumulator):
    """n, sum and Z^T Z in float64 of pooled features Z (n, c): all that a spectrum needs, however many images come."""

    name = "moments"

    def prepare(self) -> None:
        self.add_sum("images", dtype=torch.int64)
        self.add_sum("total", self.channels, dtype=torch.float64)
        self.add_sum("products", self.channels, self.channels, dtype=torch.float64)

    def increments(self, batch: LayerBatch) -> Mapping[str, Tensor | int]:
        z = batch.pooled.double()
        return {"images": len(z), "total": z.sum(0), "products": z.T @ z}
