"""What a faster precision does to F: every layer and threshold against float32, on one device.

    make benchmark-precision                                   # all that is at hand; ten minutes on two cores
    make benchmark-precision ARGS='efficientnet_lite0 vgg16'   # these alone

Real weights on real images, and the ten networks of the paper's Tables 1 and 2 with random weights on photographs. The
tables go to `--out`: `precision.csv` holds every cell, `precision.md` the largest and typical difference of each
network.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from purity_cli import run, store
from purity_cli.engine import Engine
from purity_cli.machine import keep_freed_memory, resolve_device
from purity_cli.pixels import Block, normalise
from purity_cli.plan import Job
from purity_cli.run.resolving import Resolved
from purity_cli.stats import feature_purity, jackknife
from tests.conftest import SHARED

GRID = tuple(round(0.1 * i, 1) for i in range(1, 10))
GROUPS = 20
FED = 5
"""Firings per channel from which F is not starved, as `purity score` warns."""
TABLES = (
    "alexnet", "vgg16", "resnet34", "resnet50", "densenet121", "vgg13_bn", "vgg16_bn", "vgg19_bn", "resnet101",
    "timm:legacy_senet154",
)  # fmt: skip
BY = ["kind", "precision", "weights", "network"]

PLAIN_CPU = "CPU without bfloat16"

Counts = dict[str, NDArray[np.int64]]
"""(G, T, c) by module."""


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those that are faster than fp32 on a device, by instructions of its own; the fastest first."""
    if device.type == "cuda":
        return ("bf16", "fp16", "tf32")
    return () if kind_of(device) == PLAIN_CPU else ("bf16",)


def kind_of(device: torch.device) -> str:
    """What kind of device it is, as far as its arithmetic goes: a GPU's own name, or what a CPU has for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if torch.cpu._is_amx_tile_supported():
        return "CPU with AMX"
    return "CPU with AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else PLAIN_CPU


def jobs(images: int, shared: Path = SHARED) -> Iterator[Job]:
    """Networks with trained weights, then those with random ones; small pictures are twenty times as many."""
    photographs, cifar = str(shared / "data/imagenet-sample"), str(shared / "data/cifar10-jpeg.tar.xz")
    small: dict[str, Any] = {"limit": 20 * images, "resize": "none", "crop": "none"}
    yield Job(model="resnet10_cifar", layers=("all:C1..last",), limit=1000)
    yield Job(model="tiny_vgg_10", dataset="digits", layers=("all:C1..last",), limit=1000)
    tiny = str(shared / "weights/tiny_vgg-cifar10-epoch10.safetensors")
    plain: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    yield Job(model="tiny_vgg", weights=tiny, dataset=cifar, layers=("all:C1..last",), **small, **plain)
    for name in ("resnet20", "resnet32"):
        weights, model = shared / f"weights/{name}-cifar10.safetensors", f"{shared / 'models/cifar_resnet.py'}:{name}"
        scaled: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        layers = ("layer1", "layer2", "layer3")
        yield Job(model=model, weights=str(weights), dataset=cifar, layers=layers, **small, **scaled)
    for name in ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"):
        yield Job(model=name, dataset=photographs, layers=("all:C1..last",), limit=2 * images)
    for name in TABLES:
        yield Job(model=name, weights="none", dataset=photographs, preprocess="paper", limit=max(1, images // 4))


def counts(
    job: Resolved, blocks: list[Block], precision: str, grid: tuple[float, ...] = GRID, groups: int = GROUPS
) -> tuple[Counts, NDArray[np.int64]]:
    """Firings of each tapped module, and the tally."""
    engine = Engine(
        job.network.module,
        {tap.module: tap.layout for tap in job.taps},
        normalise=partial(normalise, preprocessing=job.preprocessing),
        thresholds=grid,
        groups=groups,
        device=job.device,
        precision=precision,
        batch_size=job.batch_size,
        memory_format=job.network.memory_format,
    )
    with engine:
        engine.run(blocks)
    return {module: engine.counts(module).numpy() for module in engine.shapes}, engine.tally.cpu().numpy()


def compare(expected: Counts, found: Counts, images: int, grid: tuple[float, ...] = GRID) -> Iterator[dict[str, Any]]:
    """Every layer at every threshold; `differing` counts groups, in which opposite differences cancel."""
    for module, before in expected.items():
        after, jack = found[module], jackknife(before, images)
        f, fired = feature_purity(after.sum(0)), before.sum((0, 2))
        differing = np.abs(before - after).sum((0, 2))
        for t, threshold in enumerate(grid):
            yield {
                "layer": module,
                "channels": before.shape[2],
                "threshold": threshold,
                "firings": int(fired[t]),
                "differing": int(differing[t]),
                "f_fp32": float(jack.purity[t]),
                "f": float(f[t]),
                "difference": abs(float(f[t] - jack.purity[t])),
                "se": float(jack.se[t]),
            }


def measured(job: Job, asked: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of one network."""
    resolved = run.resolve(job)
    blocks = list(run.pixels_of(resolved, workers=2).blocks())
    kind, n = kind_of(resolved.device), sum(len(block.positions) for block in blocks)
    expected, _ = counts(resolved, blocks, "fp32")
    names = {
        "kind": kind,
        "network": resolved.network.name,
        "weights": "random" if job.weights == "none" else "trained",
    }
    for precision in asked:
        found, _ = counts(resolved, blocks, precision)
        for row in compare(expected, found, n):
            yield {**names, "images": n, "precision": precision, **row}


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """A row for each network and precision."""
    rows = []
    for (kind, precision, weights, network), own in cells.groupby(BY, sort=False):
        known = own.dropna(subset="difference")
        worst = known.sort_values("difference").iloc[-1]
        fed = known[known["firings"] >= FED * known["channels"]]
        rows.append(
            {
                "device": kind,
                "precision": precision,
                "network": network,
                "weights": weights,
                "images": worst["images"],
                "largest": worst["difference"],
                "at": f"{worst['layer']}, {worst['threshold']:g}, N = {worst['firings']:,}",
                "its se": worst["se"],
                "largest, fed": fed["difference"].max(),
                "median": known["difference"].median(),
                "within 0.002": f"{(known['difference'] <= 0.002).mean():.0%}",
                "largest / se": (known["difference"] / known["se"]).replace(np.inf, np.nan).max(),
                "firings that differ": f"{own['differing'].sum() / own['firings'].sum():.2%}",
                "NaN in one": int((own["f"].isna() != own["f_fp32"].isna()).sum()),
            }
        )
    return pd.DataFrame(rows)


