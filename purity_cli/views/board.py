"""A row per result with all that is measured of it, what to be careful about, and what goes with what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from purity_cli.report import Column, Plot, Report, Row, Table, number, text
from purity_cli.results import Result
from purity_cli.stats import ENOUGH, RATE
from purity_cli.views import cells
from purity_cli.views.layers import FEW, TOP1, comparable, low, place, rate_title, some, tidy, trust

LAST = "last"
AGAINST = (TOP1, LAST)
"""Accuracy, and purity of the last stage: what other quantities stand beside."""
SIZES = ("parameters", "channels", "map")
"""What needs no training: baselines of every measure."""
LEAST = 3
"""Results from which on a correlation is shown."""
HARDLY = 10
"""Results up to which hardly any correlation can be told from chance."""
READING = (
    "F, feature purity, tells how evenly a layer's channels share the firings that carry the predictions: 1 where all "
    "channels fire equally often, 0 where one makes all firings, NaN where nothing fires. It needs no labels.",
    "A channel fires on an image where its part in the predicted class fills more than the threshold's share of the "
    "map, measured against that map's peak. How many fire depends on the map's size and on the training, and moves F.",
    "F 1% is F at the threshold at which one of a hundred pairs of image and channel fires (--rate changes it). It "
    "compares layers and networks at an equal number of firings.",
    "C1 to C5 are the stages of a network, read before each reduction of the map; Average is the mean of their F, and "
    "last the deepest of them. conv:, block: and pool: are other readings of a stage, and other numbers.",
    "± is one standard error: the jackknife's over 20 groups of images for F, the binomial one for accuracies. The "
    "other measures have none. A difference of less than two standard errors may be chance.",
    f"A star marks F that is biased low: fewer than {ENOUGH} firings per channel, N < {ENOUGH} c. Point at "
    "it to see how many there were.",
    "The strips show what is behind one F: a bar for each channel, as high as its share of all firings; the dashes are "
    "where all would stand if F were 1. Point at a bar for its channel; press it for the list of all channels.",
    "Ranks, 1 for the highest value, are within one data set. Whether purity tells more than a size that needs no "
    "training shows in a comparison of their correlations.",
    "High F alone does not make a network good: compare networks on the same images and pixels, and at stages with "
    "maps of about the same size.",
)
"""How to read a page of results."""


def board(
    results: Sequence[Result],
    every: Sequence[Row],
    threshold: float,
    rate: float = RATE,
    links: Mapping[int, str] | None = None,
) -> Report:
    """The table, from `cells.every_row` at the threshold; the notes are the cautions.

    `links` has the id of the page's part on each result, by its place.
    """
    names = cells.names(results)
    rows: list[Row] = []
    marks: dict[tuple[int, str], str] = {}
    hints: dict[tuple[int, str], str] = {}
    for i, (name, result) in enumerate(zip(names, results, strict=True)):
        own = _by_column([row for row in every if row["result"] == i])
        rows.append({"model": name, **_row(result, own)})
        for key, row in own.items():
            for shown, value in ((key, "purity"), (f"{key} rate", "purity_rate")):
                if low(row, value):
                    marks[i, shown] = "starved"
                if hint := _hint(row, value, threshold, rate, own.values()):
                    hints[i, shown] = hint
    table = Table("results", _columns(results, rows, rate), rows, marks=marks, hints=hints, links=links or {})
    tidy_rows = [row for row in every if row["layer"]]
    networks = len({(one.source, one.model) for one in results})
    return Report(
        [table, Table("layers", tidy(cells.measures(results), rate), tidy_rows, aim="data")],
        list(_cautions(results, every, threshold, rate, names)),
        title=f"Feature purity of {_count(networks, 'network')}",
        lead=_lead(results, threshold),
        facts={"threshold": threshold, "rate": rate},
    )


def _by_column(own: Sequence[Row]) -> dict[str, Row]:
    """The rows of one result that have a column: its stages and averages by their labels, and the deepest as `last`."""
    found = {row["label"]: row for row in own if row["stage"] or not row["layer"]}
    return found | {LAST: next(row for row in own if row.get("deepest"))}


def _hint(row: Row, key: str, threshold: float, rate: float, own: Iterable[Row]) -> str:
    """What a page says of a value that is not what it seems."""
    value, at_rate = row.get(key), key == "purity_rate"
    if value is None:
        return ""
    if math.isnan(value):
        return f"NaN, because {row['rate_reason']}." if at_rate else f"Nothing fires at the threshold {threshold:g}."
    if not low(row, key):
        return ""
    if at_rate:
        return f"About {rate * row['n_images']:.2g} firings per channel, fewer than {ENOUGH}: F is biased low."
    if not row["layer"]:
        stages = [one["label"] for one in own if one["layer"] and one["reading"] == row["reading"] and low(one)]
        return f"Biased low in {', '.join(dict.fromkeys(stages))}."
    return f"N = {row['activations']:,} < {ENOUGH} c = {ENOUGH * row['channels']:,}: F is biased low."


def _row(result: Result, own: Mapping[str, Row]) -> dict[str, Any]:
    last, about = cells.deepest(result), result.provenance
    values: dict[str, Any] = {
        "source": result.source, "weights": result.weights, "dataset": result.dataset,
        "epoch": cells.epoch_of(result.job, result), "n_images": result.n_images,
    }  # fmt: skip
    for name, row in own.items():
        values |= {name: row.get("purity"), f"{name}_se": row.get("se")}
        values |= {f"{name} rate": row.get("purity_rate"), f"{name} rate_se": row.get("purity_rate_se")}
    for name, share in ((TOP1, result.top1), ("top5", result.top5)):
        error = None if share is None else math.sqrt(share * (100 - share) / result.n_images)
        values |= {name: share, f"{name}_se": error}
    return {
        **values, **last.measures, "parameters": about.get("parameters"), "channels": last.channels,
        "map": last.height * last.width, "images_per_second": about.get("images_per_second"),
        "last_layer": last.module, "preprocessing": result.preprocessing,
    }  # fmt: skip


def _staged(results: Sequence[Result], rows: Sequence[Row]) -> list[str]:
    """The columns of stages and averages, in their order."""
    others = {LAST, TOP1, "top5", *(name.removesuffix("_se") for name in cells.measures(results))}
    keys = dict.fromkeys(key.removesuffix("_se") for row in rows for key in row if key.endswith("_se"))
    return sorted((key for key in keys if key not in others and " rate" not in key), key=place)


def _columns(results: Sequence[Result], rows: Sequence[Row], rate: float) -> list[Column]:
    # Other readings than the activation have the same stages once more.
    staged = _staged(results, rows)
    percent = rate_title(rate)[2:]
    main = [
        text("model"), text("source", optional=True), text("weights", optional=True),
        text("dataset", "data set", optional=len({row["dataset"] for row in rows}) == 1),
        number("epoch", digits=None), number("n_images", "images", None),
    ]  # fmt: skip
    for key in staged:
        main.append(number(key, bar=True, error=f"{key}_se", optional=":" in key and ":" not in staged[0]))
        main.append(number(f"{key} rate", f"{key} {percent}", error=f"{key} rate_se", optional=True))
    main += [
        number(LAST, bar=True, error=f"{LAST}_se"),
        number(f"{LAST} rate", f"{LAST} {percent}", error=f"{LAST} rate_se"),
        number(TOP1, "top-1", 2, error="top1_se"), number("top5", "top-5", 2, error="top5_se", optional=True),
        *map(number, cells.measures(results)),
        number("parameters", digits=None), number("channels", "channels of last", None, optional=True),
        number("map", "h x w of last", None, optional=True), number("images_per_second", "images/s", 1),
        text("last_layer", "module of last", optional=True),
        text("preprocessing", "pixels", optional=True, fold=True),
    ]  # fmt: skip
    return [part for one in main for part in (one, *([number(one.error, shown=False)] if one.error else []))]


def compared(results: Sequence[Result], table: Table) -> tuple[Plot, Report]:
    """What goes with what, within each data set: for a plot of any two columns of the table, and the results' ranks."""
    import pandas as pd

    headings = {one.key: one.heading for one in table.columns}
    staged = [part for key in (LAST, *_staged(results, table.rows)) for part in (key, f"{key} rate")]
    quantities = [key for key in (TOP1, *staged, *cells.measures(results), *SIZES) if key in headings]
    groups = [result.dataset for result in results]
    # Without a column, a quantity is NaN everywhere; text has no ranks.
    numbers = pd.DataFrame(table.rows).reindex(columns=quantities).apply(pd.to_numeric, errors="coerce")
    rho: dict[str, dict[str, dict[str, float]]] = {}
    tables: list[Table] = []
    for group in dict.fromkeys(groups):
        here = numbers[[one == group for one in groups]]
        varied = [key for key in quantities if here[key].count() >= LEAST and here[key].nunique() > 1]
        matrix = here[varied].corr("spearman", min_periods=LEAST)
        rho[group] = {a: {b: float(v) for b, v in column.dropna().items()} for a, column in matrix.items()}
        if len(here) >= LEAST and varied:
            where = f" on {group}" if len(set(groups)) > 1 else ""
            tables += _ranks(here[varied], rho[group], headings, [table.rows[i]["model"] for i in here.index], where)
    x = TOP1 if any(row[TOP1] is not None for row in table.rows) else "parameters"
    return Plot(x, LAST, groups, rho), Report(
        tables,
        ["`purity correlate` gives the interval and p of each of these correlations."] if tables else [],
        title="Ranks side by side",
        lead="Does purity tell more than another measure, than the number of parameters, or than the size of the map?",
    )


