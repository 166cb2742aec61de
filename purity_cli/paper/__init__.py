"""The paper's own comparison: results beside published values, and which reading of the stages comes nearest to them.

Everything else works without this package. Its CSV files are the paper's tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from purity_cli.errors import PurityError
from purity_cli.files import expanded
from purity_cli.naming import label
from purity_cli.paper.nearness import NO_CELL, by_reading, nearness, shared, verdict
from purity_cli.report import Report, Row, Table, number, text
from purity_cli.results import Layer, Result
from purity_cli.views import cells
from purity_cli.views.epochs import Published
from purity_cli.views.layers import TOP1
from purity_cli.views.suites import LAST, SuiteColumn, lasts, of_results

PAPER = ("table1", "table2", "table3", "figure4")
NAMES = {"resnet18_cifar": "resnet18"}
"""The paper's names of networks that have another one here."""
IN_PLACE = (
    "On AlexNet and VGG, the ReLU behind a convolution is in place in the authors' hooks, so that their "
    "`features.<conv>` has the values after the ReLU and the gradient before it; conv: here is the bare convolution, "
    "which is not that."
)
ABOUT = {
    "table2": (
        "The paper's accuracies in Table 2 are copied from a list (of pixels of 256/224), not measured on the images "
        "of its purities: differences of top1 mean little."
    ),
    "table3": (
        "The paper's accuracies in Table 3 are of 16 images each, the last batch of its evaluation (most are multiples "
        "of 1/16): differences of top1 mean little."
    ),
}
"""What must stand beside a comparison with a table of the paper."""
PAPERS_IMAGES = {
    **dict.fromkeys(("table1", "table2"), ("imagenet", "ImageNet's validation set")),
    **dict.fromkeys(("table3", "figure4"), ("cifar10", "CIFAR-10 as it was published")),
}


@dataclass(frozen=True)
class ReferenceValue:
    """A published value: of a stage, the average, `purity` of the deepest layer, `top1`, or of a module by its path."""

    model: str
    cell: str
    value: float
    epoch: int | None = None
    threshold: float | None = None


def reference(name: str) -> list[ReferenceValue]:
    """The paper's values, or those of a CSV file laid out as one of its tables; PurityError."""
    import pandas as pd

    path = resources.files("purity_cli") / "paper" / f"{name}.csv" if name in PAPER else expanded(name)
    try:
        with path.open(encoding="utf-8") as file:
            values = list(_values(pd.read_csv(file)))
    except FileNotFoundError:
        raise PurityError(f"The reference {name} is not there: write {', '.join(PAPER)} or a CSV file.") from None
    except (OSError, ValueError, KeyError) as error:
        raise PurityError(
            f"The reference {name} cannot be read ({error}): its first column must be stage, with a column per model, "
            "or model, with purity or top1 (and epoch, or layer and threshold, where they are of one)."
        ) from None
    return [one for one in values if not math.isnan(one.value)]


def _values(frame: Any) -> Iterator[ReferenceValue]:
    names = list(map(str, frame.columns))
    if names[0] == "stage":
        for row in frame.to_dict("records"):
            yield from (ReferenceValue(model, str(row["stage"]), float(row[model])) for model in names[1:])
        return
    if names[0] != "model" or not {LAST, TOP1} & set(names):
        raise ValueError(f"its columns are {', '.join(names)}")
    for row in frame.to_dict("records"):
        if "layer" in names:
            threshold = float(row["threshold"]) if "threshold" in names else None
            yield ReferenceValue(row["model"], row["layer"], float(row[LAST]), threshold=threshold)
            continue
        epoch = int(row["epoch"]) if "epoch" in names else None
        values = (name for name in names if name not in ("model", "epoch", "dataset"))
        yield from (ReferenceValue(row["model"], name, float(row[name]), epoch) for name in values)


