"""Four correlations of small samples, with p-values from orders and intervals from resamples.

The values are those of scipy, which computes one pair of samples at a time. The functions here compute thousands at
once, for orders and resamples: x and y are (..., n), in any shapes that broadcast, and the result is (...).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

EXACT = 7
"""Largest n of which all n! orders are looked at."""
DRAWS = 4_999
"""Random orders of larger samples, and resamples."""
AT_ONCE = 2**21
"""Pairs of values that are in memory at a time."""
ROUNDING = 1e-12
"""Two correlations that differ by less are the same."""


def pearson(x: Floats, y: Floats) -> Floats:
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    x, y = (v / np.sqrt((v**2).sum(-1, keepdims=True)) for v in (x, y))
    return np.asarray((x * y).sum(-1))


def spearman(x: Floats, y: Floats) -> Floats:
    return pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def kendall(x: Floats, y: Floats) -> Floats:
    """tau-b: concordant less discordant pairs, over sqrt(pairs untied in x, pairs untied in y)."""
    x, y = _signs(x), _signs(y)
    return np.asarray((x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1)))


def weighted_tau(x: Floats, y: Floats) -> Floats:
    """tau-b with the weight 1/(1+r) + 1/(1+s) for a pair of ranks r, s from the top, as scipy's default (Vigna 2015).

    The mean of two: ranked by x with ties broken by y, and the other way round.
    """
    x, y = np.broadcast_arrays(x, y)
    sx, sy = _signs(x), _signs(y)
    both = []
    for first, second in ((x, y), (y, x)):
        share = 1 / (1 + _ranks_from_top(first, second))
        i, j = np.triu_indices(x.shape[-1], 1)
        w = share[..., i] + share[..., j]
        both.append((w * sx * sy).sum(-1) / np.sqrt((w * sx**2).sum(-1) * (w * sy**2).sum(-1)))
    return np.asarray((both[0] + both[1]) / 2)


def _signs(x: Floats) -> Floats:
    i, j = np.triu_indices(x.shape[-1], 1)
    return np.sign(x[..., i] - x[..., j])


def _ranks_from_top(first: Floats, second: Floats) -> Floats:
    """0 for the largest by `first`, then by `second`."""
    ascending = np.lexsort((second, first), axis=-1)
    return np.asarray(first.shape[-1] - 1 - ascending.argsort(-1), dtype=np.float64)


STATISTICS = {"pearson": pearson, "spearman": spearman, "kendall": kendall, "weighted": weighted_tau}


class Correlation(NamedTuple):
    """One statistic of two samples."""

    value: float
    p: float
    """Two-sided: the share of orders of y whose correlation is at least as far from 0."""
    exact: bool
    """Whether p is of all orders; else of `DRAWS` random ones and this one."""
    low: float
    high: float
    """The middle 95 % of the values in `DRAWS` resamples of the pairs, less those in which x or y is constant."""


def correlate(x: Floats, y: Floats, *, seed: int = 0) -> dict[str, Correlation]:
    """Every statistic of `STATISTICS` of x and y (n,), n at least 3, neither constant."""
    rng = np.random.default_rng(seed)
    n, exact = len(x), len(x) <= EXACT
    orders = all_orders(n) if exact else rng.permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    drawn = rng.integers(0, n, (DRAWS, n))
    resampled = x[drawn], y[drawn]
    varied = (np.ptp(resampled[0], axis=1) > 0) & (np.ptp(resampled[1], axis=1) > 0)
    pairs = resampled[0][varied], resampled[1][varied]
    found = {}
    for name, statistic in STATISTICS.items():
        value = float(statistic(x, y))
        extreme = int((np.abs(_in_parts(statistic, x[None], y[orders])) >= abs(value) - ROUNDING).sum())
        p = extreme / len(orders) if exact else (extreme + 1) / (DRAWS + 1)
        low, high = np.quantile(_in_parts(statistic, *pairs), [0.025, 0.975])
        found[name] = Correlation(value, p, exact, float(low), float(high))
    return found


def least_p(y: Floats) -> tuple[float, float]:
    """The smallest two-sided and one-sided p that Kendall's tau-b of y (n,) can have with an x without ties.

    By enumeration of all orders, n up to `EXACT`, so that ties in y count.
    """
    values = kendall(np.arange(len(y), dtype=np.float64), y[all_orders(len(y))])
    largest = np.abs(values).max() - ROUNDING
    return float((np.abs(values) >= largest).mean()), float((values >= largest).mean())


def all_orders(n: int) -> NDArray[np.int64]:
    """(n!, n)."""
    return np.array(list(permutations(range(n))), dtype=np.int64)


def _in_parts(rows: Callable[[Floats, Floats], Floats], x: Floats, y: Floats) -> Floats:
    """`rows` of x (1, n) or (m, n) and y (m, n), in bounded memory."""
    step = max(1, AT_ONCE // x.shape[-1] ** 2)
    parts = [slice(start, start + step) for start in range(0, len(y), step)]
    return np.concatenate([rows(x if len(x) == 1 else x[part], y[part]) for part in parts])
