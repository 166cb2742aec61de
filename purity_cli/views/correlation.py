"""Does purity go with accuracy? Stored results -> one point each -> correlations, and what so few can show.

scipy computes one pair of samples at a time; `rows_of` does thousands at once, for permutations and the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from purity_cli.errors import PurityError
from purity_cli.report import Column, Report, Row, Table, number, text
from purity_cli.results import Result
from purity_cli.stats import RATE
from purity_cli.views import cells
from purity_cli.views.against import LEAST, TargetColumn
from purity_cli.views.layers import comparable

Floats = NDArray[np.float64]
EXACT = 7
"""Largest n whose n! orders are all looked at."""
DRAWS = 4_999
"""Random orders of larger samples, and resamples."""
AT_ONCE = 2**21
"""Pairs of values that are in memory at a time."""
ROUNDING = 1e-12
"""Two correlations that differ by less are the same."""
KINDS = ("purity", "peer", "baseline", "random")
"""Of quantities: purity itself, other label-free measures, what needs no training, purity without training."""
RANKED = "spearman"
"""The statistic by which measures are ranked."""


def _signs(values: Floats) -> Floats:
    """-1, 0 or 1 for every ordered pair of (..., n): (..., n * n), whose mean is 0."""
    signs = np.sign(values[..., :, None] - values[..., None, :])
    return np.asarray(signs.reshape(*values.shape[:-1], -1))


STATISTICS: dict[str, Callable[[Floats], Floats]] = {
    "pearson": lambda values: values,
    "spearman": lambda values: np.asarray(rankdata(values, axis=-1)),
    "kendall": _signs,
}
"""Each is Pearson's r of something made of both samples: of themselves, of their ranks, of their order (tau-b)."""


