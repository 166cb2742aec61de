"""Two sets of results, cell by cell: what moved, what vanished, and in what else the runs differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from purity_cli.errors import PurityError
from purity_cli.report import Column, Report, Row, Table, number, text
from purity_cli.results import Result
from purity_cli.stats import RATE
from purity_cli.views import cells

IDENTITY = ("model", "source", "weights", "dataset", "preprocessing")
"""What two results share that are of the same thing."""
UNREMARKABLE = {*IDENTITY, "job", "key", "seconds", "images_per_second", "started", "command"}
"""What a result's provenance holds that differs from run to run, or that something else here shows."""
LONG = 60
ROUNDING = 1e-12
"""0.705 - 0.7 is no more than 0.005."""
MOVED, VANISHED, NEW = "moved", "vanished", "new"


@dataclass(frozen=True)
class StoredResult:
    """A result and where it was found."""

    folder: Path
    result: Result


ResultPair = tuple[StoredResult | None, StoredResult | None]


@dataclass(frozen=True)
class Diff:
    """What two sets of results have in common and have not."""

    cells: list[Row]
    """A row per job, layer and measure: the value old and new, their difference, the standard error that it would have
    if the two were of independent images, and how many of these it is. NaN where nothing fired, None where a side has
    no such cell."""
    averages: list[Row]
    """The same of the averages, which follow from the cells."""
    changes: list[dict[str, str]]
    """A row per difference in provenance or settings, with the jobs in which it is."""
    vanished: tuple[str, ...]
    """Names of jobs that are no longer there."""
    failures: tuple[str, ...]
    """Jobs of the new suite that failed, and why."""
    tolerance: float
    same_images: bool
    """Whether both sides of every cell are of the same images."""

    @property
    def regressed(self) -> bool:
        """Whether a cell moved, or a job or a layer vanished."""
        return bool(self.vanished) or any(row["status"] in (MOVED, VANISHED) for row in self.cells)

    def verdict(self) -> str:
        """The outcome in one sentence."""
        moved = sum(row["status"] == MOVED for row in self.cells)
        compared = sum(row["status"] in ("", MOVED) for row in self.cells)
        lost = [row for row in self.cells if row["status"] == VANISHED and row["job"] not in self.vanished]
        layers = list(dict.fromkeys(f"{row['job']} {_called(row)}" for row in lost))
        parts = [f"{moved or 'None'} of {_count(compared, 'cell')} moved by more than {self.tolerance:g}"]
        if self.vanished:
            parts.append(f"{_count(len(self.vanished), 'job')} vanished ({', '.join(self.vanished)})")
        if layers:
            parts.append(f"{_count(len(layers), 'layer')} vanished ({', '.join(layers)})")
        return "; ".join(parts) + "."

    def caution(self) -> str:
        """What `se` means here."""
        who = "as both runs saw" if self.same_images else "where both runs saw"
        return (
            f"se is the standard error of the difference between runs on independent images; {who} the same images, it "
            "is too large, and a difference below it can be more than chance."
        )

    def report(self) -> Report:
        """All of it."""
        several = len({row["measure"] for row in self.cells}) > 1
        columns = [
            text("job"), *(Column(name, shown=False) for name in IDENTITY), text("stage", shown=False),
            text("reading", shown=False), text("row", "stage", data=False), text("layer", fold=True),
            text("measure", shown=several), number("old", digits=4), number("new", digits=4),
            number("difference", digits=4, signed=True), number("se", digits=4, drop=1),
            number("in_se", "in se", 1, signed=True, drop=1), text("status"),
        ]  # fmt: skip
        marks = {(i, "status"): row["status"] for i, row in enumerate(self.cells) if row["status"]}
        change = [text(name, fold=name in ("old", "new")) for name in ("what", "old", "new", "jobs")]
        facts = {name: getattr(self, name) for name in ("regressed", "tolerance", "vanished", "failures")}
        return Report(
            [
                Table("cells", columns, self.cells, marks=marks, foot=self.averages),
                Table("changes", change, self.changes, "In what else the runs differ:"),
            ],
            [*self.failures, self.caution()],
            title=f"Purity: {'regression' if self.regressed else 'no regression'}",
            lead=self.verdict(),
            facts=facts,
        )


