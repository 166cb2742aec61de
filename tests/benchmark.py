"""How much slower than a plain forward pass scoring is, and how much faster than the ways there were before.

    make benchmark                      # everything; about ten minutes on two cores
    python -m tests.benchmark resnet50  # one network's row

Every figure is a ratio within one process on the same images, since absolute times differ between machines and from
minute to minute. Each round runs every contender once, in turn; the median over rounds counts. Random weights: speed
does not depend on them.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor, nn

from purity_cli import models, stages
from purity_cli.datasets import open_dataset
from purity_cli.engine import Engine
from purity_cli.machine import keep_freed_memory
from purity_cli.pixels import Pixels, normalise
from purity_cli.plan import DEFAULT_GRID, Preprocessing
from tests import oracle

NETWORKS = ("resnet50", "alexnet", "vgg16", "densenet121", "timm:legacy_senet154")
BATCH = {"alexnet": 64}
IMAGENET = Preprocessing(crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Batch:
    """`n` pictures of noise, 224 x 224."""

    def __init__(self, n: int) -> None:
        pixels = torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8)
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.positions = torch.arange(n)
        self.labels = torch.full((n,), -1)


def stage_modules(network: models.Network) -> list[str]:
    taps = stages.resolve(network.module, network.source, network.name, ["C1..last"], (224, 224))
    return [tap.module for tap in taps]


def make_engine(net: nn.Module, layers: list[str], batch_size: int) -> Engine:
    return Engine(
        net,
        layers,
        normalise=partial(normalise, preprocessing=IMAGENET),
        thresholds=DEFAULT_GRID,
        groups=20,
        device=torch.device("cpu"),
        batch_size=batch_size,
    )


def prototype(net: nn.Module, layers: list[str], images: Tensor) -> None:
    """The design's engine in its plainest form: hooks, one autograd.grad, four reductions; nothing tuned."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output.requires_grad_()
        kept.append(output)
        return output.clone()

    handles = [dict(net.named_modules())[layer].register_forward_hook(keep) for layer in layers]
    try:
        scores = net(images).max(1).values.sum()
    finally:
        for handle in handles:
            handle.remove()
    for feature_map, gradient in zip(kept, torch.autograd.grad(scores, kept), strict=True):
        feature_map = feature_map.detach()
        positive, negative = feature_map.clamp_min(0), (-feature_map).clamp_min(0)
        up, down = (part.mean((2, 3)) / part.amax((2, 3)) for part in (positive, negative))
        torch.where(gradient.mean((2, 3)) > 0, up, down).nan_to_num(0)


def captum_cams(net: nn.Module, layers: list[str], images: Tensor) -> None:
    with torch.no_grad():
        target = net(images).argmax(1)
    for layer in layers:
        LayerGradCam(net, dict(net.named_modules())[layer]).attribute(images, target)


def released(net: nn.Module, layers: list[str], images: Tensor) -> None:
    """One image and one layer at a time, forward and backward each time, the maps in numpy."""
    for image in images:
        for layer in layers:
            oracle.mass(*oracle.map_and_gradient(net, image[None], layer))


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def with_default_memory(work: Callable[[], object]) -> Callable[[], object]:
    """`work` as it runs in a process that leaves the allocator alone, as all but purity do.

    glibc moves its thresholds up by itself, to 32 and 64 MiB where large blocks come and go; setting them to that is
    what its default comes to.
    """

    def run() -> object:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((-4, 65536), (-3, 32 << 20), (-1, 64 << 20)):  # MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD
            mallopt(option, value)
        try:
            return work()
        finally:
            keep_freed_memory()

    return run


