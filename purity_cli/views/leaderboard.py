"""A row per result with all that is measured of it, and what to be careful about when rows are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from purity_cli.naming import label
from purity_cli.report import Column, Plot, Report, Row, Table, number, text
from purity_cli.results import Result
from purity_cli.stats import ENOUGH
from purity_cli.views import cells, ranks
from purity_cli.views.layers import TOP1, faults, place, tidy, worth, worths

LAST = "last"
SIZES = ("parameters", "channels", "map")
"""What needs no training: baselines of every measure."""
FEW = 8
"""Results up to which each is named by what is said of all."""
READING = (
    "F, feature purity, says how evenly a layer's channels share the firings that carry the predictions: 1 where all "
    "channels fire equally often, 0 where one makes all firings, NaN where nothing fires.",
    "A channel fires on an image where its part in the predicted class fills more than the threshold's share of the "
    "map, measured against that map's peak.",
    "C1 to C5 are the stages of a network, read before each reduction of the map; Average is the mean of their F, and "
    "last the deepest of them. conv:, block: and pool: are other readings of a stage, and other numbers.",
    "No labels are needed for F; top-1, which needs them, stands beside it for comparison.",
    "± is one standard error: the jackknife's over 20 groups of images for F, the binomial one for accuracies. The "
    "other measures have none.",
    f"A star marks F that is biased low: fewer than {ENOUGH} firings per channel, N < {ENOUGH} c. Point at "
    "it to see how many there were.",
    "A difference of less than two standard errors may be chance; F jk is F with the jackknife's estimate of its bias "
    "removed.",
    "The small charts show what is behind one F: a bar for each channel, or for a few neighbours, as high as its "
    "share of all firings; the line has the channels in order of their shares, and the dashes are where F would be 1.",
    "Ranks, 1 for the highest value, are within one data set; whether purity says more than a size that needs no "
    "training is seen by comparing their correlations, with the interval of each.",
    "High F alone does not make a network good: compare networks on the same images and pixels, at the same "
    "threshold, and at stages with maps of about the same size.",
)
"""How to read a page of results."""


def leaderboard(results: Sequence[Result], threshold: float, links: Mapping[int, str] | None = None) -> Report:
    """The table, with the page's report of each result by its place in `links`; the notes are the cautions."""
    rows: list[Row] = []
    marks: dict[tuple[int, str], str] = {}
    hints: dict[tuple[int, str], str] = {}
    for i, (name, result) in enumerate(zip(cells.names(results), results, strict=True)):
        rows.append({"model": name, **_row(result, threshold)})
        for key, hint in _starved(result, threshold):
            marks[i, key], hints[i, key] = "starved", hint
        hints |= {
            (i, key): f"Nothing fires at the threshold {threshold:g}."
            for key, value in rows[-1].items()
            if isinstance(value, float) and math.isnan(value) and f"{key}_se" in rows[-1]
        }
    table = Table("results", _columns(results, rows), rows, marks=marks, hints=hints, links=links or {})
    layers = Table("layers", tidy(cells.measures(results)), cells.rows(results, threshold), aim="data")
    return Report(
        [table, layers],
        list(cautions(results, threshold)),
        title=f"Feature purity of {_count(len({(one.source, one.model) for one in results}), 'network')}",
        lead=_lead(results, threshold),
        facts={"threshold": threshold},
    )


def quantities(results: Sequence[Result], rows: Sequence[Row]) -> list[str]:
    """The columns that can be set against each other: accuracy, purities, other measures, sizes."""
    purities = [key.removesuffix("_se") for key in _keys(rows) if key.endswith("_se") and not key.startswith("top")]
    return [TOP1, LAST, *(key for key in purities if key != LAST), *cells.measures(results), *SIZES]


def compared(results: Sequence[Result], board: Table) -> tuple[Plot, Report]:
    """What goes with what, within each data set: for a plot of any two columns of the table, and the results' ranks."""
    groups, titles = [result.dataset for result in results], {one.key: one.heading for one in board.columns}
    names = {key: titles[key] for key in quantities(results, board.rows) if key in titles}
    sets: dict[str, list[Row]] = {}
    for group, row in zip(groups, board.rows, strict=True):
        sets.setdefault(group, []).append(row)
    pairs = {group: ranks.correlations(rows, list(names)) for group, rows in sets.items()}
    said = {
        group: {(a, b): one.sentence(names[a], names[b]) for (a, b), one in found.items()}
        for group, found in pairs.items()
    }
    parts = [
        ranks.ranks(rows, names, pairs[group], f" on {group}" if len(sets) > 1 else "")
        for group, rows in sets.items()
        if len(rows) >= ranks.LEAST
    ]
    x = TOP1 if any(row[TOP1] is not None for row in board.rows) else "parameters"
    return Plot(x, LAST, groups, said), Report(
        [table for part in parts for table in part.tables],
        [note for part in parts for note in part.notes],
        title="Ranks side by side",
        lead="Does purity tell more than another measure, than the number of parameters, or than the size of the map?",
    )