def _ranks(
    here: Any, rho: Mapping[str, Mapping[str, float]], headings: Mapping[str, str], models: Sequence[str], where: str
) -> Iterator[Table]:
    """Each quantity's rank correlation with accuracy and with purity, and each result's rank by every quantity."""
    beside = [other for other in AGAINST if other in rho]
    summary: list[Row] = []
    for name in here:
        line: dict[str, Any] = {"quantity": headings[name]}
        for other in (one for one in beside if one != name and one in rho[name]):
            line |= {f"n_{other}": int(here[[name, other]].dropna().shape[0]), f"rho_{other}": rho[name][other]}
        summary += [line] if len(line) > 1 else []
    columns = [
        column
        for other in beside
        for column in (
            number(f"rho_{other}", f"with {headings[other]}", 2, signed=True), number(f"n_{other}", "n", None)
        )
    ]  # fmt: skip
    if summary:
        title = f"Spearman's rank correlation{where}"
        yield Table("rank_correlations", [text("quantity"), *columns], summary, title)
    ranked = here.rank(ascending=False)
    lines = [
        {"model": model, **{key: int(rank) if rank == int(rank) else rank for key, rank in row.dropna().items()}}
        for model, (_, row) in zip(models, ranked.iterrows(), strict=True)
    ]
    lines.sort(key=lambda line: line.get(here.columns[0], math.inf))
    shown = [number(name, headings[name], None) for name in here]
    yield Table("ranks", [text("model"), *shown], lines, f"Ranks{where}, 1 for the highest")


