"""Tidy rows, as `cells.frame` gives them, -> figures. What is biased low is hollow or hatched."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from purity_cli.errors import PurityError
from purity_cli.figures import NORMAL_95
from purity_cli.figures.drawing import (
    COLOURS,
    WIDTH,
    Figure,
    Rectangle,
    hollow,
    in_legend,
    legends_below,
    name_points,
    panels,
    style,
    styles,
    within,
    wrapped,
)
from purity_cli.report import Report
from purity_cli.stats import ENOUGH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOW = f"hollow: N < {ENOUGH} c, biased low"
LONG = 24
"""Characters in a line of a name that stands upright under an axis."""
PAPERS: Any = {"color": "0.35", "marker": "o", "markerfacecolor": "none", "linestyle": ":"}
CHOSEN: tuple[Any, ...] = ((0, (1, 1)), (0, (4, 2)))
LOGARITHMIC = 10
"""Ratio of the last epoch to the first from which on the axis is logarithmic."""


def threshold_sweep(rows: pd.DataFrame, *, against_rate: bool = False) -> Figure:
    """F against the threshold, or against the share of pairs of image and channel that fire there: a line per layer, a
    panel per result; the band is one standard error (Fig. 3).

    Thresholds at which nothing fires have no F: the line ends before them and the legend tells so.
    """
    rows = rows.assign(share=rows["activations"] / (rows["n_images"] * rows["channels"]))
    across = "share" if against_rate else "threshold"
    models = _by_result(rows)
    with style():
        figure, axes = panels(len(models))
        for ax, (name, model) in zip(axes, models, strict=True):
            for look, (_, layer) in zip(styles(), model.groupby("label", sort=False), strict=False):
                _line(ax, layer.sort_values(across), across, _layer_name(layer) + _silence(layer), look)
            if against_rate:
                ax.set_xscale("log")
                ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
                ax.set_xlabel("share of all pairs of image and channel that fire")
            else:
                ax.set_xlim(rows["threshold"].min() - 0.02, rows["threshold"].max() + 0.02)
                ax.set_xlabel("threshold t on the mean-to-peak ratio M")
            ax.set_title(wrapped(name, 60))
            _purity_axis(ax, "feature purity F")
        legends_below(figure, axes)
        _caption(figure, rows, "bands: F ± 1 jackknife standard error", LOW)
    return figure


def stage_curve(rows: pd.DataFrame) -> Figure:
    """F from stage to stage, a line per result, with 95 % intervals (rows at one threshold)."""
    stages = _stages(rows)
    with style():
        figure, (ax,) = panels(1)
        figure.set_figwidth(max(WIDTH, 1 + 0.36 * len(stages)))
        for look, (name, model) in zip(styles(), _by_result(rows), strict=False):
            labels = model["label"].tolist()
            silent = model[model["purity"].isna()]["label"].tolist()
            note = f", no F in {', '.join(silent)}" if silent else ""
            places = [stages.index(label) for label in labels]
            model = model.assign(place=places).sort_values("place")
            bars = within(model["purity"], NORMAL_95 * model["se"])
            ax.errorbar(model["place"], model["purity"], yerr=bars, label=in_legend(name + note), capsize=2, **look)
            hollow(ax, model["place"], model["purity"], model["starved"], look)
        _stage_ticks(ax, stages)
        ax.set_xlim(-0.3, len(stages) - 0.7)
        _purity_axis(ax, f"feature purity F at {_at(rows)}")
        legends_below(figure, [ax], _tick_height(stages))
        _caption(figure, rows, "bars: 95 % intervals, F ± 1.96 jackknife standard errors", LOW)
    return figure


def heatmap(rows: pd.DataFrame) -> Figure:
    """Results by stages, F as shade and as number (rows at one threshold); a dash where nothing fired, hatched where N
    is small."""
    models, stages = _by_result(rows), _stages(rows)
    names = [wrapped(name, 30) for name, _ in models]
    grid = np.full((len(models), len(stages)), np.nan)
    width = 1.6 + 0.52 * len(stages) + 0.06 * max(len(line) for name in names for line in name.split("\n"))
    height = 0.8 + 0.17 * sum(name.count("\n") + 2 for name in names) + _tick_height(stages)
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        ax = figure.subplots()
        for i, (_, model) in enumerate(models):
            for label, value, low in model[["label", "purity", "starved"]].itertuples(index=False):
                j = stages.index(label)
                grid[i, j] = value
                if low and not math.isnan(value):
                    hatch: Any = {"fill": False, "hatch": "////", "edgecolor": "0.6", "linewidth": 0}
                    ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **hatch))
                text = "–" if math.isnan(value) else f"{value:.3f}"
                ax.text(j, i, text, ha="center", va="center", color="white" if value < 0.47 else "black", fontsize=7)
        picture = ax.imshow(grid, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        _stage_ticks(ax, stages)
        ax.set_yticks(range(len(names)), names)
        ax.grid(False)
        figure.colorbar(picture, ax=ax, label=f"F at {_at(rows)}", aspect=12)
        hatched = f"hatched: N < {ENOUGH} c, biased low"
        _caption(figure, rows, "–: no F" if rows["purity"].isna().any() else "", hatched)
    return figure


def against_accuracy(rows: pd.DataFrame) -> Figure:
    """F of each result's deepest layer against top-1 accuracy, from three results on the least-squares line, and how
    they correlate (rows at one threshold); PurityError for fewer than two results that have both."""
    deepest = rows[rows["deepest"]]
    last = deepest.dropna(subset=["top1", "purity"])
    if len(last) < 2:
        raise PurityError(
            f"Purity against accuracy needs two results or more whose last stage fires and whose images carry labels, "
            f"and there {'is' if len(last) == 1 else 'are'} {len(last)}."
        )
    x, y = last["top1"].to_numpy(float), last["purity"].to_numpy(float)
    with style():
        figure, (ax,) = panels(1)
        bars = within(last["purity"], NORMAL_95 * last["se"])
        look: Any = {"color": COLOURS[0], "marker": "o"}
        note = correlation(x.tolist(), y.tolist())
        ax.errorbar(x, y, yerr=bars, linestyle="none", capsize=2, label=f"last layer; {note}", **look)
        hollow(ax, x, y, last["starved"], look)
        if len(x) > 2 and np.ptp(x) > 0:
            slope, offset = np.polyfit(x, y, 1)
            ends = np.array([x.min(), x.max()])
            ax.plot(
                ends, slope * ends + offset, color=COLOURS[-1], linewidth=0.8, linestyle="--", label="least squares"
            )
        ax.margins(0.15)
        ax.set_xlabel("top-1 accuracy / %")
        ax.set_ylabel(f"feature purity F at {_at(rows)}")
        legends_below(figure, [ax])
        without = len(deepest) - len(last)
        left_out = f"{without} of {len(deepest)} results left out, without accuracy or purity" if without else ""
        _caption(figure, last, "bars: 95 % intervals, F ± 1.96 jackknife standard errors", LOW, left_out)
        name_points(figure, ax, np.stack([x, y], 1), bars.max(0), list(last["name"]))
    return figure


def training_curve(report: Report, published: Mapping[int, Mapping[str, float]] | None = None) -> Figure:
    """Purity per layer with one standard error, and accuracy, against the epoch; published values where there are any.

    `report` is the view of epochs. Vertical lines mark the epochs that it keeps by the highest value.
    """
    rows = pd.DataFrame(report.main.rows).astype({"top1": float, "purity": float, "se": float})
    (chosen,) = (table for table in report.tables if table.key == "choices")
    marked = [row for row in chosen.rows if row["rule"].startswith("highest") and row["epoch"] is not None]
    epochs = sorted(set(rows["epoch"]))
    with style():
        figure, (left, right) = panels(2)
        looks = styles()
        for one, (_, layer) in zip(looks, rows.groupby("label", sort=False), strict=False):
            name = layer["label"].iloc[0] + ("" if layer["purity"].notna().any() else ", nothing fires")
            _line(left, layer, "epoch", name, one)
        accuracy = rows.drop_duplicates("epoch").dropna(subset=["top1"])
        right.plot(accuracy["epoch"], accuracy["top1"], label="accuracy", **next(looks))
        if published:
            for ax, key, name in ((left, "purity", "paper, last layer"), (right, "top1", "paper (of 16 images)")):
                ax.plot(list(published), [one[key] for one in published.values()], label=name, **PAPERS)
        for ax, name in ((left, f"feature purity F at t = {rows['threshold'].iloc[0]:g}"), (right, "accuracy / %")):
            for dashes, choice in zip(CHOSEN, marked, strict=False):
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
            note += f"; {LOW}"
        figure.supxlabel(note, fontsize=6.5, color="0.35")
    return figure


def correlation(x: Sequence[float], y: Sequence[float]) -> str:
    """Pearson's r with n, its interval from three points on, and p from five on; why there is none otherwise."""
    from purity_cli.views.correlation import correlate  # scipy takes its time, and most figures need none of it

    n = len(x)
    if n < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return f"n = {n}, too few or too alike to correlate"
    found = correlate(np.array(x), np.array(y))["pearson"]
    p = f", p = {found.p:.2g}" if n >= 5 else ""
    return f"Pearson's r = {found.value:.2f}, 95 % interval {found.low:.2f} to {found.high:.2f}{p}, n = {n}"


