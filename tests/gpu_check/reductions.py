"""What one read of each feature map would give: the engine's reductions as they are, and compiled into one kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import lookup_backend

from purity_cli import models
from purity_cli.engine import Engine
from purity_cli.purity import MapStatistics, map_statistics
from purity_cli.stages import probe
from tests.gpu_check.budget import Budget, Contender, in_turn
from tests.gpu_check.ceilings import DTYPES, copying
from tests.gpu_check.report import Cells, Planned, Sheet
from tests.gpu_check.settings import FORMATS, Settings
from tests.gpu_check.subjects import make_engine, noise, stages_of

COLUMNS = (
    "what", "precision", "memory_format", "batch", "plain_ms", "compiled_ms", "one_read_ms", "plain_over_compiled",
    "largest_relative_difference", "firings", "differing",
)  # fmt: skip
BATCH = 128

Statistics = Callable[[Tensor], MapStatistics]


def part(settings: Settings, budget: Budget, about: Cells) -> list[Sheet]:
    """Fill `reductions`: first each map of one network, then scoring with it."""
    sheet = Sheet(settings, "reductions", COLUMNS, about)
    sheet.fill(planned(settings, budget))
    return [sheet]


def planned(settings: Settings, budget: Budget) -> Iterator[Planned]:
    """Of each precision and format, a row for each map and one for the whole."""
    bench = Bench(settings, budget)
    for precision in settings.precisions:
        for memory_format in settings.formats:
            # It compiles anew for each type and layout, and only so often before it gives up.
            torch.compiler.reset()
            names: Cells = {"precision": precision, "memory_format": memory_format, "batch": bench.batch}
            for layer in bench.layers:
                what = f"{settings.main} {layer}"
                yield {"what": what, **names}, partial(bench.one_map, layer, precision, memory_format)
            what = f"{settings.main} C1..last scored"
            yield {"what": what, **names}, partial(bench.scoring, precision, memory_format)


class Bench:
    """One network, its maps, and the two ways to reduce them."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        self.settings, self.budget = settings, budget
        self.network, side = models.load(settings.main, "none"), settings.side
        self.layers = stages_of(self.network, side)
        seen = probe(self.network.module, (side, side))
        self.shapes = {layer: seen[layer].shape or () for layer in self.layers}
        self.batch = max(1, BATCH // settings.scale)
        self.ran = 0
        """How often a compiled graph ran: where the compiler gives up it says nothing, and the plain function runs."""
        # On a CPU map_statistics looks at its values, which one graph cannot hold.
        whole = settings.device.type == "cuda"
        self.compiled: Statistics = torch.compile(map_statistics, dynamic=True, fullgraph=whole, backend=self._backend)

    @cached_property
    def bandwidth(self) -> float:
        """GB/s of a copy."""
        return copying(self.settings, self.budget)

    def one_map(self, layer: str, precision: str, memory_format: str) -> Cells:
        """Random numbers in the shape of one layer's maps."""
        self.budget.check()
        maps = torch.randn(self.batch, *self.shapes[layer], device=self.settings.device)
        maps = maps.to(DTYPES.get(precision, torch.float32)).contiguous(memory_format=FORMATS[memory_format])
        pairs = zip(map_statistics(maps), self.compiled(maps), strict=True)
        differences = torch.stack([((a - b).abs() / a.abs().clamp_min(1e-12)).max() for a, b in pairs])
        return {
            **self._both(Contender(lambda: map_statistics(maps)), Contender(lambda: self.compiled(maps))),
            "one_read_ms": maps.numel() * maps.element_size() / (1e6 * self.bandwidth),
            "largest_relative_difference": float(differences.max()),
        }

    def scoring(self, precision: str, memory_format: str) -> Cells:
        """Everything that the engine does with a batch."""
        self.budget.check()
        block = noise(self.batch, self.settings.side, self.settings.device)
        engines = [self._engine(way, precision, memory_format) for way in (map_statistics, self.compiled)]
        counts = []
        for engine in engines:
            with engine:
                engine.add(block)
            counts.append({layer: engine.counts(layer) for layer in self.layers})
        plain, compiled = engines
        return {
            **self._both(
                Contender(partial(plain.add, block), lambda: plain),
                Contender(partial(compiled.add, block), lambda: compiled),
            ),
            "firings": sum(int(counts[0][layer].sum()) for layer in self.layers),
            "differing": sum(int((counts[0][layer] - counts[1][layer]).abs().sum()) for layer in self.layers),
        }

    def _backend(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        run = lookup_backend(self.settings.compiler)(graph, examples)

        def counted(*inputs: Any) -> Any:
            self.ran += 1
            return run(*inputs)

        return counted

    def _engine(self, statistics: Statistics, precision: str, memory_format: str) -> Engine:
        return make_engine(
            self.network.module, self.layers, self.settings.device,
            # A group for each image, so that no two differences can cancel.
            precision=precision, batch_size=self.batch, memory_format=memory_format, groups=self.batch,
            statistics=statistics,
        )  # fmt: skip

    def _both(self, plain: Contender, compiled: Contender) -> Cells:
        settings = self.settings
        before = self.ran
        seconds = in_turn(
            {"plain": plain, "compiled": compiled}, settings.device, self.budget,
            rounds=settings.rounds, at_least=settings.at_least,
        )  # fmt: skip
        if self.ran == before:
            raise RuntimeError("the compiled reductions did not run")
        return {
            **{f"{name}_ms": 1000 * value for name, value in seconds.items()},
            "plain_over_compiled": seconds["plain"] / seconds["compiled"],
        }
