"""Purity against the threshold, and the threshold at which the layers differ most."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from purity_cli.errors import PurityError, did_you_mean
from purity_cli.report import Report, Row, Table, number
from purity_cli.results import Layer, Result
from purity_cli.stats import ENOUGH
from purity_cli.views import cells
from purity_cli.views.layers import caveats, low, tidy


class Suggestion(NamedTuple):
    """A threshold, the spread D of the layers' purity there, and whether too little fired to trust it."""

    threshold: float
    spread: float
    starved: bool

    def __str__(self) -> str:
        note = f", although some layer fires less than {ENOUGH} times per channel" if self.starved else ""
        return f"{self.threshold:g}: the layers differ most, by a standard deviation of {self.spread:.3f}{note}"


def sweep(results: Sequence[Result], thresholds: Sequence[float] | None = None, *, suggested: bool = False) -> Report:
    """A row per threshold and a column per layer, in a table per result; with `suggested`, `suggest` in words.

    PurityError where the counts of a result lack one of the thresholds.
    """
    every = cells.rows(results, thresholds)
    tables, notes = [Table("rows", tidy(cells.measures(results)), every, aim="data")], list[str]()
    called = cells.names(results)
    for place, (name, result) in enumerate(zip(called, results, strict=True)):
        own = [row for row in every if row["result"] == place and "purity" in row]
        by_threshold: dict[float, dict[str, Row]] = {}
        for row in own:
            by_threshold.setdefault(row["threshold"], {})[row["label"]] = row
        grid = [{"t": t, **{label: row["purity"] for label, row in at_.items()}} for t, at_ in by_threshold.items()]
        marks = {
            (i, label): "starved"
            for i, at_ in enumerate(by_threshold.values())
            for label, row in at_.items()
            if low(row)
        }
        labels = dict.fromkeys(row["label"] for row in own)
        columns = [number("t", digits=None), *(number(label, bar=True) for label in labels)]
        title = name if len(results) > 1 else ""
        tables.append(Table(f"sweep{place}", columns, grid, title=title, marks=marks, aim="people"))
        notes += [cells.summary(result), *cells.remarks(result)]
        if suggested:
            notes.append(f"Suggested threshold for {name}: {suggest(result, thresholds)}.")
    if any(table.marks for table in tables):
        notes.append(f"N < {ENOUGH} c where a * stands, so that F is biased low; NaN: nothing fires.")
    for name, result in zip(called, results, strict=True):
        one = caveats(result, result.thresholds[-1])
        dead = f"{', '.join(one.dead)}: nothing fires at any threshold. " if one.dead else ""
        others = "every other layer" if one.dead else "every layer"
        up_to = f"up to the threshold {one.enough:g}" if one.enough is not None else "at no stored threshold"
        if dead or one.enough != result.thresholds[-1]:
            notes.append(f"{name}: {dead}{others} has N >= {ENOUGH} c {up_to}.")
    return Report(tables, notes)


def only(results: Sequence[Result], wanted: Sequence[str]) -> list[Result]:
    """The results with the layers whose row, stage or path is one of the names, or matches it as a glob.

    A result that has none of them is left out; PurityError for a name that none has.
    """
    there = list(dict.fromkeys(layer.name for result in results for layer in result.layers))
    for name in wanted:
        if not any(_matches(layer, name) for result in results for layer in result.layers):
            raise PurityError(f"No layer {name!r} was scored, only {', '.join(there)}.{did_you_mean(name, there)}")
    found = []
    for result in results:
        layers = tuple(layer for layer in result.layers if any(_matches(layer, name) for name in wanted))
        found += [replace(result, layers=layers)] if layers else []
    return found


def _matches(layer: Layer, pattern: str) -> bool:
    return bool(fnmatch.filter([layer.name, layer.module], pattern))


def suggest(result: Result, thresholds: Sequence[float] | None = None) -> Suggestion:
    """The threshold at which the layers of one result differ most, beyond what chance alone explains.

    With F_l(t) the purity of layer l of L, s_l(t) its jackknife standard error and F(t) the mean over layers, the
    criterion is the largest D(t), where

        D(t)^2 = 1/(L - 1) sum_l (F_l(t) - F(t))^2 - 1/L sum_l s_l(t)^2,

    the variance between layers less the mean variance that sampling images puts there; the smaller t wins a tie.
    Only thresholds compete at which every layer fires `ENOUGH` times per channel, since below that F is low for
    want of firings; where there are none, those at which every layer's F and s are defined, and `starved` is true.
    Layers that fire at no threshold, and such of one channel, take no part. PurityError where fewer than two are
    left, or no threshold is.
    """
    rows = [row for row in cells.rows([result], thresholds) if "purity" in row]
    grid = list(dict.fromkeys(row["threshold"] for row in rows))
    shape = (-1, max(1, len(grid)))
    purity, se, fired, channels = (
        np.array([row[key] for row in rows], dtype=float).reshape(shape)
        for key in ("purity", "se", "activations", "channels")
    )
    defined = np.isfinite(purity).any(1)
    n = int(defined.sum())
    if n < 2:
        raise PurityError(f"{result.model} has {n} layer{'s' * (n != 1)} that fired: --suggest compares two or more.")
    purity, se, fired, channels = (values[defined] for values in (purity, se, fired, channels))
    complete = np.isfinite(se).all(0)
    fed = complete & (fired >= ENOUGH * channels).all(0)
    starved = not fed.any()
    if not complete.any():
        raise PurityError(
            f"At no threshold do all {n} layers of {result.model} fire: score more images or lower thresholds."
        )
    places = np.flatnonzero(complete if starved else fed)
    squared = purity[:, places].var(0, ddof=1) - (se[:, places] ** 2).mean(0)
    best = int(squared.argmax())
    return Suggestion(grid[places[best]], float(np.sqrt(max(squared[best], 0.0))), starved)
