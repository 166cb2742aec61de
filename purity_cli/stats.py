"""Counts -> feature purity, purity at an equal rate, and their standard errors; numpy alone, so that it loads quickly.

Shapes: G jackknife groups, T thresholds, c channels. `images` is the number of images in each group, int (G,). Results
of version 0.1.0 have the number of all images alone: they are then taken to lie in the groups in which anything fired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
ENOUGH = 5
"""Firings per channel below which F is markedly biased low."""
RATE = 0.01
"""Share of all pairs of image and channel that fire where nothing else is asked for."""


class Jackknife(NamedTuple):
    """Each float64 (T,)."""

    purity: Floats
    """F of all images."""
    se: Floats
    """Its standard error; NaN where fewer than two groups fired, or where a group alone made all firings."""
    corrected: Floats
    """F with the jackknife's estimate of its bias removed; not held to [0, 1]."""


class RatePurity(NamedTuple):
    """Purity at the threshold at which a given share of all pairs of image and channel fires."""

    purity: float
    """F_r; NaN where no stored threshold gives that share."""
    se: float
    """Its standard error, with the threshold found anew without each group; NaN where one of these is NaN."""
    threshold: float
    """t_r, interpolated as F is; NaN for a mean of layers, each of which has its own."""
    reason: str = ""
    """Why F_r is NaN, as a clause."""


def feature_purity(counts: NDArray[Any]) -> Floats:
    """F = H / log2 c of counts (..., c) -> float64 (...); NaN where nothing fired or c = 1 (Eqs. 4, 5)."""
    counts = np.asarray(counts, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = counts / counts.sum(-1, keepdims=True)
        entropy = -np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), p).sum(-1)
        # log 1 = 0 makes a single channel 0 / 0, NaN, as it should be; + 0.0 turns -0.0 into 0.0.
        return np.asarray(entropy / np.log2(np.float64(counts.shape[-1])) + 0.0)


def jackknife(counts: Counts, images: ArrayLike) -> Jackknife:
    """Delete-a-group jackknife of F over the groups of counts (G, T, c).

    With g groups that hold images, F_j the purity without group j, and m the mean of the F_j:
    se^2 = (g - 1) / g * sum (F_j - m)^2, corrected = g F - (g - 1) m (Shao and Tu 1995, sections 1.1 and 2.1).
    """
    return jackknife_of_mean([counts], images)


def jackknife_of_mean(layers: Sequence[Counts], images: ArrayLike) -> Jackknife:
    """The same for the mean of several layers' F, all from the same images; NaN where any layer's F is."""
    return _delete_a_group(layers, images, lambda totals, _: np.mean([feature_purity(total) for total in totals], 0))


def purity_at_rate(counts: Counts, images: ArrayLike, thresholds: Sequence[float], rate: float = RATE) -> RatePurity:
    """F of counts (G, T, c) at the threshold at which the share `rate` of all n c pairs of image and channel fires.

    F and the threshold are interpolated linearly in log(share) between the stored `thresholds` (T,), which increase.
    """
    return purity_at_rate_of_mean([counts], images, thresholds, rate)


def purity_at_rate_of_mean(
    layers: Sequence[Counts], images: ArrayLike, thresholds: Sequence[float], rate: float = RATE
) -> RatePurity:
    """The same for the mean of several layers' F_r, all from the same images; NaN where any layer's F_r is."""
    grid = np.asarray(thresholds, dtype=np.float64)

    def mean(totals: Sequence[Counts], n: int) -> Floats:
        return np.array([np.mean([_at_rate(total, n, grid, rate)[0] for total in totals])])

    purity, se, _ = _delete_a_group(layers, images, mean)
    n, totals = int(np.sum(images)), [counts.sum(0) for counts in layers]
    threshold = _at_rate(totals[0], n, grid, rate)[1] if len(layers) == 1 else np.nan
    reasons = filter(None, (_why_no_rate(total, n, grid, rate) for total in totals))
    return RatePurity(float(purity[0]), float(se[0]), float(threshold), next(reasons, ""))


def images_in_groups(images: ArrayLike, layers: Sequence[Counts]) -> Counts:
    """The images of each group, int64 (G,), of counts (G, T, c) from the same images."""
    counted = np.asarray(images, dtype=np.int64)
    if counted.ndim:
        return counted
    fired = np.flatnonzero(np.any([counts.any((1, 2)) for counts in layers], 0))
    held = np.zeros(len(layers[0]), np.int64)
    held[fired] = int(counted) // max(1, len(fired)) + (np.arange(len(fired)) < int(counted) % max(1, len(fired)))
    return held


def measure(arrays: Mapping[str, Counts]) -> dict[str, Floats]:
    """Purity as `metrics.METRICS` takes it: of `counts` (G, T, c) and `images`, each column float64 (T,)."""
    purity, se, corrected = jackknife(arrays["counts"], arrays["images"])
    return {"purity": purity, "se": se, "purity_jk": corrected}


def _delete_a_group(
    layers: Sequence[Counts], images: ArrayLike, estimate: Callable[[Sequence[Counts], int], Floats]
) -> Jackknife:
    """The jackknife of what `estimate` makes of the layers' counts (T, c) from n images."""
    held = images_in_groups(images, layers)
    n, totals = int(np.sum(images)), [counts.sum(0) for counts in layers]
    whole, filled = estimate(totals, n), np.flatnonzero(held)
    g = len(filled)
    if g < 2:
        nan = np.full_like(whole, np.nan)
        return Jackknife(whole, nan, nan)
    pairs = list(zip(totals, layers, strict=True))
    without = np.stack([estimate([total - counts[j] for total, counts in pairs], n - int(held[j])) for j in filled])
    mean = without.mean(0)
    se = np.sqrt((g - 1) / g * ((without - mean) ** 2).sum(0))
    return Jackknife(whole, se, g * whole - (g - 1) * mean)


def _at_rate(counts: Counts, images: int, thresholds: Floats, rate: float) -> tuple[float, float]:
    """F of counts (T, c) and the threshold at the rate; NaN where the rate lies outside the stored shares."""
    share = counts.sum(1) / max(1, images * counts.shape[1])
    above, below = np.flatnonzero(share >= rate), np.flatnonzero((share <= rate) & (share > 0))
    if not above.size or not below.size:
        return np.nan, np.nan
    # Shares fall as thresholds increase: the rate lies between the last share above it and the first below.
    i, j = above[-1], below[0]
    weight = 0.0 if share[i] == share[j] else np.log(share[i] / rate) / np.log(share[i] / share[j])
    purity, threshold = feature_purity(counts[[i, j]]), thresholds[[i, j]]
    return tuple(float((1 - weight) * pair[0] + weight * pair[1]) for pair in (purity, threshold))  # type: ignore[return-value]


def _why_no_rate(counts: Counts, images: int, thresholds: Floats, rate: float) -> str:
    share = counts.sum(1) / max(1, images * counts.shape[1])
    fired = share[share > 0]
    if counts.shape[1] == 1:
        return "one channel has no evenness"
    if not fired.size:
        return "nothing fired"
    if fired.max() == fired.min() != rate and len(fired) == len(share) > 1:
        return f"{fired[0]:.2%} fire at every threshold, as in maps of 1 x 1"
    if rate > fired.max():
        return f"only {fired.max():.2%} fire at the lowest threshold {thresholds[0]:g}"
    if rate < fired.min():
        above = "none at the next stored one" if len(fired) < len(share) else "none higher is stored"
        return f"{fired.min():.2%} still fire at the threshold {thresholds[len(fired) - 1]:g}, and {above}"
    return ""