def _row(result: Result, threshold: float) -> dict[str, Any]:
    last = cells.deepest(result)
    named = {layer.name: cells.cell(result, layer, threshold) for layer in result.layers if layer.stage}
    named |= cells.averages(result, threshold) | {LAST: cells.cell(result, last, threshold)}
    values: dict[str, Any] = {
        "source": result.source, "weights": result.weights, "dataset": result.dataset,
        "epoch": cells.epoch_of(result.job, result), "n_images": result.n_images,
    }  # fmt: skip
    for name, one in named.items():
        values |= {name: one.purity, f"{name}_se": one.se}
    for name, share in ((TOP1, result.top1), ("top5", result.top5)):
        error = None if share is None else math.sqrt(share * (100 - share) / result.n_images)
        values |= {name: share, f"{name}_se": error}
    about = result.provenance
    return {
        **values, **last.measures, "parameters": about.get("parameters"), "channels": last.channels,
        "map": last.height * last.width, "images_per_second": about.get("images_per_second"),
        "last_layer": last.module, "preprocessing": result.preprocessing,
    }  # fmt: skip


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _columns(results: Sequence[Result], rows: Sequence[Row]) -> list[Column]:
    purities = [key.removesuffix("_se") for key in _keys(rows) if key.endswith("_se")]
    # Other readings than the activation have the same stages once more.
    staged = sorted((key for key in purities if key not in (LAST, TOP1, "top5")), key=place)
    main = [
        text("model"), text("source", optional=True), text("weights", optional=True),
        text("dataset", "data set", optional=len({row["dataset"] for row in rows}) == 1),
        number("epoch", digits=None), number("n_images", "images", None),
        *(number(key, bar=True, error=f"{key}_se", optional=":" in key and ":" not in staged[0]) for key in staged),
        number(LAST, bar=True, error=f"{LAST}_se"),
        number(TOP1, "top-1", 2, error="top1_se"), number("top5", "top-5", 2, error="top5_se", optional=True),
        *map(number, cells.measures(results)),
        number("parameters", digits=None), number("channels", "channels of last", None, optional=True),
        number("map", "h x w of last", None, optional=True), number("images_per_second", "images/s", 1),
        text("last_layer", "module of last", optional=True),
        text("preprocessing", "pixels", optional=True, fold=True),
    ]  # fmt: skip
    return [part for one in main for part in (one, *([number(one.error, shown=False)] if one.error else []))]


def _starved(result: Result, threshold: float) -> Iterator[tuple[str, str]]:
    """The cells of a row that are biased low, and the firings of each."""
    last, low = cells.deepest(result), dict[str, str]()
    for layer in result.layers:
        fired = cells.cell(result, layer, threshold).activations
        if fired and fired < ENOUGH * layer.channels:
            hint = f"N = {fired:,} < {ENOUGH} c = {ENOUGH * layer.channels:,}: F is biased low."
            low[layer.name] = hint
            yield from ((layer.name, hint),) if layer.stage else ()
            yield from ((LAST, hint),) if layer is last else ()
    for reading, layers in cells.stages_of(result).items():
        named = [layer.name for layer in layers if layer.name in low]
        if named:
            yield label(reading, cells.AVERAGE), f"Biased low in {', '.join(named)}."


def _lead(results: Sequence[Result], threshold: float) -> str:
    n = sorted({result.n_images for result in results})
    images = f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,} to {n[-1]:,}"
    sets = list(dict.fromkeys(result.dataset for result in results))
    return f"{_count(len(results), 'result')} on {images} images of {_some(sets)}; F at the threshold {threshold:g}."


def cautions(results: Sequence[Result], threshold: float) -> Iterator[str]:
    """What of these results is hard to trust or to compare."""
    if len(results) <= FEW:
        yield from worths(results, threshold)
    else:
        yield from _worth(results, threshold)
    for name, values in (
        ("data sets", [result.dataset for result in results]),
        ("numbers of images", [f"{result.n_images:,}" for result in results]),
        ("pixels", [result.preprocessing for result in results]),
        ("precisions", [result.job.precision for result in results]),
    ):
        if len(set(values)) > 1:
            yield (
                f"The results are of {len(set(values))} different {name} ({_some(list(dict.fromkeys(values)))}): "
                "compare within one."
            )
    sizes = {one.height * one.width for one in map(cells.deepest, results)}
    if len(sizes) > 1:
        yield (
            f"The last maps have {min(sizes):,} to {max(sizes):,} positions: M, and so F, depends on the map's size."
        )
    known = [result for result in results if result.top1 is not None]
    if len(known) < len(results):
        yield f"{_count(len(results) - len(known), 'result')} of {len(results)} without accuracy."
    if len(results) <= ranks.FEW:
        yield f"{_count(len(results), 'result')} can hardly show what goes with what: see n and p beside correlations."
    untrained = [name for name, one in zip(cells.names(results), results, strict=True) if one.weights == "none"]
    if untrained:
        yield f"Random weights: {_some(untrained)}."
    courses = {result.model for result in results if cells.epoch_of(result.job, result) is not None}
    if courses:
        yield f"Checkpoints of one training depend on each other ({_some(sorted(courses))}): p says less than it seems."
    yield from _some_of(list(dict.fromkeys(remark for result in results for remark in cells.remarks(result))))


def _worth(results: Sequence[Result], threshold: float) -> Iterator[str]:
    """As `worths`, of too many results to name each."""
    known = dict(zip(cells.names(results), (worth(one, threshold) for one in results), strict=True))
    rows = sum(len(result.layers) for result in results)
    for field, said in faults(threshold).items():
        those = {name: len(getattr(one, field)) for name, one in known.items() if getattr(one, field)}
        if those:
            yield f"In {sum(those.values()):,} of {rows:,} layers, of {_some(list(those))}, {said}."


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 4
    return ", ".join(names) if rest < 2 else f"{', '.join(names[:4])} and {rest} more"


def _some_of(remarks: Sequence[str]) -> list[str]:
    rest = len(remarks) - FEW
    if rest < 2:
        return [*remarks]
    return [*remarks[:FEW], f"{rest} more remarks stand beside the models that they are of."]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
