"""The page of `purity report`: the views of stored results as one report of parts, with the data of their charts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from purity_cli.errors import PurityError
from purity_cli.report import Chart, Report, Row, Table, text
from purity_cli.results import Result
from purity_cli.stats import RATE
from purity_cli.views import cells
from purity_cli.views import epochs as trainings
from purity_cli.views.board import READING, board, compared
from purity_cli.views.diff import StoredResult
from purity_cli.views.layers import layers, low

CURVES = 12
"""Results up to which their stages stand in one figure."""
SKIPPED = 50
"""Images left out that are named."""
APART = ("images_skipped", "metrics", "preprocessing", "job", "key", "notes")
"""What of a provenance has another form on the page."""
NORMAL_95 = 1.96
"""Standard errors on each side of a 95 % interval."""


def summary(
    found: Sequence[StoredResult], threshold: float, rate: float = RATE, failures: Iterable[str] = ()
) -> Report:
    """The table of all results, and what to be careful about."""
    results = [one.result for one in found]
    every = cells.every_row(results, threshold, rate)
    links = {i: f"result-{i + 1}" for i in range(len(found))}
    report = board(results, every, threshold, rate, links)
    return replace(report, notes=[*failures, *report.notes])


def page(
    found: Sequence[StoredResult],
    threshold: float,
    rate: float = RATE,
    *,
    beside: Sequence[Report] = (),
    failures: Iterable[str] = (),
    pictures: Mapping[int, Sequence[tuple[str, bytes]]] | None = None,
) -> Report:
    """All of it. `beside` are parts on published values; `pictures` are a result's, by its place, with captions."""
    results = [one.result for one in found]
    names = cells.names(results)
    whole = summary(found, threshold, rate, failures)
    table, *data = whole.tables
    plot, ranked = compared(results, table)
    parts = [
        Report([], whole.once or ["Nothing stands out."], title="What to be careful about"),
        Report([], READING, title="How to read this"),
        *_curves(results, names, threshold),
        *([ranked] if ranked.tables else []),
        *_trainings(found, threshold, rate),
        *beside,
        *(_panel(i, names[i], one, threshold, rate, (pictures or {}).get(i, ())) for i, one in enumerate(results)),
    ]
    return replace(whole, tables=[replace(table, plot=plot if len(results) > 1 else None), *data], parts=parts)


def _line(name: str, rows: Iterable[Row], x: Callable[[Row], float], errors: float = NORMAL_95) -> dict[str, Any]:
    """F of rows where it is defined: [x, F, so many standard errors, 1 where F is biased low]."""
    points = [
        [x(row), _short(row["purity"]), _short(errors * row["se"]) if cells.is_number(row["se"]) else 0, int(low(row))]
        for row in rows
        if cells.is_number(row.get("purity"))
    ]
    return {"name": name if points else f"{name}: nothing fires", "points": points}


def _short(value: float) -> float:
    """Enough digits for a drawing."""
    return round(value, 4)


def _curves(results: Sequence[Result], names: Sequence[str], threshold: float) -> Iterator[Report]:
    """The stages of all results in one figure, where they are few; a training's checkpoints have their own."""
    lines, stages = [], dict[str, None]()
    rows = cells.rows(results, threshold)
    for place, (name, one) in enumerate(zip(names, results, strict=True)):
        # In the reading that the result has most of.
        most = max(cells.stages_of(one).values(), key=len, default=[])
        if len(most) > 1 and cells.epoch_of(one.job, one) is None:
            labels = [layer.name for layer in most]
            own = [row for row in rows if row["result"] == place and row["label"] in labels]
            lines.append(_line(name, own, lambda row: cells.depth(row["stage"])))
            stages |= dict.fromkeys(row["stage"] for row in own)
    if 1 < len(lines) <= CURVES:
        ticks = sorted((cells.depth(stage), stage) for stage in stages)
        caption = (
            f"Purity of {len(lines)} results from stage to stage, with 95 % intervals; hollow where it is biased low"
        )
        chart = Chart(caption, "lines", {"x": "stage", "ticks": ticks, "bars": True, "wide": True, "lines": lines})
        yield Report([], title="Purity from stage to stage", charts=[chart])


