"""A batch that cannot fit: the engine must go on with a smaller one, and count every image once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from purity_cli import models
from tests.gpu_check.budget import Budget
from tests.gpu_check.report import Cells, Planned
from tests.gpu_check.settings import Settings
from tests.gpu_check.subjects import make_engine, noise, split, stages_of

COLUMNS = (
    "network",
    "precision",
    "images",
    "how",
    "batch_asked",
    "batch_in_the_end",
    "all_counted_once",
    "differing_share",
)
SMALL = 32
FITS = 2
"""Images that fit where the memory of a CPU is made out to be small."""


def planned(settings: Settings, budget: Budget) -> Iterator[Planned]:
    """One row."""
    how = "real" if settings.device.type == "cuda" else f"made out: {FITS} images fit"
    yield {"network": settings.main, "precision": "fp32", "how": how}, partial(_run, settings, budget)


def _run(settings: Settings, budget: Budget) -> Cells:
    budget.check()
    network, n = models.load(settings.main, "none"), settings.huge
    layers = stages_of(network, settings.side)
    block = noise(n, settings.side, settings.device)
    found = {}
    for batch in (SMALL, n):
        engine = make_engine(network.module, layers, settings.device, precision="fp32", batch_size=batch)
        scarce = settings.device.type != "cuda" and batch == n
        with engine, _little_memory(network.module) if scarce else nullcontext():
            engine.run([block] if batch == n else split(block, batch))
        found[batch] = engine
    usual, halved = found[SMALL], found[n]
    fired = sum(int(usual.counts(layer).sum()) for layer in layers)
    differing = sum(int((usual.counts(layer) - halved.counts(layer)).abs().sum()) for layer in layers)
    return {
        "images": n,
        "batch_asked": n,
        "batch_in_the_end": halved.batch_size,
        "all_counted_once": int(halved.tally[0]) == n,
        "differing_share": differing / fired if fired else None,
        "note": None if halved.batch_size < n else "it fitted, and so nothing was tried",
    }


@contextmanager
def _little_memory(net: nn.Module) -> Iterator[None]:
    def refuse(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs[0]) > FITS:
            raise torch.OutOfMemoryError("made out")

    handle = net.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