def _matches(value: ReferenceValue, column: SuiteColumn, values: Sequence[ReferenceValue]) -> bool:
    """Whether a published value is of this column's network, and epoch if it is of one."""
    models = {one.model for one in values}
    model = column.model if column.model in models else NAMES.get(column.model, column.model)
    return value.model == model and value.epoch in (None, column.epoch)


def expected(found: Sequence[SuiteColumn], values: Sequence[ReferenceValue]) -> list[str]:
    """The rows that published values of these networks have in the paper's layout."""
    return [one.cell for one in values if one.cell != LAST and any(_matches(one, each, values) for each in found)]


def published(results: Sequence[Result]) -> Published | None:
    """The paper's Table 3 of a network over its training; None where it does not have this network and these images."""
    one = results[0]
    if not one.dataset.startswith("cifar10"):
        return None
    found: dict[int, dict[str, float]] = {}
    for value in reference("table3"):
        if value.model == NAMES.get(one.model, one.model) and value.epoch is not None:
            found.setdefault(value.epoch, {})[value.cell] = value.value
    other = f"The paper's values are of CIFAR-10 as it was published, these of {one.dataset}."
    notes = [ABOUT["table3"], *([other] if one.dataset != "cifar10" else [])]
    return Published(found, notes) if found else None


def beside(results: Sequence[Result], threshold: float, names: Sequence[str] | None = None) -> list[Report]:
    """A comparison with each reference; without names, with the paper's tables of these networks on such images."""
    found = of_results(results)
    if names is None:
        names = []
        for name in PAPER:
            own = [one for one in found if one.result and one.result.dataset.startswith(PAPERS_IMAGES[name][0])]
            names += [name] if compare(own, reference(name), 0.5) else []
    reports = []
    for name in names:
        one = comparison(found, name, reference(name), threshold)
        reports.append(Report(one.tables, one.notes, f"Beside {'the paper: ' if name in PAPER else ''}{name}"))
    return reports


def compare(found: Sequence[SuiteColumn], values: Sequence[ReferenceValue], threshold: float) -> list[Row]:
    """A row for each reading of each published cell of the models: measured, reference, difference, se.

    `measured` is NaN where nothing fired. A cell that no row of a result stands for has one row, without a reading.
    """
    rows: list[Row] = []
    for column in found:
        own = [one for one in values if _matches(one, column, values)]
        stages = {one.cell for one in own if one.cell not in (*NO_CELL, LAST)}
        every: dict[float, list[Row]] = {}
        for one in own:
            at = threshold if one.threshold is None else one.threshold
            if column.result and at not in every:
                every[at] = cells.every_row([column.result], at)
            whole = {"model": column.name, "epoch": column.epoch, "cell": one.cell, "reference": one.value}
            measured = list(_measured(column.result, every[at], one.cell, stages)) if column.result else []
            for reading, module, value, se in measured or [(None, None, None, None)]:
                difference = None if value is None else value - one.value
                given = {"reading": reading, "layer": module, "measured": value, "difference": difference, "se": se}
                rows.append(whole | given | {"missing": column.result is None})
    return rows


Measured = tuple[str | None, str | None, float | None, float | None]
"""Reading, module, value and standard error."""


def _measured(result: Result, rows: Sequence[Row], cell: str, stages: set[str]) -> Iterator[Measured]:
    """What stands for a published cell; of top1 with the binomial standard error."""
    if cell == TOP1:
        if result.top1 is not None:
            yield None, None, result.top1, math.sqrt(result.top1 * (100 - result.top1) / result.n_images)
        return
    if cell == cells.AVERAGE:
        for row in (row for row in rows if not row["layer"]):
            # The mean of other stages is another number.
            if stages in (set(), {layer.stage for layer in cells.stages_of(result)[row["reading"]]}):
                yield row["reading"], None, row["purity"], row["se"]
        return
    layers: list[tuple[str | None, Layer]] = [*lasts(result).items()]
    if cell != LAST:
        layers = [(cells.reading_of(one), one) for one in result.layers if one.stage and cell in (one.stage, one.name)]
    if not layers:
        layers += [(None, one) for one in result.layers if one.module == cell][:1]
    by_label = {row["label"]: row for row in rows}
    for reading, layer in layers:
        row = by_label[layer.name]
        yield reading, layer.module, row.get("purity"), row.get("se")


