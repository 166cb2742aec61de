"""Counts -> feature purity, its standard error and its bias correction; numpy alone, so that loading it is quick.

Shapes: G jackknife groups, T thresholds, c channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ENOUGH = 5
"""Firings per channel below which F is markedly biased low."""


class Jackknife(NamedTuple):
    """Each float64 (T,)."""

    purity: Floats
    """F of all images."""
    se: Floats
    """Its standard error; NaN where fewer than two groups fired, or where a group alone made all firings."""
    corrected: Floats
    """F with the jackknife's estimate of its bias removed; not held to [0, 1]."""


def feature_purity(counts: NDArray[Any]) -> Floats:
    """F = H / log2 c of counts (..., c) -> float64 (...); NaN where nothing fired or c = 1 (Eqs. 4, 5)."""
    counts = np.asarray(counts, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = counts / counts.sum(-1, keepdims=True)
        entropy = -np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), p).sum(-1)
        # log 1 = 0 makes a single channel 0 / 0, NaN, as it should be; + 0.0 turns -0.0 into 0.0.
        return np.asarray(entropy / np.log2(np.float64(counts.shape[-1])) + 0.0)


def jackknife(counts: NDArray[np.int64], images: int) -> Jackknife:
    """Delete-a-group jackknife over the groups of counts (G, T, c) from `images` images (image i is in group i mod G).

    With g groups that hold images, F_j the purity without group j, and m the mean of the F_j:
    se^2 = (g - 1) / g * sum (F_j - m)^2, corrected = g F - (g - 1) m (Shao and Tu 1995, sections 1.1 and 2.1).
    """
    return jackknife_of_mean([counts], images)


def jackknife_of_mean(layers: Sequence[NDArray[np.int64]], images: int) -> Jackknife:
    """The same for the mean of several layers' F, all from the same images."""
    totals = [counts.sum(0) for counts in layers]
    purity = np.mean([feature_purity(total) for total in totals], 0)
    groups = min(len(layers[0]), images)
    if groups < 2:
        nan = np.full_like(purity, np.nan)
        return Jackknife(purity, nan, nan)
    pairs = list(zip(totals, layers, strict=True))
    without = np.stack(
        [np.mean([feature_purity(total - counts[j]) for total, counts in pairs], 0) for j in range(groups)]
    )
    mean = without.mean(0)
    se = np.sqrt((groups - 1) / groups * ((without - mean) ** 2).sum(0))
    return Jackknife(purity, se, groups * purity - (groups - 1) * mean)


def measure(arrays: Mapping[str, NDArray[np.int64]]) -> dict[str, Floats]:
    """Purity as `metrics.METRICS` takes it: of `counts` (G, T, c) and `images`, each column float64 (T,)."""
    purity, se, corrected = jackknife(arrays["counts"], int(arrays["images"]))
    return {"purity": purity, "se": se, "purity_jk": corrected}