def _line(ax: Axes, layer: pd.DataFrame, across: str, name: str, look: dict[str, Any]) -> None:
    """F of a layer where it has one, within one standard error."""
    fired = layer.dropna(subset=["purity"])
    x, y = fired[across], fired["purity"]
    below, above = within(y, fired["se"])
    ax.plot(x, y, label=in_legend(name), **look)
    hollow(ax, x, y, fired["starved"], look)
    ax.fill_between(x, y - below, y + above, color=look["color"], alpha=0.15, linewidth=0)


def at_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with F at the firing rate in place of F at the threshold."""
    flat = {"purity": rows["purity_rate"], "se": rows["purity_rate_se"], "starved": rows["rate_starved"]}
    return rows.assign(**flat, threshold=math.nan)


def _by_result(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each result's rows under its name."""
    return [(str(part["name"].iloc[0]), part) for _, part in rows.groupby("result", sort=False)]


def _layer_name(layer: pd.DataFrame) -> str:
    label, module = layer["label"].iloc[0], layer["layer"].iloc[0]
    return str(module) if label == module else f"{label} ({module})"


def _silence(layer: pd.DataFrame) -> str:
    """Where a layer has no F, and why; firing only gets rarer as the threshold grows."""
    if (layer["channels"] == 1).all():
        return ", one channel and so no F"
    silent = layer[layer["activations"] == 0]["threshold"]
    if len(silent) == len(layer):
        return ", nothing fires at any t"
    return f", nothing fires from t = {silent.min():g}" if len(silent) else ""


