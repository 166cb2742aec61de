"""Images/s of the paper's networks: a plain forward pass, scoring C1..C5, scoring C5; and FLOP/s beside the ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from purity_cli import models
from purity_cli.pixels import normalise
from tests.gpu_check.budget import Budget, Contender, in_turn
from tests.gpu_check.ceilings import highest
from tests.gpu_check.report import Cells, Planned, Sheet
from tests.gpu_check.settings import FORMATS, Settings
from tests.gpu_check.subjects import IMAGENET, arithmetic, make_engine, noise, stages_of

COLUMNS = (
    "network", "precision", "memory_format", "batch_forward", "batch_scoring",
    "forward_images_per_s", "scoring_images_per_s", "last_images_per_s", "scoring_over_forward", "last_over_forward",
    "forward_gflop", "scoring_gflop", "forward_tflops", "scoring_tflops", "ceiling_tflops", "scoring_of_ceiling",
    "device_mib",
)  # fmt: skip
SHOWN = (
    "network", "precision", "memory_format", "batch_scoring", "forward_images_per_s", "scoring_images_per_s",
    "scoring_over_forward", "last_over_forward", "scoring_tflops", "scoring_of_ceiling", "device_mib",
)  # fmt: skip
CPU = torch.device("cpu")
WORSE = 0.98
"""Of the best speed so far: a larger batch that comes out below this ends the search for the best one."""


def part(settings: Settings, budget: Budget, about: Cells) -> list[Sheet]:
    """Fill `speed`."""
    sheet = Sheet(settings, "speed", COLUMNS, about, SHOWN)
    sheet.fill(planned(settings, budget))
    return [sheet]


def planned(settings: Settings, budget: Budget) -> Iterator[Planned]:
    """Format by format and precision by precision, so that what time allows is whole tables."""
    networks: dict[str, Network] = {}
    ceilings: dict[str, float | None] = {}
    for memory_format in settings.formats:
        for precision in settings.precisions:
            for name in settings.networks:
                names = {"network": name, "precision": precision, "memory_format": memory_format}
                yield names, partial(_row, settings, budget, networks, ceilings, **names)


@dataclass
class Network:
    """One network; what does not depend on precision and format is counted once. Random weights serve for speed."""

    settings: Settings
    name: str
    loaded: models.Network = field(init=False)
    layers: list[str] = field(init=False)
    forward_gflop: float = field(init=False)
    """Per image."""
    scoring_gflop: float = field(init=False)
    """Per image, C1..C5: the forward pass, and the backward pass as far as C1."""

    def __post_init__(self) -> None:
        side = self.settings.side
        self.loaded = models.load(self.name, "none")
        self.layers = stages_of(self.loaded, side)
        block = noise(1, side, CPU)
        images = normalise(block.pixels, IMAGENET)
        net = self.loaded.module
        self.forward_gflop = _gflop(lambda: net(images))
        with make_engine(net, self.layers, CPU, precision="fp32", batch_size=1) as engine:
            engine.add(block)  # the first batch also tries the network out
            self.scoring_gflop = _gflop(lambda: engine.add(block))

    def forward(self, batch: int, precision: str, memory_format: str) -> Contender:
        """A plain pass in inference mode, over images that are normalised already."""
        settings, net = self.settings, self.loaded.module
        pixels = noise(batch, settings.side, settings.device).pixels
        images = normalise(pixels, IMAGENET).contiguous(memory_format=FORMATS[memory_format])
        net.to(device=settings.device, memory_format=FORMATS[memory_format])  # type: ignore[call-overload]

        def around() -> AbstractContextManager[object]:
            stack = ExitStack()
            stack.enter_context(arithmetic(precision, settings.device))
            stack.enter_context(torch.inference_mode())
            return stack

        return Contender(partial(net, images), around)

    def scoring(self, layers: list[str], batch: int, precision: str, memory_format: str) -> Contender:
        """All that the engine does with a batch that is on the device already. OutOfMemoryError instead of halving."""
        settings = self.settings
        block = noise(batch, settings.side, settings.device)
        engine = make_engine(
            self.loaded.module, layers, settings.device,
            precision=precision, batch_size=batch, memory_format=memory_format,
        )  # fmt: skip

        def step() -> None:
            engine.add(block)
            if engine.batch_size < batch:
                raise torch.OutOfMemoryError(f"{batch} images do not fit")

        return Contender(step, lambda: engine)


class Flops(TorchDispatchMode):
    """Counts floating-point operations by PyTorch's own formulas, backward passes too.

    Not its FlopCounterMode, whose hooks on modules `torch.autograd.grad` does not take.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **kwargs, out_val=result) if formula else 0
        return result


