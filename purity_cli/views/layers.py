"""What `purity score` and `purity show` print: a row per layer, and the paper's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from purity_cli.naming import READINGS
from purity_cli.report import Column, Report, Row, Table, number, text
from purity_cli.results import Result
from purity_cli.views import cells, worth

TOP1 = "top1"
INTEGERS = ("n_images", "channels", "height", "width", "activations", "live")
SHOWN = {
    "layer": text("layer", fold=True),
    "purity": number("purity", "F", bar=True, error="se"),
    "se": number("se", drop=1),
    "purity_jk": number("purity_jk", "F jk", drop=1),
    "activations": number("activations", "N", None, drop=5),
    "live": number("live", digits=None, drop=3),
}
"""The columns of tidy rows that people see, too."""


def tidy(measures: Sequence[str] = ()) -> list[Column]:
    """The columns of `cells.rows` for programs, and those of them that people see."""
    found = [SHOWN.get(name, Column(name, number=name in INTEGERS, shown=False)) for name in cells.COLUMNS]
    return [*found, *(number(name, drop=2) for name in measures)]


def every_threshold(results: Sequence[Result], key: str = "rows") -> Table:
    """The tidy rows of results at every threshold, for programs."""
    return Table(key, tidy(cells.measures(results)), cells.rows(results), aim="data")


def layers(results: Sequence[Result], threshold: float) -> Report:
    """F of each layer with what makes it hard to trust, each reading's average; then the paper's layout."""
    called = cells.names(results)
    rows = [
        {
            **row,
            "row": row["label"] if row["stage"] else None,
            "map": f"{row['channels']} x {row['height']} x {row['width']}",
        }
        for row in cells.rows(results, threshold)
    ]
    foot = [
        {"name": name, "row": label, "purity": one.purity, "se": one.se, "purity_jk": one.corrected}
        for name, result in zip(called, results, strict=True)
        for label, one in cells.averages(result, threshold).items()
    ]
    columns = tidy(cells.measures(results))
    place = columns.index(SHOWN["layer"])
    columns[place:place] = [
        text("name", "model", shown=len(results) > 1, data=False),
        text("row", "stage", data=False),
    ]
    columns.insert(place + 3, text("map", "c x h x w", data=False, drop=4))
    marks = {(i, "purity"): "starved" for i, row in enumerate(rows) if row.get("starved") and row["activations"]}
    return Report(
        [
            Table("layers", columns, rows, marks=marks, foot=foot),
            across(dict(zip(called, results, strict=True)), threshold),
        ],
        [
            *(cells.summary(result, threshold) for result in results),
            *(note for result in results for note in cells.remarks(result)),
            *worth.worths(results, threshold),
        ],
    )


def across(results: Mapping[str, Result | None], threshold: float, expected: Sequence[str] = ()) -> Table:
    """The paper's layout: a row per stage, then their average, then top1; a column per result.

    Other readings stand below the activations, and layers that are no stage below these. A cell is None where a
    result has no such row; the cells of what has no result (None) are marked as missing. `expected` are rows that are
    there even if no result has them.
    """
    columns: dict[str, dict[str, float | None]] = {}
    order: dict[str, tuple[int, int]] = {}
    for name in expected:
        order[name] = place(name)
    for name, result in results.items():
        values = columns.setdefault(name, {})
        for layer in result.layers if result else ():
            values[layer.name] = cells.cell(result, layer, threshold).purity  # type: ignore[arg-type]
            order.setdefault(layer.name, place(layer.name if layer.stage else ""))
        for label, one in cells.averages(result, threshold).items() if result else ():
            values[label] = one.purity
            order.setdefault(label, place(label))
        if result and result.top1 is not None:
            values[TOP1] = result.top1
            order.setdefault(TOP1, place(TOP1))
    lines = sorted(order, key=lambda name: order[name])
    rows: list[Row] = [{"stage": line, **{name: columns[name].get(line) for name in columns}} for line in lines]
    missing = [name for name, result in results.items() if result is None]
    marks = {(i, name): "missing" for i in range(len(rows)) for name in missing}
    digits = {i: 2 for i, line in enumerate(lines) if line == TOP1}
    return Table("stages", [text("stage"), *map(number, columns)], rows, marks=marks, digits=digits, aim="page")


def place(name: str) -> tuple[int, int]:
    """Readings in their order, in each the stages by number and their average; then other layers, then top1."""
    reading, _, stage = name.rpartition(":")
    reading = reading or "activation"
    if name == TOP1:
        return 99, 0
    if reading in READINGS and (stage == cells.AVERAGE or (stage[:1] == "C" and stage[1:].isdecimal())):
        return READINGS.index(reading), 10**6 if stage == cells.AVERAGE else int(stage[1:])
    return 98, 0


def stored(result: Result, threshold: float) -> tuple[Report, Report]:
    """What a results folder holds beside the counts: every row for programs, and a page at one threshold."""
    return Report([every_threshold([result])]), layers([result], threshold)