def _stages(rows: pd.DataFrame) -> list[str]:
    """What the layers are called, each result's in its order."""
    merged: list[str] = []
    for _, model in _by_result(rows):
        place = 0
        for label in model["label"]:
            if label not in merged:
                merged.insert(place, label)
            place = merged.index(label) + 1
    return merged


def _at(rows: pd.DataFrame) -> str:
    """Where F of rows was read: at one threshold, or at one rate."""
    (threshold,), (rate,) = rows["threshold"].unique(), rows["rate"].unique()
    return f"a firing rate of {100 * rate:g} %" if math.isnan(threshold) else f"t = {threshold:g}"


def _purity_axis(ax: Axes, label: str) -> None:
    ax.set_ylabel(label)
    ax.set_ylim(-0.03, 1.03)


def _stage_ticks(ax: Axes, stages: Sequence[str]) -> None:
    upright = _tick_height(stages) > 0
    ax.set_xticks(range(len(stages)), [wrapped(name, LONG) for name in stages] if upright else stages)
    if upright:
        ax.tick_params(axis="x", rotation=90, labelsize=7)


def _tick_height(stages: Sequence[str]) -> float:
    """Inches that upright names need below an axis; 0 where all are short enough to lie flat."""
    longest = max(map(len, stages))
    return 0.0 if longest * len(stages) < 60 else 0.052 * min(longest, LONG)


def _caption(figure: Figure, rows: pd.DataFrame, *notes: str) -> None:
    """The images, how many they were, and what the marks mean; what is biased low only where something is."""
    low = (rows["starved"] & rows["purity"].notna()).any()
    notes = tuple(note for note in notes if note and (low or "biased low" not in note))
    parts = [f"{name}, n = {_range(part['n_images'])} images" for name, part in rows.groupby("dataset", sort=False)]
    text = "; ".join([*parts, *notes])
    width = int(figure.get_figwidth() * 19)
    figure.supxlabel(textwrap.fill(text, width), fontsize=6.5, color="0.35")


def _range(values: pd.Series[int]) -> str:
    least, most = values.min(), values.max()
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
