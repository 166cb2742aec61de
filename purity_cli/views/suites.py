"""The table of a suite: a column per job in the paper's layout, or a row per job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from purity_cli.naming import READINGS, label
from purity_cli.plan import Job
from purity_cli.report import Report, Row, Table, number, text
from purity_cli.results import Layer, Result
from purity_cli.stats import RATE
from purity_cli.views import cells
from purity_cli.views.layers import TOP1, across, low, rate_title, trust

LAST = "purity"
"""F of the deepest layer, in a table of one value to a model."""


@dataclass(frozen=True)
class SuiteColumn:
    """One job in a suite's tables; `missing` tells why there is no result."""

    name: str
    model: str
    """Without its source."""
    epoch: int | None
    result: Result | None
    missing: str | None


def columns(jobs: Sequence[tuple[Job, Result | None, str | None]]) -> list[SuiteColumn]:
    """Jobs, with their results or why there are none, under their names."""
    names = cells.names([result or job for job, result, _ in jobs])
    found = []
    for name, (job, result, why) in zip(names, jobs, strict=True):
        model = result.model if result else cells.bare(job).partition(".")[0]
        found.append(SuiteColumn(name, model, cells.epoch_of(job, result), result, why))
    return found


def of_results(results: Sequence[Result]) -> list[SuiteColumn]:
    """The same of results alone."""
    return columns([(result.job, result, None) for result in results])


def suite(
    found: Sequence[SuiteColumn], threshold: float, layout: str, rate: float = RATE, expected: Sequence[str] = ()
) -> Report:
    """The paper's layout: a row per stage and a column per job, or in the layout `last` a row per job.

    `expected` are rows that are there even if no result has them.
    """
    results = {one.name: one.result for one in found if one.result}
    every = cells.every_row(list(results.values()), threshold, rate, list(results))
    notes = [f"{cells.summary(one, threshold)} Layers: {cells.modules(one)}." for one in results.values()]
    notes += [remark for one in results.values() for remark in cells.remarks(one)]
    notes += [f"Missing: {one.name}: {(one.missing or '').rstrip('.')}." for one in found if one.result is None]
    notes += trust(list(results.values()), every, threshold, rate, list(results))
    if layout == "last":
        return Report([_last(found, every, rate)], notes)
    tables = across(every, [one.name for one in found], rate, expected)
    return Report([replace(table, aim="all") for table in tables], notes)


def _last(found: Sequence[SuiteColumn], every: Sequence[Row], rate: float) -> Table:
    """As the paper's Tables 2 and 3: accuracy and F of the deepest layer, in each reading."""
    rows, keys = [], dict[str, None]()
    marks = {(i, TOP1): "missing" for i, one in enumerate(found) if one.result is None}
    for i, one in enumerate(found):
        line: dict[str, Any] = {"model": one.name, "epoch": one.epoch, TOP1: one.result.top1 if one.result else None}
        for reading, layer in (lasts(one.result) if one.result else {}).items():
            (row,) = (row for row in every if row["name"] == one.name and row["label"] == layer.name)
            for key, value in ((label(reading, LAST), "purity"), (label(reading, f"{LAST} rate"), "purity_rate")):
                line[key] = row.get(value)
                keys[key] = None
                marks |= {(i, key): "starved"} if low(row, value) else {}
        rows.append(line)
    order = sorted(keys or {LAST: None}, key=lambda key: (READINGS.index(key.rpartition(":")[0] or READINGS[0]), key))
    titled = [number(key, key.replace(f"{LAST} rate", rate_title(rate))) for key in order]
    return Table(
        "models", [text("model"), number("epoch", digits=None), number(TOP1, digits=2), *titled], rows, marks=marks
    )


def lasts(result: Result) -> dict[str, Layer]:
    """The deepest layer in each reading; of a result without stages, its last layer, as if it were an activation."""
    found = {reading: cells.deepest_of(layers) for reading, layers in cells.stages_of(result).items()}
    return found or {READINGS[0]: cells.deepest(result)}
