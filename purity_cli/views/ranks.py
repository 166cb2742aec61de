"""Results ranked by each quantity, and the rank correlation of every two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from purity_cli.correlations import DRAWS, EXACT, ROUNDING, all_orders
from purity_cli.report import KeyPair, Report, Row, Table, number, text

LEAST = 3
AGAINST = ("top1", "last")
"""Accuracy, and purity of the last stage: what other quantities stand beside."""
FEW = 10
"""Results up to which hardly any correlation can be told from chance."""
AT_ONCE = 2**22
"""Ranks of resamples in memory at a time."""


class RankCorrelation(NamedTuple):
    """Spearman's correlation of two quantities over the n results that have both, as `correlations.Correlation`."""

    n: int
    rho: float
    low: float
    high: float
    p: float

    def sentence(self, one: str, other: str) -> str:
        """With what n allows."""
        n = self.n
        least = 2 / math.factorial(n) if n <= EXACT else 1 / (DRAWS + 1)
        return (
            f"{one} and {other}: Spearman's rank correlation {self.rho:.2f}, 95 % of resamples {self.low:.2f} to "
            f"{self.high:.2f}, two-sided p {self.p:.2g}; n = {n} allows no p below {least:.2g}."
        )


def correlations(rows: Sequence[Row], names: Sequence[str]) -> dict[KeyPair, RankCorrelation]:
    """Every two of the columns, each pair once, in the order of `names`.

    The values are those of `correlations.correlate`, of all pairs at once: each column's ranks, of the sample and of
    the resamples, are made once. A pair that fewer than `LEAST` rows have, or one side of which is the same in all, has
    no entry.
    """
    values = np.array([[_float(row.get(name)) for row in rows] for name in names]).reshape(len(names), len(rows))
    known = np.isfinite(values)
    masks = {(a, b): (known[a] & known[b]).tobytes() for a in range(len(names)) for b in range(a + 1, len(names))}
    found: dict[tuple[int, int], RankCorrelation] = {}
    for mask in dict.fromkeys(masks.values()):
        both = np.frombuffer(mask, bool)
        varied = [i for i in range(len(names)) if known[i][both].all() and len(set(values[i][both])) > 1]
        if both.sum() >= LEAST and len(varied) > 1:
            of_all = _all_pairs(values[varied][:, both])
            found |= {
                (a, b): of_all[i, varied.index(b, i + 1)]
                for i, a in enumerate(varied)
                for b in varied[i + 1 :]
                if masks[a, b] == mask
            }
    return {(names[a], names[b]): found[a, b] for a, b in masks if (a, b) in found}


def _float(value: float | str | None) -> float:
    return math.nan if value is None or isinstance(value, str) else float(value)


def _all_pairs(values: NDArray[np.float64]) -> dict[tuple[int, int], RankCorrelation]:
    """Of values (k, n), none of them constant; the draws are `correlate`'s, in its order."""
    k, n = values.shape
    rng = np.random.default_rng(0)
    exact = n <= EXACT
    orders = all_orders(n) if exact else rng.permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    drawn = rng.integers(0, n, (DRAWS, n))
    ranked = _ranked(values)
    rho = ranked @ ranked.T
    step = max(1, AT_ONCE // (k * n))
    extreme = np.zeros((k, k))
    resampled = np.empty((DRAWS, k, k))
    for start in range(0, len(orders), step):
        of_orders = np.swapaxes(ranked[:, orders[start : start + step]], 0, 1)
        extreme += (np.abs(ranked @ np.swapaxes(of_orders, 1, 2)) >= np.abs(rho) - ROUNDING).sum(0)
    for start in range(0, DRAWS, step):
        part = np.swapaxes(_ranked(values[:, drawn[start : start + step]]), 0, 1)
        resampled[start : start + step] = part @ np.swapaxes(part, 1, 2)
    p = extreme / len(orders) if exact else (extreme + 1) / (DRAWS + 1)
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)  # NaN where a resample has one value alone
    return {
        (i, j): RankCorrelation(n, *(float(of[i, j]) for of in (rho, low, high, p)))
        for i in range(k)
        for j in range(i + 1, k)
    }


def _ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks along the last axis, less their mean and of unit length: products of them are Spearman's correlations."""
    from scipy.stats import rankdata

    found = rankdata(values, axis=-1)
    found -= found.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(found / np.sqrt((found**2).sum(-1, keepdims=True)))


def ranks(
    rows: Sequence[Row], names: Mapping[str, str], pairs: Mapping[KeyPair, RankCorrelation], where: str = ""
) -> Report:
    """Each row's rank by every quantity that differs, 1 for the highest, and each quantity's correlation with two.

    `names` are what the columns are called, and `pairs` their `correlations`.
    """
    from scipy.stats import rankdata

    lines: list[dict[str, Any]] = [{"model": row["model"]} for row in rows]
    shown: list[str] = []
    for name in names:
        values = np.array([_float(row.get(name)) for row in rows])
        known = np.flatnonzero(np.isfinite(values))
        if len(known) >= LEAST and len(set(values[known])) > 1:
            shown.append(name)
            for i, rank in zip(known, rankdata(-values[known]).tolist(), strict=True):
                lines[i][name] = int(rank) if rank == int(rank) else rank
    order = sorted(lines, key=lambda line: line.get(shown[0], math.inf)) if shown else lines
    summary = [{"quantity": names[name], **beside} for name in shown if (beside := _beside(pairs, name))]
    columns = [
        column
        for other in AGAINST
        if any(f"rho_{other}" in line for line in summary)
        for column in (
            number(f"n_{other}", "n", None), number(f"rho_{other}", f"with {names[other]}", 2, signed=True),
            number(f"low_{other}", "95 % from", 2, signed=True), number(f"high_{other}", "to", 2, signed=True),
            number(f"p_{other}", "p", 3),
        )
    ]  # fmt: skip
    found = [
        Table("rank_correlations", [text("quantity"), *columns], summary, f"Spearman's rank correlation{where}"),
        Table("ranks", [text("model"), *(number(name, names[name], None) for name in shown)], order,
              f"Ranks{where}, 1 for the highest"),
    ]  # fmt: skip
    chance = f"{len(pairs)} correlations can be read{where}: some p below 0.05 are to be expected by chance alone."
    return Report([table for table in found if len(table.columns) > 1], [chance] if len(pairs) > 1 else [])


def _beside(pairs: Mapping[KeyPair, RankCorrelation], name: str) -> dict[str, float]:
    """What a quantity has with those of `AGAINST`."""
    values: dict[str, float] = {}
    for other in AGAINST:
        if one := pairs.get((name, other)) or pairs.get((other, name)):
            values |= {f"{field}_{other}": value for field, value in one._asdict().items()}
    return values