def diff(
    old: Sequence[StoredResult],
    new: Sequence[StoredResult],
    *,
    threshold: float = 0.5,
    rate: float = RATE,
    tolerance: float = 0.005,
    failures: Iterable[str] = (),
) -> Diff:
    """Compare two sets of results at one threshold and one rate; other measures move by a share of their value.

    Raises PurityError where one holds a result twice, or has no counts at the threshold.
    """
    pairs = match(old, new)
    names = cells.names([(b or a).result for a, b in pairs if (a or b)])  # type: ignore[union-attr]
    named = list(zip(names, pairs, strict=True))
    rows = [row for name, pair in named for row in _rows(name, pair, threshold, rate, tolerance)]
    changes: dict[tuple[str, str, str], list[str]] = {}
    both = [(name, a.result, b.result) for name, (a, b) in named if a and b]
    for name, one, other in both:
        for change in _changes(one, other):
            changes.setdefault(change, []).append(name)
    return Diff(
        cells=[row for row in rows if row["layer"]],
        averages=[row for row in rows if not row["layer"]],
        changes=[
            {"what": what, "old": a, "new": b, "jobs": "all" if len(where) == len(both) else ", ".join(where)}
            for (what, a, b), where in changes.items()
        ],
        vanished=tuple(name for name, (_, b) in named if b is None),
        failures=tuple(failures),
        tolerance=tolerance,
        same_images=all(_images(a) == _images(b) for _, a, b in both),
    )


def match(old: Sequence[StoredResult], new: Sequence[StoredResult]) -> list[ResultPair]:
    """Results of the same thing side by side, in the order of the new ones, then those that are gone.

    Several of one thing (other images, another precision) are told apart by their Job; PurityError where that is the
    same, too.
    """
    pairs: list[ResultPair] = []
    before, after = _by_identity(old), _by_identity(new)
    for identity, these in after.items():
        those = before.pop(identity, {})
        pairs += [(those.pop(key), these.pop(key)) for key in list(these) if key in those]
        if len(those) == len(these) == 1:
            pairs.append((those.popitem()[1], these.popitem()[1]))
        pairs += [*((None, found) for found in these.values()), *((found, None) for found in those.values())]
    return pairs + [(found, None) for those in before.values() for found in those.values()]


def _by_identity(found: Iterable[StoredResult]) -> dict[tuple[str, ...], dict[str, StoredResult]]:
    groups: dict[tuple[str, ...], dict[str, StoredResult]] = {}
    for one in found:
        group = groups.setdefault(tuple(getattr(one.result, name) for name in IDENTITY), {})
        other = group.setdefault(one.result.job.key(), one)
        if other is not one:
            raise PurityError(f"{other.folder} and {one.folder} are results of the same job: give one of them.")
    return groups


Key = tuple[str | None, str | None, str]
"""Module, reading where it is not the activation, measure: what a cell is matched by."""
CellValue = tuple[Row, float | None, float | None]
"""What a cell is of, its value and its standard error."""


def _rows(name: str, pair: ResultPair, threshold: float, rate: float, tolerance: float) -> Iterator[Row]:
    old, new = (_values(found, threshold, rate) if found else {} for found in _on_one_grid(pair))
    result = (pair[1] or pair[0]).result  # type: ignore[union-attr]
    for key in dict.fromkeys([*new, *old]):
        about, a, se_a = old.get(key, ({}, None, None))
        about, b, se_b = new.get(key, (about, None, None))
        status = VANISHED if key not in new else NEW if key not in old else ""
        difference = se = None
        if a is not None and b is not None:
            difference = b - a
            # Purity lies between 0 and 1 and has a standard error; other measures have no common scale.
            status = MOVED if has_moved(a, b, tolerance, relative=se_a is None) else ""
            se = None if se_a is None or se_b is None else math.hypot(se_a, se_b)
        in_se = difference / se if difference is not None and se else None
        values = {"old": a, "new": b, "difference": difference, "se": se, "in_se": in_se, "status": status}
        yield {"job": name, **{field: getattr(result, field) for field in IDENTITY}, **about, **values}


