"""Purity against the threshold: the rows of a sweep, and the threshold at which the layers differ most."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from purity_cli import tables
from purity_cli.errors import PurityError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd


class Suggestion(NamedTuple):
    """A threshold, the spread D of the layers' purity there, and whether too little fired to trust it."""

    threshold: float
    spread: float
    starved: bool

    def __str__(self) -> str:
        note = f", although some layer fires less than {tables.ENOUGH} times per channel" if self.starved else ""
        return f"{self.threshold:g}: the layers differ most, by a standard deviation of {self.spread:.3f}{note}"


def at(rows: pd.DataFrame, thresholds: Sequence[float]) -> pd.DataFrame:
    """The rows at these thresholds; PurityError where the counts lack one."""
    wanted = {i for threshold in thresholds for i in tables.at(rows, threshold).index}
    return rows[rows.index.isin(wanted)]


def only(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of layers whose stage or path is one of the names, or matches it as a glob; PurityError for none."""
    known = [{str(stage), layer} for stage, layer in zip(rows["stage"], rows["layer"], strict=True)]
    chosen = np.zeros(len(rows), dtype=bool)
    for name in names:
        found = np.array([bool(fnmatch.filter(both, name)) for both in known])
        if not found.any():
            there = list(dict.fromkeys(tables.labels(rows)))
            raise PurityError(f"No layer {name!r} was scored, only {', '.join(there)}.{did_you_mean(name, there)}")
        chosen |= found
    return rows[chosen]


def suggest(rows: pd.DataFrame) -> Suggestion:
    """The threshold at which the layers of one result differ most, beyond what chance alone explains.

    With F_l(t) the purity of layer l of L, s_l(t) its jackknife standard error and F(t) the mean over layers, the
    criterion is the largest D(t), where

        D(t)^2 = 1/(L - 1) sum_l (F_l(t) - F(t))^2 - 1/L sum_l s_l(t)^2,

    the variance between layers less the mean variance that sampling images puts there; the smaller t wins a tie.
    Only thresholds compete at which every layer fires `tables.ENOUGH` times per channel, since below that F is low for
    want of firings; where there are none, those at which every layer's F and s are known, and `starved` is true.
    Layers that fire at no threshold, and such of one channel, take no part. PurityError where fewer than two are
    left, or no threshold is.
    """
    name = rows["model"].iloc[0]
    known = rows.groupby("layer")["purity"].transform("count") > 0
    rows = rows[known]
    layers = rows["layer"].nunique()
    if layers < 2:
        raise PurityError(f"{name} has {layers} layer{'s' * (layers != 1)} that fired: --suggest compares two or more.")
    complete = rows.groupby("threshold")["se"].transform("count") == layers
    fed = ~rows["threshold"].isin(tables.starved(rows)["threshold"])
    starved = not (complete & fed).any()
    candidates = rows[complete if starved else complete & fed]
    if candidates.empty:
        raise PurityError(
            f"At no threshold do all {layers} layers of {name} fire: score more images or lower thresholds."
        )
    at_threshold = candidates.assign(variance=candidates["se"] ** 2).groupby("threshold")
    squared = at_threshold["purity"].var(ddof=1) - at_threshold["variance"].mean()
    best = int(squared.to_numpy().argmax())
    return Suggestion(float(squared.index[best]), float(np.sqrt(max(squared.iloc[best], 0.0))), starved)
