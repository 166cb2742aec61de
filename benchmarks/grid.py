"""Are the stored thresholds fine enough for purity at an equal rate? F_r from stored counts against F_r from M itself.

    python -m benchmarks.grid           # all networks at hand; five minutes on one core
    python -m benchmarks.grid resnet20  # this alone

Real weights on real images, and a ResNet-50 with random weights on photographs. For every layer, M of all images is
kept, and F is taken at the quantile of M above which the share r of all pairs of image and channel lies. Beside it
stands `stats.purity_at_rate` of the counts at each grid. The tables go to `--out`: every layer in `grid.csv`, the
largest difference of each network in `grid.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from purity_cli import run
from purity_cli.pixels import normalise
from purity_cli.plan import STORED_GRID, Job, parse_thresholds
from purity_cli.purity import activation, map_statistics
from purity_cli.stats import feature_purity, purity_at_rate
from purity_cli.taps import Taps
from tests.conftest import SHARED

GRIDS = {"19": parse_thresholds("0.05:0.95:0.05"), "stored": STORED_GRID}
"""By name: the grid of version 0.1.0, and that of this one."""
RATES = (0.01, 0.05)


def jobs(shared: Path = SHARED) -> Iterator[tuple[str, Job]]:
    """(name, Job) of every network."""
    photographs, cifar = str(shared / "data/imagenet-sample"), str(shared / "data/cifar10-jpeg.tar.xz")
    small: dict[str, Any] = {"dataset": cifar, "per_class": 200, "resize": "none", "crop": "none"}
    yield (
        "efficientnet_lite0",
        Job(model="efficientnet_lite0", dataset=photographs, layers=("all:C1..last", "bn1", "blocks.*.*.bn1")),
    )
    tiny = str(shared / "weights/tiny_vgg-cifar10-epoch10.safetensors")
    yield (
        "tiny_vgg",
        Job(model="tiny_vgg", weights=tiny, layers=("conv*", "bn*", "relu*", "maxpool*"), mean=(0, 0, 0),
            std=(1, 1, 1), **small),
    )  # fmt: skip
    yield (
        "resnet20",
        Job(
            model=f"{shared / 'models/cifar_resnet.py'}:resnet20",
            weights=str(shared / "weights/resnet20-cifar10.safetensors"),
            layers=("layer1", "layer2", "layer3", "layer*.*.conv2", "layer*.*.bn2"),
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), **small,
        ),
    )  # fmt: skip
    yield (
        "resnet50, random",
        Job(
            model="resnet50",
            weights="none",
            dataset=photographs,
            preprocess="paper",
            layers=("all:C1..last",),
            limit=250,
        ),
    )


def masses(job: Job) -> dict[str, NDArray[np.float32]]:
    """M (n, c) of all images, by module."""
    plan = run.resolve(job)
    found: dict[str, list[torch.Tensor]] = {}
    modules = list(dict.fromkeys(tap.module for tap in plan.taps))
    with Taps(plan.network.module, modules, map_statistics) as taps:
        for block in run.pixels_of(plan, workers=1).blocks():
            output = taps(normalise(block.pixels, plan.preprocessing))
            for name, maps in output.maps.items():
                found.setdefault(name, []).append(activation(maps, output.gradients[name]))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def exact(m: NDArray[np.float32], rate: float) -> tuple[float, float]:
    """F and the threshold where the share `rate` of M (n, c) lies above it."""
    threshold = float(np.quantile(m, 1 - rate, method="inverted_cdf"))
    return float(feature_purity((m > threshold).sum(0))), threshold


def counted(m: NDArray[np.float32], grid: tuple[float, ...], groups: int = 20) -> NDArray[np.int64]:
    """Counts (G, T, c) of M (n, c)."""
    fires = [(m > np.float32(threshold)) for threshold in grid]
    return np.stack([[fired[g::groups].sum(0) for fired in fires] for g in range(groups)])


def rows(name: str, found: dict[str, NDArray[np.float32]]) -> Iterator[dict[str, Any]]:
    """A row for every layer and rate."""
    for layer, m in found.items():
        for rate in RATES:
            purity, threshold = exact(m, rate)
            row = {"network": name, "layer": layer, "n": len(m), "c": m.shape[1], "rate": rate}
            row |= {"exact": purity, "threshold": threshold}
            for grid_name, grid in GRIDS.items():
                stored = purity_at_rate(counted(m, grid), len(m), grid, rate)
                row |= {grid_name: stored.purity, f"se {grid_name}": stored.se}
            yield row


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/grid"), show_default=True)
def main(names: tuple[str, ...], out: Path) -> None:
    table = pd.DataFrame([row for name, job in jobs() if not names or name in names for row in rows(name, masses(job))])
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "grid.csv", index=False, float_format="%.6g")
    for grid in GRIDS:
        table[f"off {grid}"] = (table[grid] - table["exact"]).abs()
    off = [f"off {grid}" for grid in GRIDS]
    largest = table.groupby(["network", "rate"], sort=False).agg({"layer": "count", **dict.fromkeys(off, "max")})
    text = largest.reset_index().to_markdown(index=False, floatfmt=".4f")
    (out / "grid.md").write_text(f"{text}\n")
    click.echo(text)


if __name__ == "__main__":
    main()
