"""Purity and accuracy over the epochs of a training, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from purity_cli import tables
from purity_cli.epochs.choice import Choice
from purity_cli.figures.drawing import STYLE, in_legend, legends_below, panels, styles

HOLLOW: Any = {"color": "0.35", "marker": "o", "markerfacecolor": "none", "linestyle": ":"}
LINES: tuple[Any, ...] = ((0, (1, 1)), (0, (4, 2)))
LOGARITHMIC = 10
"""Ratio of the last epoch to the first from which on the axis is logarithmic."""


def training_curve(rows: pd.DataFrame, kept: Sequence[Choice], paper: pd.DataFrame | None = None) -> Figure:
    """Purity per layer with one standard error, and accuracy, against the epoch; `rows` as `table3.frame` gives them.

    Vertical lines mark the epochs of `kept`; `paper` has epoch, top1 and purity of the deepest layer.
    """
    epochs = sorted(set(rows["epoch"]))
    with mpl.rc_context(STYLE):
        figure, (left, right) = panels(2)
        looks = styles()
        for style, (_, layer) in zip(looks, rows.groupby("layer", sort=False), strict=False):
            known = layer.dropna(subset=["purity"])
            name = tables.labels(layer)[0] + ("" if len(known) else ", nothing fires")
            x, y, se = known["epoch"], known["purity"], known["se"].fillna(0)
            left.plot(x, y, label=in_legend(name), **style)
            left.fill_between(x, y - se, y + se, color=style["color"], alpha=0.15, linewidth=0)
        accuracy = rows.drop_duplicates("epoch").dropna(subset=["top1"])
        right.plot(accuracy["epoch"], accuracy["top1"], label="accuracy", **next(looks))
        if paper is not None:
            left.plot(paper["epoch"], paper["purity"], label="paper, last layer", **HOLLOW)
            right.plot(paper["epoch"], paper["top1"], label="paper", **HOLLOW)
        for ax, name in ((left, f"feature purity F at t = {rows['threshold'].iloc[0]:g}"), (right, "accuracy / %")):
            for dashes, choice in zip(LINES, [choice for choice in kept if choice.epoch is not None], strict=False):
                mark = f"{choice.rule}: epoch {choice.epoch}"
                ax.axvline(choice.epoch or 0, color="0.4", linewidth=0.8, linestyle=dashes, label=mark)
            if epochs[-1] >= LOGARITHMIC * epochs[0] > 0:
                ax.set_xscale("log")
            ax.set_xticks(epochs, [str(epoch) for epoch in epochs])
            ax.minorticks_off()
            ax.set_xlabel("epoch")
            ax.set_ylabel(name)
        left.set_ylim(-0.03, 1.03)
        legends_below(figure, [left, right])
        model, dataset, n = rows[["model", "dataset", "n_images"]].iloc[0]
        note = f"{model} on {n:,} images of {dataset}; bands: F ± 1 jackknife standard error"
        figure.supxlabel(note, fontsize=6.5, color="0.35")
    return figure
