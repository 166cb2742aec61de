"""The figures of docs/reading.md, drawn from counts: those of `purity score` without options, and stored ones.

python -m tests.figures.reading
"""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from purity_cli import score, store
from purity_cli.figures.drawing import STYLE, save
from purity_cli.results import Result
from tests.cli.reference import ROOT

RESULTS, FIGURES = ROOT / "results", ROOT / "docs" / "figures"


def main() -> None:
    default = score().result
    lite0, resnet20 = (
        store.read(RESULTS / name) for name in ("efficientnet_lite0_imagenet-sample", "resnet20_cifar10-jpeg")
    )
    with mpl.rc_context(STYLE):
        for name, figure in {"maps": maps(default), "images": images(lite0), "taps": taps(resnet20)}.items():
            for suffix in save(figure, FIGURES / f"{name}.png"):
                print(suffix.relative_to(ROOT))


def purity(count: NDArray[np.int64]) -> float:
    """F of the counts of c channels."""
    p = count[count > 0] / count.sum()
    return float(-(p * np.log2(p)).sum() / np.log2(len(count)))


def at(result: Result, threshold: float) -> int:
    return int(np.argmin([abs(t - threshold) for t in result.thresholds]))


def maps(result: Result) -> Figure:
    """How often a channel fires, against the threshold, for maps of four sizes."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.add_subplot()
    for layer in result.layers:
        fired = layer.counts.sum((0, 2)) / layer.channels / result.n_images * 1000
        ax.plot(result.thresholds, np.maximum(fired, 0.01), label=f"{layer.name}: {layer.height}x{layer.width}")
    ax.axhline(5, color="0.5", lw=1, ls=":")
    ax.text(0.06, 5.5, "N = 5 c", color="0.4", va="bottom")
    ax.set_yscale("log")
    ax.set_xlabel("threshold t")
    ax.set_ylabel("firings per channel and 1,000 images")
    ax.set_ylim(0.05, 1300)
    ax.set_yticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])
    ax.legend()
    return figure


def images(result: Result) -> Figure:
    """F of more and more of the same images: the first of the jackknife's 20 groups, the first two, ..."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.add_subplot()
    place, groups = at(result, 0.5), [1, 2, 4, 6, 10, 15, 20]
    for layer in result.layers:
        if layer.module not in ("bn1", "blocks.3.0.bn1", "conv_head"):
            continue
        values = [purity(layer.counts[:k, place].sum(0)) for k in groups]
        n = [round(result.n_images * k / 20) for k in groups]
        ax.plot(n, values, marker="o", label=f"{layer.module}: {layer.channels:,} channels")
        final = int(layer.counts[:, place].sum())
        ax.annotate(
            f"N = {final / layer.channels:,.0f} c", (n[-1], values[-1]), (-4, 6), textcoords="offset points", ha="right"
        )
    ax.set_xlabel("images n")
    ax.set_ylabel("F at t = 0.5")
    ax.set_ylim(0, 1)
    ax.legend(loc="lower right")
    return figure


def taps(result: Result) -> Figure:
    """F of every module that was read in one network: neighbours differ more than networks do."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.add_subplot()
    place = at(result, 0.5)
    for row, layer in enumerate(result.layers):
        count = layer.counts[:, place].sum(0)
        enough = count.sum() >= 5 * layer.channels
        if count.sum():
            ax.barh(
                row, purity(count), color="C0" if enough else "none", edgecolor="C0", hatch=None if enough else "////"
            )
        ax.text(1.02, row, f"N = {count.sum():,}", va="center")
    ax.set_yticks(range(len(result.layers)), [layer.module for layer in result.layers])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("F at t = 0.5 (hatched: N < 5 c)")
    return figure


if __name__ == "__main__":
    main()
