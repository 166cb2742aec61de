"""Does purity go with accuracy? Stored results -> one point each -> correlations, and in words what so few can show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from purity_cli import tables
from purity_cli.correlate.correlations import DRAWS, EXACT, STATISTICS, correlate, least_p
from purity_cli.errors import PurityError, did_you_mean
from purity_cli.results import Result

KINDS = ("purity", "peer", "baseline", "random")
"""Of quantities: purity itself, other label-free measures, what needs no training, purity without training."""
LEAST = 3


class Points(NamedTuple):
    """A row per result; `kinds` has the kind of each column that is set against `target`."""

    rows: pd.DataFrame
    kinds: dict[str, str]
    target: str
    notes: tuple[str, ...]


class Study(NamedTuple):
    """`table` has a row per quantity and statistic; `notes` are sentences that must stand beside it."""

    table: pd.DataFrame
    notes: tuple[str, ...]


COLUMNS = ("quantity", "kind", "against", "n", "statistic", "value", "p", "p_of", "low", "high")


def points(
    results: Sequence[Result],
    threshold: float,
    *,
    against: tuple[Sequence[float], str] | None = None,
    twins: Sequence[Result] | None = None,
) -> Points:
    """What each result says: purity by stage, the average and the last, peers, baselines, and the target.

    `against` has the target of each result and its name, instead of the accuracy; `twins` are the results of the
    same networks with random weights, in the same order. PurityError for fewer than three results and for one without
    an accuracy.
    """
    if len(results) < LEAST:
        raise PurityError(f"{len(results)} results cannot be correlated: give {LEAST} or more.")
    kinds: dict[str, str] = {}
    values, target = against or ([_accuracy(result) for result in results], "accuracy")
    rows = []
    for place, result in enumerate(results):
        last = result.deepest
        found = {"purity": _purities(result, threshold), "peer": dict(last.measures)}
        found["baseline"] = {
            "parameters": result.provenance.get("parameters", math.nan),
            "map h x w": last.height * last.width,
            "channels": last.channels,
        }
        found["random"] = {} if twins is None else _purities(twins[place], threshold, "random ")
        rows.append({"model": result.model, "weights": result.weights, target: values[place]} | _flat(found.values()))
        kinds |= {name: kind for kind, values in found.items() for name in values}
    kinds = {name: kind for wanted in KINDS for name, kind in kinds.items() if kind == wanted}
    return Points(pd.DataFrame(rows, columns=["model", "weights", target, *kinds]), kinds, target, _caveats(results))


def _purities(result: Result, threshold: float, prefix: str = "") -> dict[str, float]:
    rows = tables.at(tables.frame([result]), threshold)
    values = dict(zip(tables.labels(rows), rows["purity"], strict=True))
    last = values[result.deepest.stage or result.deepest.module]
    several = {"average": float(np.mean(list(values.values())))} if len(values) > 1 else {}
    return {prefix + name: float(value) for name, value in {**values, **several, "last": last}.items()}


def _flat(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    return {name: value for part in parts for name, value in part.items()}


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
    return tuple(notes)


def study(data: Points, *, seed: int = 0) -> Study:
    """Every statistic of every quantity against the target, over the results that have both.

    A quantity that fewer than three results have, or that is the same in all of them, is left out and named in the
    notes. PurityError where the target is the same in all, and where no purity is left.
    """
    if data.rows[data.target].nunique() < 2:
        same = data.rows[data.target].iloc[0]
        raise PurityError(
            f"{data.target} is {same:g} in all {len(data.rows)} results: nothing can be correlated with it."
        )
    left_out, rows, samples = {}, [], {}
    for name, kind in data.kinds.items():
        known = data.rows[[name, data.target]].dropna()
        reason = _reason(known, name, data.target, len(data.rows))
        if reason:
            left_out[name] = reason
            continue
        x, y = known[name].to_numpy(float), known[data.target].to_numpy(float)
        samples[len(y)] = y
        for statistic, found in correlate(x, y, seed=seed).items():
            p_of = "all orders" if found.exact else f"{DRAWS:,} random orders"
            rows.append((name, kind, data.target, len(x), statistic, found.value, found.p, p_of, found.low, found.high))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if not (table["kind"] == "purity").any():
        raise PurityError(f"No purity can be correlated: {'; '.join(left_out.values())}.")
    words = [what_n_allows(samples[n]) for n in sorted(samples, reverse=True)]
    if table["quantity"].nunique() > 1:
        words.append(
            f"{len(table)} correlations stand here: some p below 0.05 are to be expected without any connection."
        )
    return Study(table, (*words, *data.notes, *(f"Left out: {reason}." for reason in left_out.values())))


def _reason(known: pd.DataFrame, name: str, target: str, n: int) -> str | None:
    """Why this quantity has no correlation, as a clause."""
    if len(known) < LEAST:
        return f"{name} (known of {len(known)} of {n} results, too few)"
    for column in (name, target):
        if known[column].nunique() < 2:
            return f"{name} ({column} is {known[column].iloc[0]:g} in all {len(known)} results that have both)"
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


def read_against(text: str, results: Sequence[Result]) -> tuple[list[float], str]:
    """The column of `FILE.csv:COLUMN` for each result, joined on `model`, and on `weights` if it has that.

    PurityError where the file, the column, a result's row or a number is missing, or a result has several rows.
    """
    path, _, column = text.rpartition(":")
    if not path or not column:
        raise PurityError(f"Cannot read --against {text}: write FILE.csv:COLUMN.")
    try:
        rows = pd.read_csv(Path(path).expanduser(), dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError, UnicodeError) as error:
        raise PurityError(f"{path} cannot be read as CSV ({str(error).splitlines()[0]}).") from None
    for name in ("model", column):
        if name not in rows.columns:
            known = ", ".join(map(str, rows.columns))
            raise PurityError(f"{path} has no column {name}, only {known}.{did_you_mean(name, map(str, rows.columns))}")
    keys = [key for key in ("model", "weights") if key in rows.columns]
    found = []
    for result in results:
        names = {key: getattr(result, key) for key in keys}
        said = " with weights ".join(names.values())
        mine = rows[np.logical_and.reduce([rows[key] == name for key, name in names.items()])]
        if len(mine) != 1:
            way = "give it one" if mine.empty else "leave one, or add a column weights"
            raise PurityError(f"{path} has {len(mine) or 'no'} rows for {said}: {way}.")
        value = pd.to_numeric(mine[column], errors="coerce").iloc[0]
        if not np.isfinite(value):
            raise PurityError(f"{path} has no number in {column} for {said}, but {mine[column].iloc[0]!r}.")
        found.append(float(value))
    return found, f"{column} of {Path(path).name}"


def to_csv(data: Points, result: Study) -> str:
    """A row per quantity and statistic, with every digit."""
    return result.table.to_csv(index=False, lineterminator="\n")


def to_markdown(data: Points, result: Study) -> str:
    """The correlations, the notes, and the points that they are of."""
    parts = [layout(result.table).to_markdown(index=False, disable_numparse=True)]
    parts += ["\n".join(f"- {note}" for note in result.notes)]
    shown = data.rows.map(lambda value: value if isinstance(value, str) else f"{value:.6g}", na_action="ignore").fillna(
        ""
    )
    return "\n\n".join([*parts, shown.to_markdown(index=False, disable_numparse=True)]) + "\n"


def to_json(data: Points, result: Study) -> str:
    """An object with `correlations`, `notes` and `points`; null for NaN."""
    tidy = {"correlations": tables.to_json(result.table), "points": tables.to_json(data.rows)}
    whole = {name: json.loads(text) for name, text in tidy.items()} | {"notes": list(result.notes)}
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"


def layout(table: pd.DataFrame) -> pd.DataFrame:
    """A row per quantity, a column per statistic, as text: `0.800 [-0.110, 1.000] p 0.083`."""
    cells = [f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}] p {row.p:.3g}" for row in table.itertuples(index=False)]
    wide = table.assign(cell=cells).pivot(index="quantity", columns="statistic", values="cell")
    first = table.drop_duplicates("quantity").set_index("quantity")[["kind", "n"]]
    return first.join(wide[list(STATISTICS)]).reset_index()
