"""Does purity go with accuracy? Stored results -> one point each -> correlations, and in words what so few can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from purity_cli.correlations import DRAWS, EXACT, STATISTICS, correlate, least_p
from purity_cli.errors import PurityError
from purity_cli.report import Column, Report, Table, number, text
from purity_cli.results import Result
from purity_cli.views import cells
from purity_cli.views.against import LEAST, TargetColumn

KINDS = ("purity", "peer", "baseline", "random")
"""Of quantities: purity itself, other label-free measures, what needs no training, purity without training."""
RANKED = "spearman"
"""The statistic by which measures are ranked."""


class Points(NamedTuple):
    """A row per result; `kinds` has the kind of each quantity that is set against `target`."""

    rows: list[dict[str, Any]]
    kinds: dict[str, str]
    target: str
    notes: tuple[str, ...]


class Study(NamedTuple):
    """A row per quantity and statistic; `notes` are sentences that must stand beside them."""

    rows: list[dict[str, Any]]
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
    # Numbers as text, for they are of any size.
    numbers = [Column(name, number=True) for name in (data.target, *data.kinds)]
    page = Table("points", [text("model"), text("weights"), *numbers], data.rows, aim="page")
    beside, said = ranking(found)
    return Report([tidy, shown, *beside, page], (*said, *found.notes))


def ranking(found: Study) -> tuple[list[Table], tuple[str, ...]]:
    """Purity of the last layer and the other measures, by how far their rank correlation is from 0; no table where
    there is no other measure."""
    of = [row for row in found.rows if row["statistic"] == RANKED]
    rows = [row for row in of if row["kind"] == "peer" or row["quantity"] == "last"]
    if len(rows) < 2:
        return [], ()
    rows.sort(key=lambda row: -abs(row["value"]))
    columns = [
        number("rank", digits=None), text("measure"), number("rho", signed=True), number("low", signed=True),
        number("high", signed=True), number("n", digits=None),
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
    *,
    against: TargetColumn | None = None,
    twins: Sequence[Result] | None = None,
    every_layer: bool = False,
) -> Points:
    """What each result says: F of its rows, the averages and the deepest, peers, baselines, and the target.

    `against` has the target of each result and its name, instead of the accuracy: one without is left out. `twins` are
    the results of the same networks with random weights, of those that are not, in the same order. Peers are of the
    deepest layer, or with `every_layer` of all. PurityError for fewer than three results and for one without an
    accuracy.
    """
    if len(results) < LEAST:
        raise PurityError(f"{len(results)} results cannot be correlated: give {LEAST} or more.")
    kinds: dict[str, str] = {}
    against = against or TargetColumn([_accuracy(result) for result in results], "accuracy")
    results, target = against.of(results), against.name
    rows = []
    for place, (result, value) in enumerate(zip(results, (v for v in against.values if v is not None), strict=True)):
        last = cells.deepest(result)
        peers = dict(last.measures)
        if every_layer:
            peers |= {f"{one.name} {name}": value for one in result.layers for name, value in one.measures.items()}
        found: dict[str, Mapping[str, float | None]] = {
            "purity": _purities(result, threshold),
            "peer": peers,
            "baseline": {
                "parameters": result.provenance.get("parameters"),
                "map h x w": last.height * last.width,
                "channels": last.channels,
            },
            "random": {} if twins is None else _purities(twins[place], threshold, "random "),
        }
        known = {name: value for part in found.values() for name, value in part.items()}
        rows.append({"model": result.model, "weights": result.weights, target: value, **known})
        kinds |= {name: kind for kind, part in found.items() for name in part}
    kinds = {name: kind for wanted in KINDS for name, kind in kinds.items() if kind == wanted}
    return Points(rows, kinds, target, (*against.notes, *_caveats(results)))


def _purities(result: Result, threshold: float, prefix: str = "") -> dict[str, float | None]:
    values = {one.name: cells.cell(result, one, threshold).purity for one in result.layers}
    values |= {label: one.purity for label, one in cells.averages(result, threshold).items()}
    values["last"] = cells.cell(result, cells.deepest(result), threshold).purity
    return {prefix + name: value for name, value in values.items()}


def _accuracy(result: Result) -> float:
    if result.top1 is None:
        why = result.provenance.get("labels", "its images carry no labels")
        raise PurityError(
            f"{result.model} with weights {result.weights} has no accuracy ({why}): leave it out, or give one with "
            "--against FILE.csv:COLUMN."
        )
    return result.top1


def _caveats(results: Sequence[Result]) -> tuple[str, ...]:
    """What makes the results less comparable than the table lets them seem."""
    notes = []
    for name, values in (
        ("data sets", [result.dataset for result in results]),
        ("numbers of images", [f"{result.n_images:,}" for result in results]),
        ("preprocessings", [result.preprocessing for result in results]),
    ):
        if len(set(values)) > 1:
            notes.append(f"The results are of different {name}: {'; '.join(dict.fromkeys(values))}.")
    if len({(result.source, result.model) for result in results}) == 1:
        notes.append(
            f"All results are of {results[0].model}: checkpoints of one training depend on each other, so p says less "
            "than it seems to."
        )
    return tuple(
        dict.fromkeys([*notes, *(note for result in results for note in result.provenance.get("notes") or ())])
    )


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
    left_out, rows, samples = {}, [], {}
    for name, kind in data.kinds.items():
        known = [(row[name], row[data.target]) for row in data.rows if cells.is_number(row.get(name))]
        reason = _reason(known, name, data.target, len(data.rows))
        if reason:
            left_out[name] = reason
            continue
        x, y = np.array(known, dtype=float).T
        samples[len(y)] = y
        for statistic, found in correlate(x, y, seed=seed).items():
            p_of = "all orders" if found.exact else f"{DRAWS:,} random orders"
            rows.append(
                {
                    "quantity": name, "kind": kind, "against": data.target, "n": len(x), "statistic": statistic,
                    "value": found.value, "p": found.p, "p_of": p_of, "low": found.low, "high": found.high,
                }
            )  # fmt: skip
    if not {"purity", "peer"} & {row["kind"] for row in rows}:
        raise PurityError(f"No purity can be correlated: {'; '.join(left_out.values())}.")
    words = [what_n_allows(samples[n]) for n in sorted(samples, reverse=True)]
    if len({row["quantity"] for row in rows}) > 1:
        words.append(
            f"{len(rows)} correlations stand here: some p below 0.05 are to be expected without any connection."
        )
    return Study(rows, (*words, *data.notes, *(f"Left out: {reason}." for reason in left_out.values())))


def _reason(known: Sequence[tuple[float, float]], name: str, target: str, n: int) -> str | None:
    """Why this quantity has no correlation, as a clause."""
    if len(known) < LEAST:
        return f"{name} (known of {len(known)} of {n} results, too few)"
    for column, values in zip((name, target), zip(*known, strict=True), strict=True):
        if len(set(values)) < 2:
            return f"{name} ({column} is {values[0]:g} in all {len(known)} results that have both)"
    return None


def what_n_allows(y: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """In words, the smallest p that exists for n results with these targets."""
    n = len(y)
    if n > EXACT:
        return (
            f"n = {n}: p is of {DRAWS:,} random orders and this one, so none below {1 / (DRAWS + 1):.1g} can be seen; "
            "intervals are the middle 95 % of resampled results."
        )
    two, one = least_p(y)
    tied = f" with the ties in these {n}" if len(set(y)) < n else ""
    text = (
        f"n = {n}: of the {math.factorial(n):,} orders{tied}, the best for Kendall's tau leave no two-sided p below "
        f"{two:.3g} and no one-sided p below {one:.3g}"
    )
    if two > 0.05:
        text += ", so no two-sided tau can be significant at 0.05"
    least = 1 / math.factorial(n)
    return f"{text}; no p at all is below {least:.3g}, and intervals from so few resampled results are rough."