def page(cells: pd.DataFrame) -> str:
    return (
        "# What a faster precision does to F\n\n"
        f"`make benchmark-precision`, torch {torch.__version__}.\n"
        "Against float32 on the same device and images: F "
        "at thresholds 0.1 to 0.9 of every layer; every cell is in `precision.csv`. *fed*: cells with at least "
        f"{FED} firings per\nchannel; *se*: the jackknife's standard error of F in float32.\n\n"
        + summary(cells).to_markdown(index=False, floatfmt=".2g")
        + "\n"
    )


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--images", default=64, show_default=True, help="Photographs: twice as many for trained networks.")
@click.option("--precisions", "asked", multiple=True, help="Only these, by default all that the device computes in.")
@click.option("--device", default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/benchmark"), show_default=True)
def main(networks: tuple[str, ...], images: int, asked: tuple[str, ...], device: str, out: Path) -> None:
    """Measure NETWORKS, by default all; what the tables say of other networks and devices stays."""
    keep_freed_memory()
    where = resolve_device(device, "fp32")
    out.mkdir(parents=True, exist_ok=True)
    before = pd.read_csv(out / "precision.csv") if (out / "precision.csv").exists() else pd.DataFrame()
    for job in jobs(images):
        name = job.model.rpartition(":")[2]
        if networks and name not in networks:
            continue
        job = job.model_copy(update={"device": device})
        new = pd.DataFrame(measured(job, asked or precisions(where)))
        print(summary(new).to_string(index=False), flush=True)
        if len(before):
            which = ["kind", "network", "weights"]
            before = before[~before[which].isin(new[which].iloc[0].tolist()).all(axis=1)]
        before = pd.concat([before, new])
        store.write_text(out / "precision.csv", before.to_csv(index=False, float_format="%.5g"))
        store.write_text(out / "precision.md", page(before))


if __name__ == "__main__":
    main()