def compare(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turn."""
    for work in contenders.values():
        work()
    times = [{name: clock(work) for name, work in contenders.items()} for _ in range(rounds)]
    return {name: statistics.median(row[name] for row in times) for name in contenders}


def networks(names: tuple[str, ...], rounds: int) -> pd.DataFrame:
    rows = []
    for name in names:
        size = BATCH.get(name, 16)
        network = models.load(name, "none")
        net = network.module.to(memory_format=torch.channels_last)
        layers = stage_modules(network)
        batch = Batch(size)
        images = normalise(batch.pixels, IMAGENET)
        few = images[:2]
        all_layers, last = make_engine(net, layers, size), make_engine(net, layers[-1:], size)
        plain = torch.inference_mode()(partial(net, images))

        def scored(engine: Engine, batch: Batch = batch) -> None:
            with engine:
                engine.add(batch)

        seconds = compare(
            {
                "forward": with_default_memory(plain),
                "C1..C5": partial(scored, all_layers),
                "C5": partial(scored, last),
                "prototype": with_default_memory(partial(prototype, net, layers, images)),
            },
            rounds,
        )
        slow = compare(
            {
                "captum": with_default_memory(partial(captum_cams, net, layers, images)),
                "released": with_default_memory(partial(released, net, layers, few)),
                "scoring": partial(scored, all_layers),
            },
            2,
        )
        slow["released"] *= size / len(few)
        forward, scoring = seconds["forward"], seconds["C1..C5"]
        rows.append(
            {
                "network": network.name,
                "batch": size,
                "forward ms/image": 1000 * forward / size,
                "C1..C5 / forward": scoring / forward,
                "prototype / forward": seconds["prototype"] / forward,
                "C5 / forward": seconds["C5"] / forward,
                "captum / C1..C5": slow["captum"] / slow["scoring"],
                "released / C1..C5": slow["released"] / slow["scoring"],
            }
        )
        print(pd.DataFrame(rows[-1:]).to_string(index=False, float_format="%.2f"), flush=True)
    return pd.DataFrame(rows)


def photographs(folder: Path, n: int) -> None:
    """`n` different JPEGs of ImageNet's usual size, smooth enough to compress like photographs."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:04}.JPEG", quality=90)


def end_to_end(n: int) -> None:
    """ResNet50, C1..C5, over `n` JPEGs: the whole run against the engine on pixels that are already there."""
    network = models.load("resnet50", "none")
    layers = stage_modules(network)
    preprocessing = IMAGENET.model_copy(update={"resize": 256})
    with tempfile.TemporaryDirectory() as name:
        photographs(Path(name), n)
        pixels = Pixels(
            open_dataset(f"folder:{name}"), range(n), preprocessing, batch_size=16, workers=2, on_bad_image="fail"
        )
        numbers, alone, whole = range(len(pixels)), 0.0, 0.0
        with make_engine(network.module, layers, 16) as engine:
            engine.run(pixels.blocks(numbers[:2]))
            # In turns, since the machine's speed drifts over the minutes that this takes.
            for start in range(0, len(numbers), 16):
                part = numbers[start : start + 16]
                ready = list(pixels.blocks(part))
                alone += clock(partial(engine.run, ready))
                whole += clock(partial(engine.run, pixels.blocks(part)))
    print(f"end to end, {n} JPEGs of 500 x 375, resnet50 C1..C5: {whole:.1f} s, {whole / alone:.2f} x the engine alone")


def peak_memory(n: int) -> float:
    """MiB that a fresh process needs at most to score `n` pictures with ResNet18."""
    code = (
        "import resource; from tests.benchmark import *; keep_freed_memory()\n"
        "network = models.load('resnet18', 'none'); d = tempfile.mkdtemp(); photographs(Path(d), 100)\n"
        f"chosen = [i % 100 for i in range({n})]\n"
        "preprocessing = IMAGENET.model_copy(update={'resize': 256}); source = open_dataset('folder:' + d)\n"
        "pixels = Pixels(source, chosen, preprocessing, batch_size=16, workers=2, on_bad_image='fail')\n"
        "with make_engine(network.module, ['relu', 'layer4'], 16) as engine: engine.run(pixels.blocks())\n"
        "import shutil; shutil.rmtree(d); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", default=5, show_default=True)
@click.option("--images", default=1000, show_default=True, help="JPEGs of the end-to-end part.")
def main(names: tuple[str, ...], rounds: int, images: int) -> None:
    """Print the ratios; with NAMES, those of these networks alone."""
    keep_freed_memory()
    table = networks(names or NETWORKS, rounds)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(table.to_markdown(index=False, floatfmt=".2f") if len(table) else "")
    if names:
        return
    end_to_end(images)
    small, large = peak_memory(1000), peak_memory(4000)
    print(f"peak memory, resnet18: {small:.0f} MiB at 1,000 images, {large:.0f} MiB at 4,000 ({large / small:.2f} x)")
    start = [clock(partial(subprocess.run, ["purity", "--help"], check=True, capture_output=True)) for _ in range(5)]
    print(f"purity --help: {statistics.median(start):.2f} s")


if __name__ == "__main__":
    main()
