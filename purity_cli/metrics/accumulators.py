"""What measures are made of: states that add over batches, ranks and runs, in accumulators of each tapped layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

if TYPE_CHECKING:
    from purity_cli.purity import MapStatistics


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


class Accumulator(Metric):
    """A `torchmetrics.Metric` whose states are sums of what `increments` makes of each batch.

    Increments are made before any of them is added, and adding them needs no memory: where memory runs out, no layer
    has counted an image. Integer states are the same to the bit however images were split, float64 ones to rounding.
    """

    name: ClassVar[str]
    """In files: unlike any other accumulator's."""
    is_differentiable = False
    full_state_update = False

    def __init__(self, channels: int, thresholds: Sequence[float] = (), groups: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        """A state of zeros that adds."""
        self.add_state(name, default=torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def increments(self, seen: LayerBatch) -> Mapping[str, Tensor | int]:
        """What one batch adds to each state."""
        raise NotImplementedError

    def add(self, increments: Mapping[str, Tensor | int]) -> None:
        """Add what `increments` gave."""
        for name, value in increments.items():
            state = getattr(self, name)
            state += value
            setattr(self, name, state)

    def update(self, seen: LayerBatch) -> None:
        """Both."""
        self.add(self.increments(seen))

    def compute(self) -> Any:
        """The states by name."""
        return {name: getattr(self, name) for name in self._defaults}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The states by name, on the host."""
        return {name: getattr(self, name).cpu().numpy() for name in self._defaults}

    @classmethod
    def bytes(cls, channels: int, thresholds: Sequence[float], groups: int) -> int:
        """Memory of the states of a layer."""
        with torch.device("meta"):
            states = cls(channels, thresholds, groups).metric_state.values()
        return sum(state.nbytes for state in states if isinstance(state, Tensor))


class SecondMoments(Accumulator):
    """n, sum and Z^T Z in float64 of pooled features Z (n, c): all that a spectrum needs, however many images come."""

    name = "moments"
    images: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, channels: int, thresholds: Sequence[float] = (), groups: int = 1, **kwargs: Any) -> None:
        super().__init__(channels, thresholds, groups, **kwargs)
        self.add_sum("images", dtype=torch.int64)
        self.add_sum("total", channels, dtype=torch.float64)
        self.add_sum("products", channels, channels, dtype=torch.float64)

    def increments(self, seen: LayerBatch) -> Mapping[str, Tensor | int]:
        z = seen.pooled.double()
        return {"images": len(z), "total": z.sum(0), "products": z.T @ z}


def moments(features: Tensor) -> dict[str, NDArray[np.float64]]:
    """The arrays of `SecondMoments` for features (n, c) that are at hand."""
    z = features.double().cpu().numpy()
    return {"images": np.array(len(z)), "total": z.sum(0), "products": z.T @ z}