def has_moved(a: float, b: float, tolerance: float, *, relative: bool) -> bool:
    """Whether two values differ by more than the tolerance: a share of the larger one where it is `relative`.

    Of two values only one of which is undefined, one has moved; so has any value from 0, where it is `relative`.
    """
    scale = max(abs(a), abs(b)) if relative else 1.0
    return math.isnan(a) != math.isnan(b) or abs(b - a) > tolerance * scale + ROUNDING


def _on_one_grid(pair: ResultPair) -> ResultPair:
    """Both sides at the thresholds that they share, because F at a rate is interpolated between these."""
    old, new = pair
    if not old or not new or old.result.thresholds == new.result.thresholds:
        return pair
    shared = sorted({*old.result.thresholds} & {*new.result.thresholds})

    def at_shared(one: StoredResult) -> StoredResult:
        places = [one.result.thresholds.index(threshold) for threshold in shared]
        layers = tuple(
            layer if layer.counts is None else replace(layer, counts=layer.counts[:, places])
            for layer in one.result.layers
        )
        return replace(one, result=replace(one.result, thresholds=tuple(shared), layers=layers))

    return (at_shared(old), at_shared(new)) if shared else pair


def _values(found: StoredResult, threshold: float, rate: float) -> dict[Key, CellValue]:
    """Every cell of a result."""
    values: dict[Key, CellValue] = {}
    try:
        every = cells.every_row([found.result], threshold, rate)
    except PurityError as error:
        raise PurityError(f"{found.folder}: {error}") from None
    for row in every:
        reading = None if row["reading"] == "activation" else row["reading"]
        about = {name: row[name] for name in ("stage", "layer")} | {"reading": row["reading"] if row["layer"] else None}
        about["row"] = row["label"] if row["stage"] or not row["layer"] else None
        for key, measure, se in (
            ("purity", "purity", "se"),
            ("purity_rate", f"purity at {100 * rate:g}%", "purity_rate_se"),
        ):
            if key in row:
                values[row["layer"], reading, measure] = ({**about, "measure": measure}, row[key], row[se])
        for measure in cells.measures([found.result]) if row["layer"] else ():
            if measure in row:
                values[row["layer"], reading, measure] = ({**about, "measure": measure}, row[measure], None)
    return values


def _called(row: Row) -> str:
    """A cell's layer as the verdict names it."""
    reading = row["reading"]
    return str(row["layer"] if reading in (None, "activation") else f"{row['row']} {row['layer']}")


def _changes(old: Result, new: Result) -> Iterator[tuple[str, str, str]]:
    a, b = _about(old), _about(new)
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            yield name.replace("_", " "), _show(a.get(name)), _show(b.get(name))


def _about(result: Result) -> dict[str, Any]:
    """All that can be said of a run, as JSON."""
    provenance = {name: value for name, value in result.provenance.items() if name not in UNREMARKABLE}
    accuracy = {"top1": result.top1, "top5": result.top5}
    shown = {name: None if value is None else f"{value:.2f} %" for name, value in accuracy.items()}
    return {**result.job.model_dump(mode="json", exclude=set(IDENTITY)), **provenance, **shown}


def _images(result: Result) -> tuple[Any, ...]:
    """What is the same where the images are."""
    names = ("dataset_fingerprint", "images_selected", "images_skipped")
    return (*(result.provenance.get(name) for name in names), result.job.per_class, result.job.limit, result.n_images)


def _show(value: Any) -> str:
    """A value in a few characters."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} ({value[0].get('path', '')}, ...)"
    shown = value if isinstance(value, str) else "none" if value in (None, []) else json.dumps(value)
    if re.fullmatch(r"[0-9a-f]{64}", shown):
        return shown[:12]
    return shown if len(shown) <= LONG else f"{shown[: LONG - 3]}..."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
