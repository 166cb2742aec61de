"""What compiling a network's whole step would give: forward, backward and reductions in one graph, by torch.compile.

    make benchmark-compile ARGS='resnet18 resnet50'   # minutes each, most of them the compiler's

For each network and precision: the seconds that compiling takes, one batch as the engine runs it and compiled, and the
number of images from which compiling pays, if it does. The taps are those of the engine: a zero probe (n, c, 1, 1) is
added to each map, and its gradient is the spatial sum.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import click
import torch
from torch import Tensor, nn

from benchmarks.precision import precisions
from benchmarks.speed import CPU, IMAGENET, Batch, machine, make_engine, seconds, stage_modules
from purity_cli import models
from purity_cli.engine import HALF
from purity_cli.machine import keep_freed_memory
from purity_cli.pixels import normalise
from purity_cli.purity import MapStatistics
from purity_cli.stages import probe


def statistics_of(maps: Tensor) -> MapStatistics:
    """As `map_statistics`, which looks at its values: one graph cannot."""
    space, up, down = (2, 3), maps.clamp_min(0), maps.clamp_max(0)
    return MapStatistics(
        up.mean(space, dtype=torch.float32), up.amax(space).float(), down.mean(space, dtype=torch.float32).neg(),
        down.amin(space).float().neg(),
    )  # fmt: skip


class Step(nn.Module):
    """A network with taps: images and probes -> the predicted classes' summed logits, and what became of each map."""

    def __init__(self, net: nn.Module, layers: list[str]) -> None:
        super().__init__()
        self.net, self.layers = net, layers
        self.probes: dict[str, Tensor] = {}
        self.maps: dict[str, MapStatistics] = {}

    def forward(self, images: Tensor, probes: dict[str, Tensor]) -> tuple[Tensor, dict[str, MapStatistics]]:
        self.probes, self.maps = probes, {}
        logits = self.net(images)
        return logits.gather(1, logits.argmax(1, keepdim=True)).sum(dtype=torch.float32), self.maps

    def hooks(self) -> list[Any]:
        modules = dict(self.net.named_modules())

        def hook(name: str) -> Any:
            def tap(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                self.maps[name] = statistics_of(output.detach())
                return output + self.probes[name]

            return tap

        return [modules[name].register_forward_hook(hook(name)) for name in self.layers]


def all_processors() -> float:
    """Seconds of this process and of those that it started: the compiler is one of them."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(name: str, size: int, rounds: int, precision: str) -> None:
    network = models.load(name, "none")
    net = network.module.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    layers, batch = stage_modules(network), Batch(size)
    images, seen = normalise(batch.pixels, IMAGENET), probe(net, (224, 224))
    engine, step = make_engine(net, layers, size, precision), Step(net, layers)
    compiled = torch.compile(step, fullgraph=True)

    def once() -> list[Tensor]:
        hooks = step.hooks()
        probes = {layer: torch.zeros(size, (seen[layer].shape or (0,))[0], 1, 1) for layer in layers}
        for tensor in probes.values():
            tensor.requires_grad_()
        try:
            with torch.autocast("cpu", HALF.get(precision, torch.bfloat16), enabled=precision in HALF):
                score, _ = compiled(images, probes)
            return list(torch.autograd.grad(score, list(probes.values())))
        finally:
            for hook in hooks:
                hook.remove()

    before = all_processors()
    wall, _ = seconds(once)
    compiling, times = all_processors() - before, list[tuple[float, float]]()
    with engine:
        engine.add(batch)
    for _ in range(rounds):
        with engine:
            plain = seconds(lambda: engine.add(batch))[1]
        times.append((plain, seconds(once)[1]))
    plain, faster = (statistics.median(column) for column in zip(*times, strict=True))
    ratio, saved = statistics.median(b / a for a, b in times), (plain - faster) / size
    pays = f"pays from {compiling / saved:,.0f} images on" if saved > 0 else "never pays"
    print(
        f"{network.name}, {precision}, batch {size}: compiling {compiling:.0f} s of processors ({wall:.0f} s of "
        f"the clock), then {ratio:.3f} x the engine's processor time ({min(b / a for a, b in times):.3f} to "
        f"{max(b / a for a, b in times):.3f}); {pays}",
        flush=True,
    )


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--precision", "asked", multiple=True, default=("fp32", *precisions(CPU)), show_default=True)
def main(names: tuple[str, ...], batch: int, rounds: int, asked: tuple[str, ...]) -> None:
    """Measure networks."""
    keep_freed_memory()
    print(machine())
    for name in names:
        for precision in asked:
            torch.compiler.reset()
            measure(name, batch, rounds, precision)


if __name__ == "__main__":
    main()
