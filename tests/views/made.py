"""Results made of drawn activations, for figures: no network, no images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from purity_cli.plan import DEFAULT_GRID, Job
from purity_cli.results import Layer, Result


def layer(module: str, stage: str | None = None, *, seed: int = 0, silent: bool = False, n: int = 400) -> Layer:
    """24 channels, each with its own chance to fire; M is a square, so that few are large."""
    rng = np.random.default_rng(seed)
    values = rng.random((n, 24)) ** 2 * rng.uniform(0.1, 0.9, 24)
    fired = np.stack([values > t for t in DEFAULT_GRID], 1)
    counts = np.stack([fired[group::20].sum(0) for group in range(20)])
    return Layer(module, stage, 24, 7, 7, np.zeros_like(counts) if silent else counts)


def result(model: str, layers: Sequence[Layer], *, top1: float | None = 70.0, weights: str = "w.pth") -> Result:
    return Result(
        job=Job.of(model=model),
        thresholds=DEFAULT_GRID,
        layers=tuple(layers),
        n_images=400,
        top1=top1,
        top5=None,
        model=model,
        source="file",
        weights=weights,
        dataset="photos",
        preprocessing="no resize, not normalised",
        provenance={"images_skipped": []},
    )


def stages(k: int, silent: Sequence[int] = (), seed: int = 0) -> list[Layer]:
    """C1..Ck."""
    return [layer(f"layer{i}", f"C{i}", seed=100 * seed + i, silent=i in silent) for i in range(1, k + 1)]


def long_names(k: int) -> list[Layer]:
    return [layer(f"features.denseblock{i}.denselayer{i + 10}.conv2", seed=i, silent=i == 3) for i in range(k)]