def _trainings(found: Sequence[StoredResult], threshold: float, rate: float) -> Iterator[Report]:
    """Each training: checkpoints of one network that lie in one folder."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for one in found:
        if cells.epoch_of(one.result.job, one.result) is not None:
            key = (one.folder.resolve().parent, one.result.source, one.result.model, one.result.dataset)
            groups.setdefault(key, []).append(one.result)
    for results in groups.values():
        title = f"Training of {results[0].model}"
        if len(results) < 2:
            continue
        try:
            view = trainings.epochs(results, threshold, rate)
        except PurityError as error:
            yield Report([], [str(error)], title)
            continue
        by_label: dict[str, list[Row]] = {}
        for row in view.tables[0].rows:
            by_label.setdefault(row["label"], []).append(row)
        lines = [_line(label, rows, lambda row: row["epoch"], 1) for label, rows in by_label.items()]
        caption = f"Purity of {results[0].model} over {len(results)} checkpoints, within one standard error"
        chart = Chart(caption, "lines", {"x": "epoch", "bars": False, "wide": True, "lines": lines})
        yield Report(view.tables, view.notes, title, charts=[chart])


def _panel(
    place: int, name: str, result: Result, threshold: float, rate: float, pictures: Sequence[tuple[str, bytes]]
) -> Report:
    """All that is known of one result."""
    view = layers([result], threshold, rate)
    skipped = [image for image in result.provenance.get("images_skipped") or () if isinstance(image, Mapping)]
    left_out = Table("skipped", [text("path", fold=True), text("reason", fold=True)], skipped[:SKIPPED],
                     "Images left out" + (f", the first {SKIPPED}" if len(skipped) > SKIPPED else ""))  # fmt: skip
    tables = [view.tables[0], *([left_out] if skipped else []), _provenance(result)]
    notes = view.once
    return Report(
        tables, notes[1:], name, notes[0], charts=list(_charts(name, result, threshold)), pictures=dict(pictures),
        folded=True, id=f"result-{place + 1}",
    )  # fmt: skip


def _charts(name: str, result: Result, threshold: float) -> Iterator[Chart]:
    """F from layer to layer and against the threshold, and the channels of every layer."""
    rows = [row for row in cells.rows([result]) if "purity" in row]
    here = [row for row in cells.rows([result], threshold) if "purity" in row]
    if not here:
        return
    readings = cells.stages_of(result)
    if readings:
        lines = [
            _line(reading, [row for row in here if row["reading"] == reading], lambda row: cells.depth(row["stage"]))
            for reading in readings
        ]
        ticks = sorted({(cells.depth(row["stage"]), row["stage"]) for row in here if row["stage"]})
    else:
        order = {row["label"]: i + 1 for i, row in enumerate(here)}
        lines = [_line("", here, lambda row: order[row["label"]])]
        ticks = [(i, str(i)) for i in order.values()]
    ticks = ticks[:: -(-len(ticks) // 12)]
    caption = f"Purity of {name} from layer to layer at the threshold {threshold:g}, with 95 % intervals"
    across = "stage" if readings else "layer, in the order of the table"
    yield Chart(caption, "lines", {"x": across, "ticks": ticks, "bars": True, "lines": lines})
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    lines = [_line(label, some, lambda row: row["threshold"], 1) for label, some in by_label.items()]
    caption = f"Purity of {name} against the threshold, within one standard error"
    yield Chart(caption, "lines", {"x": "threshold", "bars": False, "lines": lines})
    for row, layer in zip(here, (one for one in result.layers if one.counts is not None), strict=True):
        counts = layer.counts[:, cells.index(result, threshold)].sum(0).tolist()
        caption = (
            f"Channels of {row['label']}, {row['live']} of {row['channels']} live in N = {row['activations']:,} firings"
        )
        yield Chart(caption, "channels", {"counts": counts})


def _provenance(result: Result) -> Table:
    about = {
        "pixels": result.preprocessing,
        **{name.replace("_", " "): value for name, value in result.provenance.items() if name not in APART},
    }
    rows: list[Row] = [
        {"what": name, "value": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}
        for name, value in about.items()
        if value not in (None, [])
    ]
    rows += [
        {"what": f"metric {one['metric']}", "value": f"{one['convention']} ({one['reference']})"}
        for one in result.provenance.get("metrics") or ()
        if isinstance(one, Mapping) and {"metric", "convention", "reference"} <= set(one)
    ]
    return Table("provenance", [text("what"), text("value", fold=True)], rows, "Where it comes from")
