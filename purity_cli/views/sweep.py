"""Purity against the threshold, and the threshold at which the layers differ most."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from purity_cli.errors import PurityError, did_you_mean
from purity_cli.report import Report, Table, number
from purity_cli.results import Layer, Result
from purity_cli.stats import ENOUGH
from purity_cli.views import cells
from purity_cli.views.layers import every_threshold, worth


class Suggestion(NamedTuple):
    """A threshold, the spread D of the layers' purity there, and whether too little fired to trust it."""

    threshold: float
    spread: float
    starved: bool

    def __str__(self) -> str:
        note = f", although some layer fires less than {ENOUGH} times per channel" if self.starved else ""
        return f"{self.threshold:g}: the layers differ most, by a standard deviation of {self.spread:.3f}{note}"


def sweep(results: Sequence[Result], *, suggested: bool = False) -> Report:
    """A row per threshold and a column per layer, in a table per result; with `suggested`, `suggest` in words."""
    tables, notes = [every_threshold(results)], []
    for place, (name, result) in enumerate(zip(cells.names(results), results, strict=True)):
        curves = {one.name: cells.curve(result, one) for one in result.layers if one.counts is not None}
        least = {one.name: ENOUGH * one.channels for one in result.layers}
        grid = [{"t": t, **{name: curves[name][i].purity for name in curves}} for i, t in enumerate(result.thresholds)]
        marks = {
            (i, name): "starved"
            for name, curve in curves.items()
            for i, one in enumerate(curve)
            if 0 < (one.activations or 0) < least[name]
        }
        columns = [number("t", digits=None), *(number(name, bar=True) for name in curves)]
        title = name if len(results) > 1 else ""
        tables.append(Table(f"sweep{place}", columns, grid, title=title, marks=marks, aim="people"))
        notes += [cells.summary(result), *cells.remarks(result)]
        if suggested:
            notes.append(f"Suggested threshold for {name}: {suggest(result)}.")
    notes += _worth(results, starved=any(table.marks for table in tables))
    return Report(tables, notes)


def _worth(results: Sequence[Result], starved: bool) -> list[str]:
    """Up to which threshold the numbers can be trusted."""
    notes = [f"N < {ENOUGH} c where a * stands, so that F is biased low; NaN: nothing fires."] if starved else []
    for name, result in zip(cells.names(results), results, strict=True):
        one = worth(result, result.thresholds[-1])
        dead = f"{', '.join(one.dead)}: nothing fires at any threshold. " if one.dead else ""
        others = "every other layer" if one.dead else "every layer"
        up_to = f"up to the threshold {one.enough:g}" if one.enough is not None else "at no stored threshold"
        if dead or one.enough != result.thresholds[-1]:
            notes.append(f"{name}: {dead}{others} has N >= {ENOUGH} c {up_to}.")
    return notes


def at(result: Result, thresholds: Sequence[float]) -> Result:
    """The result at these thresholds alone; PurityError where its counts lack one."""
    places = sorted({cells.index(result, threshold) for threshold in thresholds})
    layers = tuple(
        layer if layer.counts is None else replace(layer, counts=layer.counts[:, places]) for layer in result.layers
    )
    return replace(result, thresholds=tuple(result.thresholds[i] for i in places), layers=layers)


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
        kept = tuple(layer for layer in result.layers if any(_matches(layer, name) for name in wanted))
        found += [replace(result, layers=kept)] if kept else []
    return found


def _matches(layer: Layer, pattern: str) -> bool:
    return bool(fnmatch.filter([layer.name, layer.module], pattern))


def suggest(result: Result) -> Suggestion:
    """The threshold at which the layers of one result differ most, beyond what chance alone explains.

    With F_l(t) the purity of layer l of L, s_l(t) its jackknife standard error and F(t) the mean over layers, the
    criterion is the largest D(t), where

        D(t)^2 = 1/(L - 1) sum_l (F_l(t) - F(t))^2 - 1/L sum_l s_l(t)^2,

    the variance between layers less the mean variance that sampling images puts there; the smaller t wins a tie.
    Only thresholds compete at which every layer fires `ENOUGH` times per channel, since below that F is low for
    want of firings; where there are none, those at which every layer's F and s are known, and `starved` is true.
    Layers that fire at no threshold, and such of one channel, take no part. PurityError where fewer than two are
    left, or no threshold is.
    """
    rows = [cells.curve(result, one) for one in result.layers if one.counts is not None]
    channels = [one.channels for one in result.layers if one.counts is not None]
    purity, se, fired = (
        np.array([[getattr(one, f) for one in row] for row in rows]) for f in ("purity", "se", "activations")
    )
    known = np.isfinite(purity).any(1) if rows else np.zeros(0, bool)
    n = int(known.sum())
    if n < 2:
        raise PurityError(f"{result.model} has {n} layer{'s' * (n != 1)} that fired: --suggest compares two or more.")
    purity, se, fired = purity[known], se[known], fired[known]
    complete = np.isfinite(se).all(0)
    fed = complete & (fired >= ENOUGH * np.array(channels)[known, None]).all(0)
    starved = not fed.any()
    if not complete.any():
        raise PurityError(
            f"At no threshold do all {n} layers of {result.model} fire: score more images or lower thresholds."
        )
    places = np.flatnonzero(complete if starved else fed)
    squared = purity[:, places].var(0, ddof=1) - (se[:, places] ** 2).mean(0)
    best = int(squared.argmax())
    return Suggestion(result.thresholds[places[best]], float(np.sqrt(max(squared[best], 0.0))), starved)
