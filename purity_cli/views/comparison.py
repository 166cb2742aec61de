"""A suite's results in the layout of the paper's tables, and beside the paper's values: what each reading gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from purity_cli.errors import PurityError
from purity_cli.files import expanded
from purity_cli.naming import READINGS, label
from purity_cli.plan import Job
from purity_cli.report import Report, Row, Table, number, text
from purity_cli.results import Layer, Result
from purity_cli.views import cells
from purity_cli.views.layers import TOP1, across, worth, worths
from purity_cli.views.nearness import by_reading, nearness, shared, verdict

PAPER = ("table1", "table2", "table3", "figure4")
NAMES = {"resnet18_cifar": "resnet18"}
"""The paper's names of networks that have another one here."""
LAST = "purity"
"""The cell that is F of the deepest layer, in a table of one value to a model."""
NO_STAGE = (cells.AVERAGE, LAST, TOP1)
IN_PLACE = (
    "On AlexNet and VGG, the ReLU behind a convolution is in place in the authors' hooks, so that their "
    "`features.<conv>` has the values after the ReLU and the gradient before it; conv: here is the bare convolution, "
    "which is not that."
)
ABOUT = {
    "table2": (
        "The paper's accuracies in Table 2 are copied from a list (of pixels of 256/224), not measured on the images "
        "of its purities: differences of top1 say little."
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
class SuiteColumn:
    """One job in a suite's tables; `missing` says why there is no result."""

    name: str
    model: str
    """Without its source."""
    epoch: int | None
    result: Result | None
    missing: str | None


@dataclass(frozen=True)
class ReferenceValue:
    """A published value: of a stage, the average, `purity` of the deepest layer, `top1`, or of a module by its path."""

    model: str
    cell: str
    value: float
    epoch: int | None = None
    threshold: float | None = None


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


def reference(name: str) -> list[ReferenceValue]:
    """The paper's values, or those of a CSV file laid out as one of its tables; PurityError."""
    import pandas as pd

    path = resources.files("purity_cli") / "paper" / f"{name}.csv" if name in PAPER else expanded(name)
    try:
        with path.open(encoding="utf-8") as file:
            frame = pd.read_csv(file)
        found = [known for known in _known(frame) if not math.isnan(known.value)]
    except FileNotFoundError:
        raise PurityError(f"The reference {name} is not there: write {', '.join(PAPER)} or a CSV file.") from None
    except (OSError, ValueError, KeyError) as error:
        raise PurityError(
            f"The reference {name} cannot be read ({error}): its first column must be stage, with a column per model, "
            "or model, with purity or top1 (and epoch, or layer and threshold, where they are of one)."
        ) from None
    return found


def _known(frame: Any) -> Iterator[ReferenceValue]:
    names = list(map(str, frame.columns))
    if names[0] == "stage":
        for row in frame.to_dict("records"):
            yield from (ReferenceValue(model, str(row["stage"]), float(row[model])) for model in names[1:])
        return
    if names[0] != "model" or not {LAST, TOP1} & set(names):
        raise ValueError(f"its columns are {', '.join(names)}")
    for row in frame.to_dict("records"):
        if "layer" in names:
            at = row.get("threshold")
            yield ReferenceValue(
                row["model"], row["layer"], float(row[LAST]), threshold=None if at is None else float(at)
            )
            continue
        epoch = int(row["epoch"]) if "epoch" in names else None
        values = (name for name in names if name not in ("model", "epoch", "dataset"))
        yield from (ReferenceValue(row["model"], name, float(row[name]), epoch) for name in values)


def suite(found: Sequence[SuiteColumn], threshold: float, layout: str, known: Sequence[ReferenceValue] = ()) -> Report:
    """The paper's layout: a row per stage and a column per model, or in the layout `last` a row per model."""
    results = {one.name: one.result for one in found if one.result}
    notes = [f"{cells.summary(one, threshold)} Layers: {cells.modules(one)}." for one in results.values()]
    notes += [remark for one in results.values() for remark in cells.remarks(one)]
    notes += [f"Missing: {one.name}: {(one.missing or '').rstrip('.')}." for one in found if one.result is None]
    notes += worths(list(results.values()), threshold, list(results))
    if layout == "last":
        return Report([_last(found, threshold)], notes)
    theirs = [one.cell for one in known if one.cell != LAST and any(_matches(one, column, known) for column in found)]
    table = across({one.name: one.result for one in found}, threshold, theirs)
    return Report([replace(table, aim="all")], notes)


def _last(found: Sequence[SuiteColumn], threshold: float) -> Table:
    """As the paper's Tables 2 and 3: accuracy and F of the deepest layer, in each reading."""
    rows, readings = [], dict[str, None]()
    marks = {(i, TOP1): "missing" for i, one in enumerate(found) if one.result is None}
    for i, one in enumerate(found):
        row: dict[str, Any] = {"model": one.name, "epoch": one.epoch}
        if one.result:
            row[TOP1] = one.result.top1
            low = worth(one.result, threshold).starved
            for reading, layer in _lasts(one.result).items():
                key = label(reading, LAST)
                marks |= {(i, key): "starved"} if layer.name in low else {}
                row[key] = cells.cell(one.result, layer, threshold).purity
                readings[key] = None
        rows.append(row)
    order = sorted(readings or {LAST: None}, key=lambda key: (READINGS.index(_reading(key)), key))
    columns = [text("model"), number("epoch", digits=None), number(TOP1, digits=2), *map(number, order)]
    return Table("models", columns, rows, marks=marks)


def _reading(label: str) -> str:
    return label.rpartition(":")[0] or "activation"


def _lasts(result: Result) -> dict[str, Layer]:
    """The deepest layer in each reading; of a result without stages, its last row, as if it were an activation."""
    found = {reading: cells.deepest_of(layers) for reading, layers in cells.stages_of(result).items()}
    return found or {"activation": cells.deepest(result)}


def _matches(known: ReferenceValue, column: SuiteColumn, all_known: Sequence[ReferenceValue]) -> bool:
    """Whether a published value is of this column's network, and epoch if it is of one."""
    models = {one.model for one in all_known}
    model = column.model if column.model in models else NAMES.get(column.model, column.model)
    return known.model == model and known.epoch in (None, column.epoch)


def compare(found: Sequence[SuiteColumn], known: Sequence[ReferenceValue], threshold: float) -> list[dict[str, Any]]:
    """A row for each reading of each published cell of the models: measured, reference, difference, se.

    `measured` is NaN where nothing fired. A cell that no row of a result stands for has one row, without a reading.
    """
    rows = []
    for column in found:
        for one in known:
            if not _matches(one, column, known):
                continue
            at = threshold if one.threshold is None else one.threshold
            whole = {"model": column.name, "epoch": column.epoch, "cell": one.cell, "reference": one.value}
            stages = {other.cell for other in known if _matches(other, column, known) and other.cell not in NO_STAGE}
            measured = list(_measured(column.result, one.cell, at, stages)) if column.result else []
            for reading, module, value, se in measured or [(None, None, None, None)]:
                difference = None if value is None else value - one.value
                given = {"reading": reading, "layer": module, "measured": value, "difference": difference, "se": se}
                rows.append(whole | given | {"missing": column.result is None})
    return rows


def _measured(
    result: Result, cell: str, threshold: float, stages: set[str]
) -> Iterator[tuple[str | None, str | None, float | None, float | None]]:
    """Reading, module, value and standard error of what stands for a published cell; of top1 the binomial one."""
    if cell == TOP1:
        if result.top1 is not None:
            yield None, None, result.top1, math.sqrt(result.top1 * (100 - result.top1) / result.n_images)
        return
    if cell == cells.AVERAGE:
        for reading, layers_ in cells.stages_of(result).items():
            one = cells.average(result, reading, threshold)
            # The mean of other stages is another number.
            if one and stages in (set(), {layer.stage for layer in layers_}):
                yield reading, None, one.purity, one.se
        return
    if cell == LAST:
        layers: list[tuple[str | None, Layer]] = [*_lasts(result).items()]
    else:
        layers = [(cells.reading_of(one), one) for one in result.layers if one.stage and cell in (one.stage, one.name)]
        if not layers:
            layers += [(None, one) for one in result.layers if one.module == cell][:1]
    for what, layer in layers:
        one = cells.cell(result, layer, threshold)
        yield what, layer.module, one.purity, one.se


def comparison(found: Sequence[SuiteColumn], name: str, known: Sequence[ReferenceValue], threshold: float) -> Report:
    """Measured beside the reference `name`: each cell in each reading; then, per reading, how near it comes."""
    rows = compare(found, known, threshold)
    theirs = "paper" if name in PAPER else "reference"
    cell_columns = [
        text("model"), number("epoch", digits=None), text("cell", fold=True), text("reading"),
        text("layer", drop=2, fold=True), number("measured"), number("reference", theirs),
        number("difference", signed=True), number("se", drop=1),
    ]  # fmt: skip
    digits = {i: 2 for i, row in enumerate(rows) if row["cell"] == TOP1}
    marks = {(i, "measured"): "missing" for i, row in enumerate(rows) if row["missing"]}
    readings = by_reading(rows)
    common, _ = shared(readings)
    lines: list[Row] = []
    groups = {reading: (part, common.get(reading)) for reading, part in readings.items()}
    for row in rows:
        if row["cell"] in (TOP1, cells.AVERAGE) and row["measured"] is not None:
            kind = TOP1 if row["cell"] == TOP1 else label(row["reading"], cells.AVERAGE)
            groups.setdefault(kind, ([], None))[0].append(row)
    for reading, (part, both) in groups.items():
        own, over = nearness(part), nearness(both) if both and len(common) > 1 else None
        lines.append(
            {"reading": reading, "cells": own.cells, "difference": own.difference, "rank": own.rank}
            | ({"common": over.cells, "common_difference": over.difference, "common_rank": over.rank} if over else {})
        )
    summary = Table(
        "readings",
        [
            text("reading"), number("cells", digits=None), number("difference", "mean absolute difference"),
            number("rank", "rank correlation"), number("common", "common cells", None, shown=len(common) > 1),
            number("common_difference", "mean absolute difference of these", shown=len(common) > 1),
            number("common_rank", "rank correlation of these", shown=len(common) > 1),
        ],
        lines,
        digits={i: 2 for i, line in enumerate(lines) if line["reading"] == TOP1},
    )  # fmt: skip
    table = Table("comparison", cell_columns, rows, marks=marks, digits=digits)
    return Report([table, summary], [*([verdict(rows)] if rows else []), *_notes(found, name, known, rows)])


def _notes(
    found: Sequence[SuiteColumn], name: str, known: Sequence[ReferenceValue], rows: Sequence[Row]
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
        yield f"The weights of {', '.join(random)} are random: their values say nothing about the reference."
    images, called = PAPERS_IMAGES.get(name, ("", ""))
    others = dict.fromkeys(result.dataset for result in results.values())
    if images and set(others) - {images}:
        yield f"The paper's values are of {called}, these of {', '.join(others)}."
    strange = [one.name for one in found if not any(_matches(each, one, known) for each in known)]
    if strange:
        yield f"There is nothing to compare {', '.join(strange)} with."
