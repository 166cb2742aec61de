"""How fast scoring is beside a plain forward pass, at each one's best batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch

from benchmarks.gpu_check.measuring import FORMATS, Book, Cells, Contender, Settings, Step, in_turn, noise
from benchmarks.gpu_check.parts import CPU, arithmetic, engine, problems
from benchmarks.speed import IMAGENET, gflop, stage_modules
from purity_cli import models
from purity_cli.pixels import normalise

WORSE = 0.98
"""Of the best speed so far: a larger batch that comes out below this ends the search for the best one."""


def speed(settings: Settings, book: Book) -> Iterator[Step]:
    """Format by format and precision by precision, so that what time allows is whole tables."""
    ceiling = cache(partial(_ceiling, settings, book))
    load = cache(partial(models.load, weights="none"))
    for form in settings.formats:
        for name in settings.precisions:
            for network in settings.networks:
                names = {"network": network, "precision": name, "memory_format": form}
                yield "speed", names, partial(_speed, settings, book, load, ceiling, network, name, form)


def _ceiling(settings: Settings, book: Book, name: str) -> float:
    """The most TFLOP/s of all the problems."""
    return max(work() for _, work in problems(settings, book, name, rounds=1))


def _speed(settings: Settings, book: Book, load: Any, ceiling: Any, name: str, kind: str, form: str) -> Cells:
    network, device, side = load(name), settings.device, settings.side
    net, layers = network.module, stage_modules(network, side=side)

    def forward(batch: int, precision: str = kind) -> Contender:
        """A plain pass in inference mode, over images that are normalised already."""
        images = normalise(noise(batch, side, device).pixels, IMAGENET).contiguous(memory_format=FORMATS[form])
        net.to(device=device, memory_format=FORMATS[form])

        @contextmanager
        def around() -> Iterator[None]:
            with arithmetic(precision, device), torch.inference_mode():
                yield

        return Contender(partial(net, images), around)

    def scoring(batch: int, taps: list[str] = layers, precision: str = kind) -> Contender:
        """All that the engine does with a batch on the device. OutOfMemoryError instead of halving."""
        block, made = noise(batch, side, device), engine(net, taps, batch, settings, precision, form)

        def step() -> None:
            made.add(block)
            if made.batch_size < batch:
                raise torch.OutOfMemoryError(f"{batch} images do not fit")

        return Contender(step, lambda: made)

    def best(make: Callable[[int], Contender]) -> int:
        """The batch size of the most images/s: doubled until that falls or memory ends."""
        found, rate = 0, 0.0
        for batch in settings.batches:
            try:
                now = batch / in_turn(book, {"": make(batch)}, rounds=1)[""]
            except torch.OutOfMemoryError:
                break
            if now < WORSE * rate:
                break
            found, rate = (batch, now) if now > rate else (found, rate)
        if not found:
            raise torch.OutOfMemoryError
        return found

    try:
        one, whole = forward(1, "fp32"), scoring(1, layers, "fp32")
        with one.around():
            flops = {"forward": gflop(one.step)}
        with whole.around():
            whole.step()  # the first batch also tries the network out
            flops["scoring"] = gflop(whole.step)
        batches = {"forward": best(forward), "scoring": best(scoring)}
        batches["last"] = batches["forward"]  # it keeps no more than a forward pass does
        contenders = {
            "forward": forward(batches["forward"]),
            "scoring": scoring(batches["scoring"]),
            "last": scoring(batches["last"], layers[-1:]),
        }
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        took = {way: value / batches[way] for way, value in in_turn(book, contenders).items()}
        reached, most = {way: flops[way] / took[way] / 1000 for way in flops}, ceiling(kind)
        return {
            "batch_forward": batches["forward"],
            "batch_scoring": batches["scoring"],
            **{f"{way}_images_per_s": 1 / value for way, value in took.items()},
            "scoring_over_forward": took["scoring"] / took["forward"],
            "last_over_forward": took["last"] / took["forward"],
            **{f"{way}_gflop": value for way, value in flops.items()},
            **{f"{way}_tflops": value for way, value in reached.items()},
            "ceiling_tflops": most,
            "scoring_of_ceiling": reached["scoring"] / most,
            "device_mib": torch.cuda.max_memory_allocated(device) // 2**20 if device.type == "cuda" else None,
        }
    finally:
        net.to(CPU)
