"""`FeaturePurity`, the formula as a metric of torchmetrics; nothing that scores imports this module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from purity_cli.errors import PurityError
from purity_cli.purity import firings, images_by_group
from purity_cli.stats import feature_purity


class FeaturePurity(Metric):
    """Feature purity of one layer of c channels, batch by batch; `compute` gives F at each threshold, float64 (T,).

    `update` takes M (n, c), the mean-to-peak ratios of `purity_cli.purity.activation`. F is NaN where nothing fired.
    `counts` int64 (G, T, c) and `images_by_group` int64 (G,) are the firings and the images of each jackknife group, as
    `purity_cli.stats.jackknife` takes them. Raises PurityError for thresholds that do not increase or lie outside
    [0, 1), and for M of another shape.

    >>> import torch
    >>> metric = FeaturePurity(4, thresholds=(0.5,))
    >>> metric.update(torch.tensor([[0.9, 0.6, 0.1, 0.0], [0.7, 0.2, 0.3, 0.0]]))
    >>> round(float(metric.compute()), 3)  # channel 0 fired twice, channel 1 once
    0.459
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts: Tensor
    images_by_group: Tensor
    thresholds: Tensor

    def __init__(self, channels: int, thresholds: Sequence[float] = (0.5,), groups: int = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if list(thresholds) != sorted(set(thresholds)) or not all(0 <= t < 1 for t in thresholds):
            raise PurityError(f"Thresholds must increase and lie in [0, 1), not {tuple(thresholds)}.")
        self.channels, self.groups = channels, groups
        counts = torch.zeros(groups, len(thresholds), channels, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")
        self.add_state("images_by_group", torch.zeros(groups, dtype=torch.int64), dist_reduce_fx="sum")
        # A state, so that a MetricCollection never takes metrics of other thresholds for one.
        self.add_state("thresholds", torch.tensor(thresholds, dtype=torch.float32), dist_reduce_fx="max")

    def update(self, activations: Tensor, positions: Tensor | None = None) -> None:
        """Count the firings of M (n, c); a NaN fires nowhere. `positions` (n,) default to the order of arrival."""
        if activations.ndim != 2 or activations.shape[1] != self.channels:
            raise PurityError(
                f"FeaturePurity of {self.channels} channels takes M of shape (n, {self.channels}), not "
                f"{tuple(activations.shape)}."
            )
        positions = self._next(activations) if positions is None else positions
        self.counts = self.counts + firings(activations, positions, self.thresholds, self.groups)
        self.images_by_group = self.images_by_group + images_by_group(positions, self.groups)

    def forward(self, activations: Tensor, positions: Tensor | None = None) -> Any:
        """`update`, and F of this batch alone."""
        # Before torchmetrics sets the states aside: each batch would otherwise begin with group 0 again.
        return super().forward(activations, self._next(activations) if positions is None else positions)

    @property
    def images(self) -> Tensor:
        """How many images were counted, int64 ()."""
        return self.images_by_group.sum()

    def _next(self, activations: Tensor) -> Tensor:
        return self.images + torch.arange(len(activations), device=self.device)

    def compute(self) -> Tensor:
        """F at each threshold, float64 (T,)."""
        return torch.from_numpy(feature_purity(self.counts.sum(0).cpu().numpy())).to(self.device)
