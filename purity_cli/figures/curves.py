"""Purity and accuracy over the epochs of a training, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from purity_cli.figures.drawing import STYLE, hollow, in_legend, legends_below, panels, styles, within
from purity_cli.report import Report
from purity_cli.results import Result
from purity_cli.views import epochs as view
from purity_cli.views.cells import ENOUGH

HOLLOW: Any = {"color": "0.35", "marker": "o", "markerfacecolor": "none", "linestyle": ":"}
LINES: tuple[Any, ...] = ((0, (1, 1)), (0, (4, 2)))
LOGARITHMIC = 10
"""Ratio of the last epoch to the first from which on the axis is logarithmic."""


def training_curve(results: Sequence[Result], threshold: float, report: Report) -> Figure:
    """Purity per layer with one standard error, and accuracy, against the epoch; the paper's where it has them.

    Vertical lines mark the epochs that `report`, the view of these results, keeps by the highest value.
    """
    rows, paper = view.frame(results, threshold), view.paper(results)
    (chosen,) = (table for table in report.tables if table.key == "choices")
    kept = [row for row in chosen.rows if row["rule"].startswith("highest") and row["epoch"] is not None]
    epochs = sorted(set(rows["epoch"]))
    with mpl.rc_context(STYLE):
        figure, (left, right) = panels(2)
        looks = styles()
        for style, (_, layer) in zip(looks, rows.groupby("label", sort=False), strict=False):
            known = layer.dropna(subset=["purity"])
            name = layer["label"].iloc[0] + ("" if len(known) else ", nothing fires")
            x, y = known["epoch"], known["purity"]
            below, above = within(y, known["se"])
            left.plot(x, y, label=in_legend(name), **style)
            hollow(left, x, y, known["starved"].astype(bool), style)
            left.fill_between(x, y - below, y + above, color=style["color"], alpha=0.15, linewidth=0)
        accuracy = rows.drop_duplicates("epoch").dropna(subset=["top1"])
        right.plot(accuracy["epoch"], accuracy["top1"], label="accuracy", **next(looks))
        if paper:
            left.plot(list(paper), [one["purity"] for one in paper.values()], label="paper, last layer", **HOLLOW)
            right.plot(list(paper), [one["top1"] for one in paper.values()], label="paper (of 16 images)", **HOLLOW)
        for ax, name in ((left, f"feature purity F at t = {rows['threshold'].iloc[0]:g}"), (right, "accuracy / %")):
            for dashes, choice in zip(LINES, kept, strict=False):
                mark = f"{choice['rule']}: epoch {choice['epoch']}"
                ax.axvline(choice["epoch"], color="0.4", linewidth=0.8, linestyle=dashes, label=mark)
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
        if (rows["starved"].astype(bool) & rows["purity"].notna()).any():
            note += f"; hollow: N < {ENOUGH} c, biased low"
        figure.supxlabel(note, fontsize=6.5, color="0.35")
    return figure
