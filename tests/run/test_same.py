"""Score, show, bench, epochs, correlate, diff and plot print the same average, deepest layer and names of a result."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from purity_cli.naming import label
from purity_cli.plan import Job
from purity_cli.report import FORMATS, Report
from purity_cli.results import Layer, Result
from purity_cli.views import cells, correlation, diff, epochs, layers, suites, sweep
from tests.core import oracle

CHANNELS, GROUPS, THRESHOLD = 16, 4, 0.5
Values = dict[str, float]


def row(name: str, live: int, module: str = "") -> Layer:
    """A layer of which `live` channels fire, each in its own measure."""
    reading, _, stage = name.rpartition(":")
    counts = np.zeros((GROUPS, 1, CHANNELS), np.int64)
    counts[:, 0, :live] = 90 + np.arange(live)
    staged = stage[:1] == "C"
    kind = (reading or "activation") if staged else None
    return Layer(module or f"net.{name}", stage if staged else None, CHANNELS, 2, 2, counts, {}, kind)


def result(epoch: int, rows: list[Layer], top1: float) -> Result:
    weights = f"net_epoch{epoch:03}.safetensors"
    return Result(
        job=Job.of(model="f.py:net", weights=weights, thresholds=(THRESHOLD,), groups=GROUPS), thresholds=(THRESHOLD,),
        layers=tuple(rows), n_images=400, top1=top1, top5=None, model="net", source="file", weights=weights,
        dataset="photos", preprocessing="none", provenance={"epoch": epoch},
    )  # fmt: skip


LAYERS = {
    "activations": ["C1", "C2", "C3", "head"],
    "readings": ["C1", "C3", "C2", "conv:C1", "conv:C2", "conv:C4", "block:C2"],
    "no activation": ["conv:C1", "conv:C2", "pool:C1"],
}


def results(kind: str, silent: bool) -> list[Result]:
    """Three, the second of which has a stage that is NaN, if `silent`."""
    made = []
    for i in range(3):
        rows = [row(name, 3 + (5 * i + 3 * k) % 12) for k, name in enumerate(LAYERS[kind])]
        if silent and i == 1:
            rows[1] = row(LAYERS[kind][1], 0)
        made.append(result(10 * (i + 1), rows, 70.0 + i * i))
    return made


def truth(one: Result) -> Values:
    """Average of each reading, and the deepest layer, by hand."""
    by_name = {layer.name: oracle.purity(layer.counts.sum(0)[0]) for layer in one.layers}
    found: Values = {}
    for reading in ("", "conv:", "block:", "pool:"):
        own = [value for name, value in by_name.items() if name.startswith(f"{reading}C")]
        if own:
            found[f"{reading}Average"] = float(np.mean(own))
    deepest = "C3" if "C3" in by_name else "pool:C1"
    return {**found, "deepest": by_name[deepest]}


NAMES = ["net epoch 10", "net epoch 20", "net epoch 30"]


def csv_of(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(FORMATS["csv"](report))))


def json_of(report: Report) -> Any:
    return json.loads(FORMATS["json"](report), parse_constant=pytest.fail)


def number(value: Any) -> float | None:
    """As a format writes it; None for an empty cell."""
    return None if value in ("", None) else float(str(value).rstrip("*"))


def markdown(report: Report, table: int) -> list[dict[str, str]]:
    """The rows of a table by their headings."""
    blocks = [block for block in FORMATS["md"](report).split("\n\n") if block.startswith("|")]
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in blocks[table].splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


def console(report: Report) -> str:
    return FORMATS["table"](report)


LayerBatch = dict[str, tuple[list[str], list[Values]]]
"""By format: the names, and what it says of each result (without a key where it does not say it)."""


def by_score(given: list[Result]) -> LayerBatch:
    page = layers.layers(given, THRESHOLD)
    shown, found = markdown(page, 1), LayerBatch()
    across = {line.pop("stage"): line for line in shown}
    averages = [line for line in markdown(page, 0) if line["stage"].endswith("Average")]
    names = list(across["top1"])
    deep = [cells.deepest(one).name for one in given]
    found["md"] = (
        names,
        [
            {line: float(across[line][name]) for line in across if line.endswith("Average")}
            | {"deepest": float(across[last][name])}
            for name, last in zip(names, deep, strict=True)
        ],
    )
    found["md, by layer"] = (
        list(dict.fromkeys(line["model"] for line in averages)),
        [{line["stage"]: float(line["F"]) for line in averages if line["model"] == name} for name in NAMES],
    )
    for layout, rows in (("csv", csv_of(page)), ("json", json_of(page)["layers"])):
        values = []
        for one, last in zip(given, deep, strict=True):
            mine = [r for r in rows if r["weights"] == one.weights]
            value = {label(r["reading"], "Average"): number(r["average"]) for r in mine if r["stage"]} | {
                "deepest": number(next(r["purity"] for r in mine if label(r["reading"], r["stage"] or "") == last))
            }
            values.append(nan(value, layout))
        found[layout] = NAMES, values
    stages = {line.pop("stage"): line for line in json_of(page)["stages"]}
    found["json, across"] = (
        list(stages["top1"]),
        [nan({line: stages[line][name] for line in stages if line.endswith("Average")}, "json") for name in NAMES],
    )
    lines = [line.split() for line in console(page).splitlines() if "Average" in line]
    found["table"] = (
        NAMES,
        [{words[3]: float(words[4]) for words in lines if words[2] == str(epoch)} for epoch in (10, 20, 30)],
    )
    return found


def nan(values: dict[str, float | None], layout: str) -> Values:
    """JSON's null is NaN."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def by_bench(given: list[Result]) -> LayerBatch:
    columns = suites.columns([(one.job, one, None) for one in given])
    stages, last = (suites.suite(columns, THRESHOLD, layout) for layout in ("stages", "last"))
    found = LayerBatch()
    for layout, rows in (("md", markdown(stages, 0)), ("csv", csv_of(stages)), ("json", json_of(stages)["stages"])):
        across = {line.pop("stage"): line for line in rows}
        found[layout] = (
            list(across["top1"]),
            [
                nan({line: number(across[line][name]) for line in across if line.endswith("Average")}, layout)
                for name in NAMES
            ],
        )
    for layout, rows in (
        ("md, last", markdown(last, 0)),
        ("csv, last", csv_of(last)),
        ("json, last", json_of(last)["models"]),
    ):
        (key,) = {label(cells.reading_of(cells.deepest(one)), "purity") for one in given}
        found[layout] = [line["model"] for line in rows], [nan({"deepest": number(line[key])}, layout) for line in rows]
    at_threshold, _, _ = console(stages).partition("F 1%")
    lines = [line.split() for line in at_threshold.splitlines() if "Average" in line]
    found["table"] = NAMES, [{words[0]: float(words[i]) for words in lines} for i in (1, 2, 3)]
    return found


