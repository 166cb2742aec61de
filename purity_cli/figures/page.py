"""The page of `purity report`: the views of stored results, with their figures, as one report of parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from purity_cli.errors import PurityError
from purity_cli.figures import light
from purity_cli.report import Report, Row, Table, text
from purity_cli.results import Result
from purity_cli.views import cells, comparison, leaderboard
from purity_cli.views import epochs as courses
from purity_cli.views.diff import StoredResult
from purity_cli.views.layers import layers

CURVES = 12
"""Results up to which their stages stand in one figure."""
SKIPPED = 50
"""Images left out that are named."""
APART = ("images_skipped", "metrics", "preprocessing", "job", "key", "notes")
"""What of a provenance has another form on the page."""


def summary(found: Sequence[StoredResult], threshold: float, failures: Iterable[str] = ()) -> Report:
    """The table of all results, and what to be careful about."""
    links = {i: f"result-{i + 1}" for i in range(len(found))}
    board = leaderboard.leaderboard([one.result for one in found], threshold, links)
    return replace(board, notes=[*failures, *board.notes])


def page(
    found: Sequence[StoredResult],
    threshold: float,
    *,
    references: Sequence[str] | None = None,
    failures: Iterable[str] = (),
    pictures: Mapping[int, Sequence[tuple[str, bytes]]] | None = None,
) -> Report:
    """All of it; `pictures` are those of a result by its place, with what they show.

    `references` are compared with; None for each table of the paper that has these networks, on its images.
    """
    results = [one.result for one in found]
    names = cells.names(results)
    board = summary(found, threshold, failures)
    table, *data = board.tables
    plot, ranked = leaderboard.compared(results, table)
    known = _references(results) if references is None else references
    parts = [
        Report([], board.said or ["Nothing stands out."], title="What to be careful about"),
        Report([], leaderboard.READING, title="How to read this"),
        *_curves(results, names, threshold),
        *([ranked] if ranked.tables else []),
        *_trainings(found, threshold),
        *(_beside(results, name, threshold) for name in known),
        *(_panel(i, names[i], one, threshold, (pictures or {}).get(i, ())) for i, one in enumerate(results)),
    ]
    return replace(board, tables=[replace(table, plot=plot if len(results) > 1 else None), *data], parts=parts)


def _curves(results: Sequence[Result], names: Sequence[str], threshold: float) -> Iterator[Report]:
    """The stages of all results in one figure, where they are few; a training's checkpoints have their own."""
    staged = [
        (name, one)
        for name, one in zip(names, results, strict=True)
        if len(_stages(one)) > 1 and cells.epoch_of(one.job, one) is None
    ]
    if not 1 < len(staged) <= CURVES:
        return
    most = max((_stages(one) for _, one in staged), key=len)
    lines = [
        light.Line(name, [light.point(one, layer, threshold, cells.depth(layer.stage) - 1) for layer in _stages(one)])
        for name, one in staged
    ]
    ticks = [(float(cells.depth(layer.stage) - 1), str(layer.stage)) for layer in most]
    draw = partial(light.chart, lines, ticks, (-0.3, ticks[-1][0] + 0.3), "stage", bars=True, size=(540, 300))
    title = "Purity from stage to stage"
    caption = f"Purity of {len(lines)} results from stage to stage, with 95 % intervals; hollow where it is biased low"
    yield Report([], title=title, figures={caption: draw})


def _stages(result: Result) -> list[Any]:
    """The stages in the reading that the result has most of."""
    return max(cells.stages_of(result).values(), key=len, default=[])


def _trainings(found: Sequence[StoredResult], threshold: float) -> Iterator[Report]:
    """The course of each training: of checkpoints of one network that lie in one folder."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for one in found:
        if cells.epoch_of(one.result.job, one.result) is not None:
            key = (one.folder.resolve().parent, one.result.source, one.result.model, one.result.dataset)
            groups.setdefault(key, []).append(one.result)
    for results in groups.values():
        if len(results) > 1:
            title = f"Training of {results[0].model}"
            try:
                view = courses.epochs(results, threshold)
            except PurityError as error:
                yield Report([], [str(error)], title)
                continue
            caption = f"Purity and accuracy of {results[0].model} over {len(results)} checkpoints"
            yield Report(view.tables, view.notes, title, figures={caption: partial(_course, results, threshold, view)})


def _course(results: Sequence[Result], threshold: float, view: Report) -> Any:
    from purity_cli.figures.charts import training_curve  # matplotlib takes its time, and most pages need none

    return training_curve(results, threshold, view)


def _references(results: Sequence[Result]) -> list[str]:
    """The paper's tables that have one of these networks, of such images."""
    columns, found = comparison.of_results(results), []
    for name in comparison.PAPER:
        images, _ = comparison.PAPERS_IMAGES[name]
        its = [one for one in columns if one.result and one.result.dataset.startswith(images)]
        if its and comparison.compare(its, comparison.reference(name), 0.5):
            found.append(name)
    return found


def _beside(results: Sequence[Result], name: str, threshold: float) -> Report:
    known = comparison.reference(name)
    view = comparison.comparison(comparison.of_results(results), name, known, threshold)
    return Report(view.tables, view.notes, f"Beside {'the paper: ' if name in comparison.PAPER else ''}{name}")


def _panel(place: int, name: str, result: Result, threshold: float, pictures: Sequence[tuple[str, bytes]]) -> Report:
    """All that is known of one result."""
    view = layers([result], threshold)
    figures: dict[str, Callable[[], Any]] = {}
    counted = [(i, one) for i, one in enumerate(result.layers) if one.counts is not None]
    if counted:
        stage = f"Purity of {name} from layer to layer at the threshold {threshold:g}, with 95 % intervals"
        figures[stage] = partial(light.stage_curve, result, threshold)
        figures[f"Purity of {name} against the threshold, within one standard error"] = partial(light.sweep, result)
    for i, one in counted:
        cell = cells.cell(result, one, threshold)
        caption = f"Channels of {one.name}, {cell.live} of {one.channels} live in N = {cell.activations:,} firings"
        figures[caption] = partial(light.channels, result, i, threshold)
    figures |= {caption: partial(bytes, content) for caption, content in pictures}
    skipped = [image for image in result.provenance.get("images_skipped") or () if isinstance(image, Mapping)]
    left_out = Table("skipped", [text("path", fold=True), text("reason", fold=True)], skipped[:SKIPPED],
                     "Images left out" + (f", the first {SKIPPED}" if len(skipped) > SKIPPED else ""))  # fmt: skip
    tables = [view.tables[0], *([left_out] if skipped else []), _provenance(result)]
    return Report(tables, view.said[1:], name, view.said[0], figures=figures, folded=True, id=f"result-{place + 1}")


def _provenance(result: Result) -> Table:
    about = {
        "pixels": result.preprocessing,
        **{name.replace("_", " "): value for name, value in result.provenance.items() if name not in APART},
    }
    rows: list[Row] = [
        {"what": name, "value": _said(value)} for name, value in about.items() if value not in (None, [])
    ]
    rows += [
        {"what": f"metric {one['metric']}", "value": f"{one['convention']} ({one['reference']})"}
        for one in result.provenance.get("metrics") or ()
        if isinstance(one, Mapping) and {"metric", "convention", "reference"} <= set(one)
    ]
    return Table("provenance", [text("what"), text("value", fold=True)], rows, "Where it comes from")


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
