"""Where the time of a scored batch goes, kernel by kernel, and how long the device waits for the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch.profiler import ProfilerActivity, profile

from purity_cli import models
from purity_cli.engine import Engine
from purity_cli.pixels import Block
from tests.gpu_check.budget import Budget, Contender, in_turn
from tests.gpu_check.report import Cells, Planned, Sheet
from tests.gpu_check.settings import Settings
from tests.gpu_check.subjects import make_engine, noise, stages_of

BATCH, STEPS, KERNELS = 128, 3, 20
"""KERNELS: as many stand by name, those that take longest."""
KINDS = {
    "convolution": ("splitk", "conv", "gemm", "dgrad", "fprop", "xmma", "cutlass", "winograd", "nvjet", "implicit"),
    "layout": ("nchwtonhwc", "nhwctonchw", "transpose"),
    "batch norm": ("bn_", "batch_norm", "batchnorm"),
    "pooling": ("pool",),
    "copy": ("memcpy", "memset", "copy"),
    "reduction": ("reduce", "aten::sum", "aten::mean", "amax", "amin"),
    "elementwise": ("elementwise", "relu", "clamp", "aten::add", "aten::mul"),
}
"""By what is in a kernel's name; the first that fits."""


ABOUT = ("network", "precision", "memory_format", "batch")
# In ms: of a batch as it runs, and of its parts by the profiler; what is left of a batch, a GPU waits.
COLUMNS = (*ABOUT, "whole", *KINDS, "other", "idle")
BY_NAME = (*ABOUT, "kind", "kernel", "calls", "ms", "share")


def part(settings: Settings, budget: Budget, about: Cells) -> list[Sheet]:
    """Fill `profile`, ms per batch by kind for every network, and `profile_kernels`; in the first memory format."""
    sheet, kernels = (
        Sheet(settings, "profile", COLUMNS, about),
        Sheet(settings, "profile_kernels", BY_NAME, about, quiet=True),
    )
    sheet.fill(planned(settings, budget, kernels))
    return [sheet, kernels]


def planned(settings: Settings, budget: Budget, kernels: Sheet) -> Iterator[Planned]:
    memory_format, load = settings.formats[0], cache(partial(models.load, weights="none"))
    for precision in settings.precisions:
        for name in settings.networks:
            names = {"network": name, "precision": precision, "memory_format": memory_format}
            yield names, partial(_row, settings, budget, kernels, load, names)


def _row(
    settings: Settings, budget: Budget, kernels: Sheet, load: Callable[[str], models.Network], names: Cells
) -> Cells:
    budget.check()
    network, batch = load(names["network"]), max(1, BATCH // settings.scale)
    layers, device = stages_of(network, settings.side), settings.device
    block = noise(batch, settings.side, device)
    how = {name: names[name] for name in ("precision", "memory_format")}
    engine = make_engine(network.module, layers, device, batch_size=batch, **how)
    contender = Contender(partial(engine.add, block), lambda: engine)
    # Without the profiler, which slows the host.
    seconds = in_turn({"": contender}, device, budget, rounds=settings.rounds, at_least=settings.at_least)
    whole, seen = 1000 * seconds[""], _kernels(engine, block, device)
    longest = sorted(seen.items(), key=lambda item: -item[1][1])[:KERNELS]
    about = {**names, "batch": engine.batch_size}
    for kernel, (calls, ms) in longest:
        kernels.add(**about, kind=kind(kernel), kernel=kernel[:160], calls=calls, ms=ms, share=ms / whole)
    kinds = dict.fromkeys((*KINDS, "other"), 0.0)
    for kernel, (_, ms) in seen.items():
        kinds[kind(kernel)] += ms
    idle = whole - sum(kinds.values()) if device.type == "cuda" else None
    return {**about, "whole": whole, **kinds, "idle": idle}


def _kernels(engine: Engine, block: Block, device: torch.device) -> dict[str, tuple[float, float]]:
    """Calls and ms per batch by kernel; on a CPU by operation."""
    cuda = device.type == "cuda"
    with engine, profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        for _ in range(STEPS):
            engine.add(block)
        engine.check()
    wanted = "CUDA" if cuda else "CPU"
    found = {}
    for event in seen.key_averages():
        if event.device_type.name == wanted:
            microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
            found[event.key] = (event.count / STEPS, microseconds / 1000 / STEPS)
    return found


def kind(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((name for name, parts in KINDS.items() if any(part in kernel.lower() for part in parts)), "other")