def comparison(found: Sequence[SuiteColumn], name: str, values: Sequence[ReferenceValue], threshold: float) -> Report:
    """Measured beside the reference `name`: each cell in each reading; then, per reading, how near it comes."""
    rows = compare(found, values, threshold)
    columns = [
        text("model"), number("epoch", digits=None), text("cell", fold=True), text("reading"),
        text("layer", drop=2, fold=True), number("measured"), number("reference", "paper" if name in PAPER else ""),
        number("difference", signed=True), number("se", drop=1),
    ]  # fmt: skip
    digits = {i: 2 for i, row in enumerate(rows) if row["cell"] == TOP1}
    marks = {(i, "measured"): "missing" for i, row in enumerate(rows) if row["missing"]}
    table = Table("comparison", columns, rows, marks=marks, digits=digits)
    notes = [*([verdict(rows)] if rows else []), *_notes(found, name, values, rows)]
    return Report([table, _summary(rows)], notes)


def _summary(rows: Sequence[Row]) -> Table:
    """How near each reading comes, over its own cells and over those that all share; then accuracies and averages."""
    readings = by_reading(rows)
    common, _ = shared(readings)
    groups: dict[str, list[Row]] = {reading: list(own) for reading, own in readings.items()}
    for row in rows:
        if row["cell"] in NO_CELL and row["measured"] is not None:
            kind = TOP1 if row["cell"] == TOP1 else label(row["reading"], cells.AVERAGE)
            groups.setdefault(kind, []).append(row)
    lines: list[Row] = []
    for reading, part in groups.items():
        own = nearness(part)
        line = {"reading": reading, "cells": own.cells, "difference": own.difference, "rank": own.rank}
        if reading in common and len(common) > 1:
            over = nearness(common[reading])
            line |= {"common": over.cells, "common_difference": over.difference, "common_rank": over.rank}
        lines.append(line)
    several = len(common) > 1
    columns = [
        text("reading"), number("cells", digits=None), number("difference", "mean absolute difference"),
        number("rank", "rank correlation"), number("common", "common cells", None, shown=several),
        number("common_difference", "mean absolute difference of these", shown=several),
        number("common_rank", "rank correlation of these", shown=several),
    ]  # fmt: skip
    return Table("readings", columns, lines, digits={i: 2 for i, one in enumerate(lines) if one["reading"] == TOP1})


def _notes(
    found: Sequence[SuiteColumn], name: str, values: Sequence[ReferenceValue], rows: Sequence[Row]
) -> Iterator[str]:
    """What must stand beside the comparison."""
    compared = {row["model"] for row in rows if not row["missing"]}
    silent = sum(row["measured"] is not None and math.isnan(row["measured"]) for row in rows)
    if silent:
        yield f"In {silent} cell{'s' * (silent > 1)} nothing fired, or in a stage of the average: no mean holds them."
    if rows and name in ABOUT:
        yield ABOUT[name]
    if any(one.name in compared and one.model.startswith(("alexnet", "vgg")) for one in found):
        yield IN_PLACE
    results = {one.name: one.result for one in found if one.result and one.name in compared}
    random = [name for name, result in results.items() if result.weights == "none"]
    if random:
        yield f"The weights of {', '.join(random)} are random: their values tell nothing about the reference."
    images, called = PAPERS_IMAGES.get(name, ("", ""))
    others = dict.fromkeys(result.dataset for result in results.values())
    if images and set(others) - {images}:
        yield f"The paper's values are of {called}, these of {', '.join(others)}."
    alone = [one.name for one in found if not any(_matches(each, one, values) for each in values)]
    if alone:
        yield f"There is nothing to compare {', '.join(alone)} with."