def rows_of(statistic: str, x: Floats, y: Floats) -> Floats:
    """A statistic of samples x and y (..., n) -> (...), in any shapes that broadcast; NaN where one is constant."""
    both = []
    for values in (x, y):
        changed = STATISTICS[statistic](np.asarray(values, dtype=np.float64))
        changed = changed - changed.mean(-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            both.append(changed / np.sqrt((changed**2).sum(-1, keepdims=True)))
    return np.asarray((both[0] * both[1]).sum(-1).clip(-1, 1))


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
    for name in STATISTICS:
        value = float(rows_of(name, x, y))
        extreme = int((np.abs(_in_parts(name, x[None], y[orders])) >= abs(value) - ROUNDING).sum())
        p = extreme / len(orders) if exact else (extreme + 1) / (DRAWS + 1)
        low, high = np.quantile(_in_parts(name, *pairs), [0.025, 0.975])
        found[name] = Correlation(value, p, exact, float(low), float(high))
    return found


def least_p(y: Floats) -> tuple[float, float]:
    """The smallest two-sided and one-sided p that Kendall's tau-b of y (n,) can have with an x without ties.

    By enumeration of all orders, n up to `EXACT`, so that ties in y count.
    """
    values = rows_of("kendall", np.arange(len(y), dtype=np.float64), y[all_orders(len(y))])
    largest = np.abs(values).max() - ROUNDING
    return float((np.abs(values) >= largest).mean()), float((values >= largest).mean())


def all_orders(n: int) -> NDArray[np.int64]:
    """(n!, n)."""
    return np.array(list(permutations(range(n))), dtype=np.int64)


def _in_parts(statistic: str, x: Floats, y: Floats) -> Floats:
    """`rows_of` of x (1, n) or (m, n) and y (m, n), in bounded memory."""
    step = max(1, AT_ONCE // x.shape[-1] ** 2)
    parts = [slice(start, start + step) for start in range(0, len(y), step)]
    return np.concatenate([rows_of(statistic, x if len(x) == 1 else x[part], y[part]) for part in parts])


class Points(NamedTuple):
    """A row per result; `kinds` has the kind of each quantity that is set against `target`."""

    rows: list[dict[str, Any]]
    kinds: dict[str, str]
    target: str
    notes: tuple[str, ...]


class Study(NamedTuple):
    """A row per quantity and statistic; `notes` are sentences that must stand beside them."""

    rows: list[Row]
    notes: tuple[str, ...]


def correlation(data: Points, *, seed: int = 0) -> Report:
    """Points and their `study` as a report."""
    found = study(data, seed=seed)
    names = ("quantity", "kind", "against", "n", "statistic", "value", "p", "p_of", "low", "high")
    tidy = Table("correlations", [Column(name) for name in names], found.rows, aim="data")
    wide: dict[str, dict[str, Any]] = {}
    for row in found.rows:
        line = wide.setdefault(row["quantity"], {name: row[name] for name in ("quantity", "kind", "n")})
        line[row["statistic"]] = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] p {row['p']:.3g}"
    columns = [
        text("quantity", fold=True), text("kind", drop=1), number("n", digits=None),
        *(text(name, fold=True) for name in STATISTICS),
    ]  # fmt: skip
    shown = Table("quantities", columns, list(wide.values()), aim="people")
    # Numbers as text, because they are of any size.
    numbers = [Column(name, number=True) for name in (data.target, *data.kinds)]
    page = Table("points", [text("model"), text("weights"), *numbers], data.rows, aim="page")
    ranked, notes = ranking(found)
    return Report([tidy, shown, *ranked, page], (*notes, *found.notes))


def ranking(found: Study) -> tuple[list[Table], tuple[str, ...]]:
    """Purity of the last layer and the other measures, by how far their rank correlation is from 0; no table where
    there is no other measure."""
    by_rank = [row for row in found.rows if row["statistic"] == RANKED]
    rows = [row for row in by_rank if row["kind"] == "peer" or row["quantity"] == "last"]
    if len(rows) < 2:
        return [], ()
    rows.sort(key=lambda row: -abs(row["value"]))
    columns = [
        number("rank", digits=None), text("measure"), *(number(name, signed=True) for name in ("rho", "low", "high")),
        number("n", digits=None),
    ]  # fmt: skip
    ranked = [
        {"rank": place, "measure": "purity" if row["quantity"] == "last" else row["quantity"], "rho": row["value"],
         **{name: row[name] for name in ("low", "high", "n")}}
        for place, row in enumerate(rows, 1)
    ]  # fmt: skip
    title = f"Measures of the last layer by Spearman's rho with {rows[0]['against']}, and the middle 95 % of resamples"
    notes = []
    if len({row["n"] for row in rows}) > 1:
        notes.append("The measures are not known of the same results (n), so their ranks compare unlike with unlike.")
    first, second = rows[:2]
    nearest = 0.0 if first["low"] <= 0 <= first["high"] else min(abs(first["low"]), abs(first["high"]))
    if nearest <= max(abs(second["low"]), abs(second["high"])):
        notes.append(
            f"The intervals of {ranked[0]['measure']} and {ranked[1]['measure']} overlap: {rows[0]['n']} results do "
            "not tell which of them goes better with it."
        )
    return [Table("ranking", columns, ranked, title=title)], tuple(notes)


def points(
    results: Sequence[Result],
    threshold: float,
    rate: float = RATE,
    *,
    against: TargetColumn | None = None,
    random_init: Sequence[Result] | None = None,
    every_layer: bool = False,
) -> Points:
    """A row per result: F of its layers, the averages and the deepest, peers, baselines, and the target.

    `against` has the target of each result and its name, instead of the accuracy: one without is left out.
    `random_init` are the results of the same networks with random weights, in the same order. Peers are of the
    deepest layer, or with `every_layer` of all. PurityError for fewer than three results and for one without an
    accuracy.
    """
    if len(results) < LEAST:
        raise PurityError(f"{len(results)} results cannot be correlated: give {LEAST} or more.")
    against = against or TargetColumn([_accuracy(result) for result in results], "accuracy")
    results, target = against.of(results), against.name
    purities = _purities(results, threshold, rate)
    at_random = _purities(random_init, threshold, rate, "random ") if random_init else [{}] * len(results)
    rows, by_kind = [], {kind: dict[str, None]() for kind in KINDS}
    for place, (result, value) in enumerate(zip(results, (v for v in against.values if v is not None), strict=True)):
        last = cells.deepest(result)
        peers = dict(last.measures)
        if every_layer:
            peers |= {f"{one.name} {name}": value for one in result.layers for name, value in one.measures.items()}
        baseline = {"parameters": result.provenance.get("parameters"), "map h x w": last.height * last.width,
                    "channels": last.channels}  # fmt: skip
        row = {"model": result.model, "weights": result.weights, target: value}
        parts: list[dict[str, Any]] = [purities[place], peers, baseline, at_random[place]]
        for kind, part in zip(KINDS, parts, strict=True):
            row |= part
            by_kind[kind] |= dict.fromkeys(part)
        rows.append(row)
    kinds = {name: kind for kind, names in by_kind.items() for name in names}
    remarks = dict.fromkeys(note for result in results for note in result.provenance.get("notes") or ())
    return Points(rows, kinds, target, (*against.notes, *comparable(results), *remarks))


def _purities(results: Sequence[Result], threshold: float, rate: float, prefix: str = "") -> list[dict[str, Any]]:
    """F of each result's layers, averages and `last`; at the rate that of averages and `last` alone."""
    found: list[dict[str, Any]] = [{} for _ in results]
    for row in cells.every_row(results, threshold, rate):
        own, last = found[row["result"]], ["last"] if row.get("deepest") else []
        own |= {f"{prefix}{name}": row.get("purity") for name in (row["label"], *last)}
        for name in last if row["layer"] else [row["label"]]:
            own[f"{prefix}{name} at {100 * rate:g}%"] = row.get("purity_rate")
    return found


def _accuracy(result: Result) -> float:
    if result.top1 is None:
        why = result.provenance.get("labels", "its images carry no labels")
        raise PurityError(
            f"{result.model} with weights {result.weights} has no accuracy ({why}): leave it out, or give one with "
            "--against FILE.csv:COLUMN."
        )
    return result.top1


def study(data: Points, *, seed: int = 0) -> Study:
    """Every statistic of every quantity against the target, over the results that have both.

    A quantity that fewer than three results have, or that is the same in all of them, is left out and named in the
    notes. PurityError where the target is the same in all, and where no purity nor other measure is left.
    """
    targets = [row[data.target] for row in data.rows]
    if len(set(targets)) < 2:
        raise PurityError(
            f"{data.target} is {targets[0]:g} in all {len(data.rows)} results: nothing can be correlated with it."
        )
    left_out, rows, samples = {}, list[Row](), {}
    for name, kind in data.kinds.items():
        both = [(row[name], row[data.target]) for row in data.rows if cells.is_number(row.get(name))]
        reason = _reason(both, name, data.target, len(data.rows))
        if reason:
            left_out[name] = reason
            continue
        x, y = np.array(both, dtype=float).T
        samples[len(y)] = y
        for statistic, found in correlate(x, y, seed=seed).items():
            about = {"quantity": name, "kind": kind, "against": data.target, "n": len(x), "statistic": statistic}
            p_of = "all orders" if found.exact else f"{DRAWS:,} random orders"
            rows.append(
                {**about, "value": found.value, "p": found.p, "p_of": p_of, "low": found.low, "high": found.high}
            )
    if not {"purity", "peer"} & {row["kind"] for row in rows}:
        raise PurityError(f"No purity can be correlated: {'; '.join(left_out.values())}.")
    notes = [what_n_allows(samples[n]) for n in sorted(samples, reverse=True)]
    if len({row["quantity"] for row in rows}) > 1:
        notes.append(
            f"{len(rows)} correlations stand here: some p below 0.05 are to be expected without any connection."
        )
    return Study(rows, (*notes, *data.notes, *(f"Left out: {reason}." for reason in left_out.values())))


def _reason(both: Sequence[tuple[float, float]], name: str, target: str, n: int) -> str | None:
    """Why this quantity has no correlation, as a clause."""
    if len(both) < LEAST:
        return f"{name} (known of {len(both)} of {n} results, too few)"
    for column, values in zip((name, target), zip(*both, strict=True), strict=True):
        if len(set(values)) < 2:
            return f"{name} ({column} is {values[0]:g} in all {len(both)} results that have both)"
    return None


def what_n_allows(y: Floats) -> str:
    """In words, the smallest p that exists for n results with these targets."""
    n = len(y)
    if n > EXACT:
        return (
            f"n = {n}: p is of {DRAWS:,} random orders and this one, so none below {1 / (DRAWS + 1):.1g} can be seen; "
            "intervals are the middle 95 % of resampled results."
        )
    two, one = least_p(y)
    tied = f" with the ties in these {n}" if len(set(y)) < n else ""
    sentence = (
        f"n = {n}: of the {math.factorial(n):,} orders{tied}, the best for Kendall's tau leave no two-sided p below "
        f"{two:.3g} and no one-sided p below {one:.3g}"
    )
    if two > 0.05:
        sentence += ", so no two-sided tau can be significant at 0.05"
    least = 1 / math.factorial(n)
    return f"{sentence}; no p at all is below {least:.3g}, and intervals from so few resampled results are rough."
