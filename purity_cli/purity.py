"""Feature purity as pure functions of feature maps and gradients.

Chen, Cong, Huang 2021 (doi 10.3788/LOP202158.2211004). Shapes: n images, c channels, an h x w feature map,
T thresholds, G jackknife groups. Everything here runs on the device of its input, in float32, without a device sync
except where said.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MapStatistics(NamedTuple):
    """Mean and maximum over space of B+ = max(B, 0) and B- = max(-B, 0), each float32 (n, c)."""

    mean_positive: Tensor
    max_positive: Tensor
    mean_negative: Tensor
    max_negative: Tensor


IN_CACHE = 2**18
"""Values of a map that are reduced at a time: they are read several times, and on a CPU only once from memory."""


def map_statistics(feature_map: Tensor) -> MapStatistics:
    """All that purity needs of a feature map B (n, c, h, w), so that the map itself need not be kept.

    A NaN or an infinity anywhere in a channel's map shows in that channel's statistics.
    """
    if feature_map.device.type != "cpu":
        return _statistics(feature_map)
    few = max(1, IN_CACHE // max(1, feature_map.shape[1:].numel()))
    parts = [_statistics(images) for images in feature_map.split(few)]
    return MapStatistics(*map(torch.cat, zip(*parts, strict=True)))


def _statistics(feature_map: Tensor) -> MapStatistics:
    space = (2, 3)
    highest, lowest = feature_map.amax(space).float(), feature_map.amin(space).float()
    max_positive, max_negative = highest.clamp_min(0), (-lowest).clamp_min(0)
    # A rectified map has no negative part, and looking costs less than reducing it; on CUDA looking costs a sync.
    if feature_map.device.type == "cpu" and bool((lowest >= 0).all()):
        mean_positive = feature_map.mean(space, dtype=torch.float32)
        return MapStatistics(mean_positive, max_positive, torch.zeros_like(mean_positive), max_negative)
    mean_positive = feature_map.clamp_min(0).mean(space, dtype=torch.float32)
    mean_negative = feature_map.clamp_max(0).mean(space, dtype=torch.float32).neg()
    return MapStatistics(mean_positive, max_positive, mean_negative, max_negative)


def activation(statistics: MapStatistics, beta: Tensor) -> Tensor:
    """M (n, c) in [0, 1]: the mean-to-peak ratio of max(beta_k B_k, 0) (Eqs. 1-3 with the spatial-max normalisation).

    `beta` (n, c) is the Grad-CAM weight, the spatial mean of dy_m / dB; |beta| cancels, so any positive multiple of
    it serves. beta = 0 or a map without a part of beta's sign gives 0.
    """
    positive = statistics.mean_positive / statistics.max_positive
    negative = statistics.mean_negative / statistics.max_negative
    zero = torch.zeros((), device=beta.device)
    ratio = torch.where(beta > 0, positive, torch.where(beta < 0, negative, zero))
    peak = torch.where(beta > 0, statistics.max_positive, statistics.max_negative)
    return torch.where(peak > 0, ratio, zero)


def firings(activations: Tensor, positions: Tensor, thresholds: Tensor, groups: int) -> Tensor:
    """How often each channel fires, M > t strictly: int64 (G, T, c).

    `activations` is M (n, c); `positions` int64 (n,) are the images' places in the job's list, and place i belongs to
    group i mod G; `thresholds` (T,) increase. Adding the results of any split of the images gives that of the whole.
    A NaN fires at none.
    """
    shape = groups, len(thresholds) + 1, activations.shape[1]
    histogram = torch.zeros(shape, dtype=torch.int64, device=activations.device)
    cells = levels_passed(activations, positions, thresholds, groups)
    histogram.view(-1).scatter_add_(0, cells, torch.ones_like(cells))
    return at_least(histogram)


def levels_passed(activations: Tensor, positions: Tensor, thresholds: Tensor, groups: int) -> Tensor:
    """For each M (n, c) its place in a flat histogram (G, T + 1, c), int64 (n c,); arguments as those of `firings`.

    In the histogram's second axis stands the number of thresholds strictly below M: it fires at exactly those.
    """
    levels, c = len(thresholds) + 1, activations.shape[1]
    # A NaN would be sorted above all thresholds.
    passed = torch.bucketize(activations.nan_to_num(), thresholds, right=False)
    channel = torch.arange(c, device=activations.device)
    return (((positions % groups).unsqueeze(1) * levels + passed) * c + channel).flatten()


def at_least(histogram: Tensor) -> Tensor:
    """The firings (G, T, c) that a histogram (G, T + 1, c) of passed thresholds stands for."""
    return histogram.flip(1).cumsum(1).flip(1)[:, 1:]


def images_by_group(positions: Tensor, groups: int) -> Tensor:
    """How many of the images at `positions` int64 (n,) belong to each group, int64 (G,)."""
    counted = torch.zeros(groups, dtype=torch.int64, device=positions.device)
    return counted.scatter_add_(0, positions % groups, torch.ones_like(positions))
