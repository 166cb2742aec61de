"""How fast scoring is, what compiled reductions would give, and where a batch's time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch._dynamo import lookup_backend
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu_check.measuring import FORMATS, Book, Cells, Contender, Settings, Step, in_turn, noise
from benchmarks.gpu_check.parts import CPU, arithmetic, copying, engine, problems
from benchmarks.speed import IMAGENET, gflop, stage_modules
from purity_cli import models
from purity_cli.engine import HALF
from purity_cli.pixels import normalise
from purity_cli.purity import map_statistics
from purity_cli.stages import probe

WORSE = 0.98
"""Of the best speed so far: a larger batch that comes out below this ends the search for the best one."""
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


def reductions(settings: Settings, book: Book) -> Iterator[Step]:
    """One read of each map: the engine's reductions as they are, and compiled into one kernel; then scoring with it."""
    network, side, batch = models.load(settings.main, "none"), settings.side, settings.batch
    layers, seen = stage_modules(network, side=side), probe(network.module, (side, side))
    ran = [0]
    """How often a compiled graph ran: where the compiler gives up it says nothing, and the plain function runs."""

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        made = lookup_backend(settings.compiler)(graph, examples)

        def counting(*inputs: Any) -> Any:
            ran[0] += 1
            return made(*inputs)

        return counting

    # On a CPU map_statistics looks at its values, which one graph cannot hold.
    compiled = torch.compile(map_statistics, dynamic=True, fullgraph=settings.device.type == "cuda", backend=backend)
    bandwidth = cache(partial(copying, settings, book))

    def both(plain: Contender, other: Contender) -> Cells:
        before = ran[0]
        found = in_turn(book, {"plain": plain, "compiled": other})
        if ran[0] == before:
            raise RuntimeError("the compiled reductions did not run")
        ratio = found["plain"] / found["compiled"]
        return {**{f"{name}_ms": 1000 * value for name, value in found.items()}, "plain_over_compiled": ratio}

    def one_map(layer: str, name: str, form: str) -> Cells:
        maps = torch.randn(batch, *(seen[layer].shape or ()), device=settings.device)
        maps = maps.to(HALF.get(name, torch.float32)).contiguous(memory_format=FORMATS[form])
        pairs = zip(map_statistics(maps), compiled(maps), strict=True)
        return {
            **both(Contender(lambda: map_statistics(maps)), Contender(lambda: compiled(maps))),
            "one_read_ms": maps.numel() * maps.element_size() / (1e6 * bandwidth()),
            "largest_relative_difference": max(
                float(((a - b).abs() / a.abs().clamp_min(1e-12)).max()) for a, b in pairs
            ),
        }

    def scoring(name: str, form: str) -> Cells:
        block = noise(batch, side, settings.device)
        # A group for each image, so that no two differences can cancel.
        made = [
            engine(network.module, layers, batch, settings, name, form, groups=max(2, batch), statistics=way)
            for way in (map_statistics, compiled)
        ]
        counts = []
        for one in made:
            with one:
                one.add(block)
            counts.append({layer: one.counts(layer) for layer in layers})
        return {
            **both(*(Contender(partial(one.add, block), lambda one=one: one) for one in made)),  # type: ignore[misc]
            "firings": sum(int(counts[0][layer].sum()) for layer in layers),
            "differing": sum(int((counts[0][layer] - counts[1][layer]).abs().sum()) for layer in layers),
        }

    for name in settings.precisions:
        for form in settings.formats:
            torch.compiler.reset()  # it compiles anew for each type and layout, and only so often before it gives up
            names = {"precision": name, "memory_format": form, "batch": batch}
            for layer in layers:
                yield "reductions", {"what": f"{settings.main} {layer}", **names}, partial(one_map, layer, name, form)
            yield "reductions", {"what": f"{settings.main} C1..last scored", **names}, partial(scoring, name, form)


def profiles(settings: Settings, book: Book) -> Iterator[Step]:
    """ms of a batch by kind of kernel, and by kernel for those that take longest; in the first memory format."""
    load, cuda, steps = cache(partial(models.load, weights="none")), settings.device.type == "cuda", 3

    def row(about: Cells) -> Cells:
        network = load(about["network"])
        block = noise(about["batch"], settings.side, settings.device)
        made = engine(
            network.module, stage_modules(network, side=settings.side), about["batch"], settings, about["precision"],
            about["memory_format"],
        )  # fmt: skip
        # Without the profiler, which slows the host.
        whole = 1000 * in_turn(book, {"": Contender(partial(made.add, block), lambda: made)})[""]
        with made, profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
            for _ in range(steps):
                made.add(block)
            made.check()
        kinds, kernels = dict.fromkeys((*KINDS, "other"), 0.0), []
        for event in seen.key_averages():
            if event.device_type.name == ("CUDA" if cuda else "CPU"):
                ms = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000 / steps
                kinds[kind(event.key)] += ms
                kernels.append((ms, event.count / steps, event.key))
        for ms, calls, name in sorted(kernels, reverse=True)[:20]:
            cells = {"kind": kind(name), "kernel": name[:160], "calls": calls, "ms": ms, "share": ms / whole}
            book.add("profile_kernels", **about, **cells, note=None)
        return {"whole": whole, **kinds, "idle": whole - sum(kinds.values()) if cuda else None}

    for name in settings.precisions:
        for network in settings.networks:
            about = {
                "network": network,
                "precision": name,
                "memory_format": settings.formats[0],
                "batch": settings.batch,
            }
            yield "profile", about, partial(row, about)


def kind(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((name for name, parts in KINDS.items() if any(part in kernel.lower() for part in parts)), "other")
