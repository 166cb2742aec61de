"""Figures that can go into a paper. `FIGURES` are those that `purity plot --figure` offers, in the order of drawing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


NORMAL_95 = 1.96
"""Standard errors on each side of a 95 % interval."""


class Scored(NamedTuple):
    """`cells.frame` of results at one threshold: of the layers asked for, and of all; `grid` is at every threshold."""

    rows: pd.DataFrame
    every: pd.DataFrame
    grid: pd.DataFrame
    against_rate: bool = False


def _stages(scored: Scored) -> Figure:
    from purity_cli.figures import charts

    return charts.stage_curve(scored.rows)


def _heatmap(scored: Scored) -> Figure:
    from purity_cli.figures import charts

    return charts.heatmap(scored.rows)


def _accuracy(scored: Scored) -> Figure:
    from purity_cli.figures import charts

    return charts.against_accuracy(scored.every)


def _sweep(scored: Scored) -> Figure:
    from purity_cli.figures import charts

    return charts.threshold_sweep(scored.grid, against_rate=scored.against_rate)


FIGURES: dict[str, Callable[[Scored], Figure]] = {
    "stages": _stages,
    "heatmap": _heatmap,
    "accuracy": _accuracy,
    "sweep": _sweep,
}
"""One entry each; one that the results do not allow raises a PurityError."""