def by_epochs(given: list[Result]) -> LayerBatch:
    page, found = epochs.epochs(given, THRESHOLD), LayerBatch()
    lines = markdown(page, 0)
    averages = [name for name in lines[0] if name.endswith("Average")]
    called = [f"net epoch {line['epoch']}" for line in lines]
    found["md"] = (
        called,
        [
            {name: float(line[name]) for name in averages} | {"deepest": float(line["purity"].rstrip("*"))}
            for line in lines
        ],
    )
    for layout, rows in (("csv", csv_of(page)), ("json", json_of(page)["epochs"])):
        staged = [(f"net epoch {r['epoch']}", label(r["reading"], "Average"), r["average"]) for r in rows if r["stage"]]
        found[layout] = (
            list(dict.fromkeys(name for name, *_ in staged)),
            [
                nan({label: number(value) for name, label, value in staged if name == wanted}, layout)
                for wanted in NAMES
            ],
        )
    return found


def by_correlate(given: list[Result]) -> LayerBatch:
    data = correlation.points(given, THRESHOLD)
    page = Report(correlation.correlation(data).tables)
    found = LayerBatch()
    for layout, rows in (("md", markdown(page, 1)), ("json", json_of(page)["points"])):
        values = []
        for line in rows:
            one = {name: number(line[name]) for name in data.kinds if name.endswith("Average")}
            values.append(nan({**one, "deepest": number(line["last"])}, layout))
        found[layout] = NAMES, values
    return found


def by_diff(given: list[Result]) -> LayerBatch:
    side = [diff.StoredResult(Path(one.weights), one) for one in given]
    page, found = diff.diff(side, side, threshold=THRESHOLD).report(), LayerBatch()
    lines = [line for line in markdown(page, 0) if line["measure"] == "purity"]
    found["md"] = (
        list(dict.fromkeys(line["job"] for line in lines)),
        [
            {line["stage"]: float(line["new"]) for line in lines if line["job"] == name and "Average" in line["stage"]}
            for name in NAMES
        ],
    )
    for layout, rows in (("csv", csv_of(page)), ("json", json_of(page)["cells"])):
        names = list(dict.fromkeys(line["job"] for line in rows))
        last = [cells.deepest(one).module for one in given]
        found[layout] = (
            names,
            [
                nan(
                    {"deepest": number(next(r["new"] for r in rows if r["job"] == name and r["layer"] == module))},
                    layout,
                )
                for name, module in zip(names, last, strict=True)
            ],
        )
    return found


def by_figures(given: list[Result]) -> LayerBatch:
    rows = cells.frame(given, THRESHOLD)
    deepest = rows[rows["deepest"]]
    return {"frame": (deepest["name"].tolist(), [{"deepest": value} for value in deepest["purity"]])}


COMMANDS = {
    "score and show": by_score, "bench": by_bench, "epochs": by_epochs, "correlate": by_correlate, "diff": by_diff,
    "plot": by_figures,
}  # fmt: skip


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_the_same_in_every_format(command: str, kind: str, silent: bool) -> None:
    given = results(kind, silent)
    expected = [truth(one) for one in given]
    if silent:
        assert any(math.isnan(value) for value in expected[1].values())
    seen = COMMANDS[command](given)
    said: set[str] = set()
    for layout, (names, values) in seen.items():
        assert names == NAMES, layout
        assert len(values) == 3
        for mine, true in zip(values, expected, strict=True):
            assert mine, layout
            assert mine == pytest.approx({name: true[name] for name in mine}, abs=6e-4, nan_ok=True), layout
            said |= set(mine)
    assert said == ({"deepest"} if command == "plot" else {*expected[0]})


def test_a_sweep_has_the_same_names_and_values() -> None:
    given = results("readings", silent=True)
    page = sweep.sweep(given)
    titles = [table.title for table in page.tables if table.aim == "people"]
    assert titles == NAMES