def _lead(results: Sequence[Result], threshold: float) -> str:
    n = sorted({result.n_images for result in results})
    images = f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,} to {n[-1]:,}"
    sets = list(dict.fromkeys(result.dataset for result in results))
    return f"{_count(len(results), 'result')} on {images} images of {some(sets)}; F at the threshold {threshold:g}."


def _cautions(
    results: Sequence[Result], every: Sequence[Row], threshold: float, rate: float, names: Sequence[str]
) -> Iterator[str]:
    """What of these results is hard to trust or to compare."""
    yield from trust(results, every, threshold, rate, names)
    yield from comparable(results)
    sizes = {one.height * one.width for one in map(cells.deepest, results)}
    if len(sizes) > 1:
        yield f"The last maps have {min(sizes):,} to {max(sizes):,} positions: M, and so F, depends on the map's size."
    unlabelled = sum(result.top1 is None for result in results)
    if unlabelled:
        yield f"{_count(unlabelled, 'result')} of {len(results)} without accuracy."
    if len(results) <= HARDLY:
        yield f"{_count(len(results), 'result')} can hardly show what goes with what."
    untrained = [name for name, one in zip(names, results, strict=True) if one.weights == "none"]
    if untrained:
        yield f"Random weights: {some(untrained)}."
    remarks = list(dict.fromkeys(remark for result in results for remark in cells.remarks(result)))
    if len(remarks) > FEW + 1:
        remarks[FEW:] = [f"{len(remarks) - FEW} more remarks stand beside the models that they are of."]
    yield from remarks


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