def _gflop(work: Callable[[], object]) -> float:
    with Flops() as counter:
        work()
    return counter.total / 1e9


def best_batch(make: Callable[[int], Contender], settings: Settings, budget: Budget) -> int:
    """The batch size of the most images/s: doubled until that falls or memory ends. OutOfMemoryError if none fits."""
    best, speed = 0, 0.0
    for batch in settings.batches:
        try:
            seconds = in_turn({"": make(batch)}, settings.device, budget, rounds=1, at_least=settings.at_least / 2)
        except torch.OutOfMemoryError:
            break
        if batch / seconds[""] < WORSE * speed:
            break
        if batch / seconds[""] > speed:
            best, speed = batch, batch / seconds[""]
    if not best:
        raise torch.OutOfMemoryError
    return best


def _row(
    settings: Settings,
    budget: Budget,
    networks: dict[str, Network],
    ceilings: dict[str, float | None],
    *,
    network: str,
    precision: str,
    memory_format: str,
) -> Cells:
    budget.check()
    if precision not in ceilings:
        brief = replace(settings, rounds=1, at_least=settings.at_least / 2)
        ceilings[precision] = highest(brief, budget, precision)
    if network not in networks:
        networks[network] = Network(settings, network)
    it = networks[network]
    try:
        return _measure(it, settings, budget, ceilings[precision], precision, memory_format)
    finally:
        it.loaded.module.to(CPU)


def _measure(
    it: Network, settings: Settings, budget: Budget, ceiling: float | None, precision: str, memory_format: str
) -> Cells:
    how, device = (precision, memory_format), settings.device
    batch_forward = best_batch(lambda batch: it.forward(batch, *how), settings, budget)
    batch_scoring = best_batch(lambda batch: it.scoring(it.layers, batch, *how), settings, budget)
    contenders = {
        "forward": it.forward(batch_forward, *how),
        "scoring": it.scoring(it.layers, batch_scoring, *how),
        # It keeps no more than a forward pass does.
        "last": it.scoring(it.layers[-1:], batch_forward, *how),
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = in_turn(contenders, device, budget, rounds=settings.rounds, at_least=settings.at_least)
    batches = {"forward": batch_forward, "scoring": batch_scoring, "last": batch_forward}
    per_image = {name: seconds[name] / batch for name, batch in batches.items()}
    scoring_flops = 1e9 * it.scoring_gflop / per_image["scoring"]
    return {
        "batch_forward": batch_forward,
        "batch_scoring": batch_scoring,
        **{f"{name}_images_per_s": 1 / value for name, value in per_image.items()},
        "scoring_over_forward": per_image["scoring"] / per_image["forward"],
        "last_over_forward": per_image["last"] / per_image["forward"],
        "forward_gflop": it.forward_gflop,
        "scoring_gflop": it.scoring_gflop,
        "forward_tflops": it.forward_gflop / per_image["forward"] / 1000,
        "scoring_tflops": scoring_flops / 1e12,
        "ceiling_tflops": ceiling / 1e12 if ceiling else None,
        "scoring_of_ceiling": scoring_flops / ceiling if ceiling else None,
        "device_mib": torch.cuda.max_memory_allocated(device) // 2**20 if device.type == "cuda" else None,
    }
