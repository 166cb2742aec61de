"""The parts that need no files: ceilings, correctness, speed, reductions, profile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import lookup_backend
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from purity_cli import models, run
from purity_cli.engine import HALF, Engine
from purity_cli.machine import float32_of
from purity_cli.pixels import Block, normalise
from purity_cli.plan import DEFAULT_GRID, Job
from purity_cli.purity import map_statistics
from purity_cli.stages import probe
from tests import benchmark, precision
from tests.benchmark import IMAGENET, gflop, stage_modules
from tests.gpu_check.end_to_end import pictures, random_job
from tests.gpu_check.measuring import FORMATS, Book, Cells, Contender, Settings, Step, in_turn, noise

CPU = torch.device("cpu")
# (images, channels, side, kernel): the shapes of ResNet's and VGG's inner layers.
CONVOLUTIONS = ((128, 256, 56, 3), (128, 512, 28, 3), (128, 1024, 28, 1))
WORSE = 0.98
"""Of the best speed so far: a larger batch that comes out below this ends the search for the best one."""
FITS = 2
"""Images that fit where the memory of a CPU is made out to be small."""
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


@contextmanager
def arithmetic(precision: str, device: torch.device, *, cast: bool = True) -> Iterator[None]:
    """The engine's settings for a precision, for work without an engine."""
    half = HALF.get(precision, torch.bfloat16)
    with float32_of(precision), torch.autocast(device.type, half, enabled=cast and precision in HALF):
        yield


def engine(
    net: nn.Module, layers: list[str], batch: int, settings: Settings, precision: str, form: str, **more: Any
) -> Engine:
    more |= {"memory_format": FORMATS[form]}
    return benchmark.make_engine(net, layers, batch, precision, settings.device, **more)


def ceilings(settings: Settings, book: Book) -> Iterator[Step]:
    """Bytes and FLOP/s that the device can do at most."""
    yield "ceilings", {"what": "copy, bytes read and written"}, lambda: {"gb_per_s": copying(settings, book)}
    for name in settings.precisions:
        for names, work in problems(settings, book, name):
            yield "ceilings", names, lambda work=work: {"tflops": work()}  # type: ignore[misc]


def copying(settings: Settings, book: Book) -> float:
    """GB/s of one copy that is larger than any cache."""
    source = torch.randint(0, 256, (2**31 // settings.scale**2,), dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    return 2e-9 * source.numel() / in_turn(book, {"": Contender(lambda: target.copy_(source))})[""]


def problems(settings: Settings, book: Book, name: str, **brief: int) -> Iterator[tuple[Cells, Callable[[], float]]]:
    """Matrix products and convolutions, and the work that gives their TFLOP/s."""
    # Random numbers: zeros can run faster. Of the precision's type already, so that nothing is cast in every step.
    make = partial(torch.randn, device=settings.device, dtype=HALF.get(name, torch.float32))

    def rate(flops: float, work: Callable[[], object]) -> float:
        with torch.no_grad():
            around = partial(arithmetic, name, settings.device, cast=False)
            return 1e-12 * flops / in_turn(book, {"": Contender(work, around)}, **brief)[""]

    def product(n: int) -> float:
        a, b = make(n, n), make(n, n)
        return rate(2.0 * n**3, lambda: a @ b)

    def convolution(n: int, c: int, side: int, kernel: int, form: torch.memory_format, backward: bool) -> float:
        x = make(n, c, side, side).contiguous(memory_format=form)
        w = make(c, c, kernel, kernel).contiguous(memory_format=form)
        space = ([1, 1], [kernel // 2] * 2, [1, 1])
        back = partial(
            torch.ops.aten.convolution_backward, x, x, w, None, *space, False, [0, 0], 1, [True, False, False]
        )
        return rate(2.0 * n * (c * kernel * side) ** 2, back if backward else partial(F.conv2d, x, w, None, *space[:2]))

    n, small = 8192 // settings.scale, min(settings.scale, 8)
    yield {"what": f"matrix product {n}", "precision": name}, partial(product, n)
    for form in settings.formats:
        for images, channels, side, kernel in CONVOLUTIONS:
            shape = (images // small, channels // small, side // small, kernel)
            what = f"convolution {kernel}x{kernel} of {shape[0]}x{shape[1]}x{shape[2]}x{shape[2]}"
            for backward in (False, True):
                names = {"what": what + ", gradient of its input" * backward, "precision": name, "memory_format": form}
                yield names, partial(convolution, *shape, FORMATS[form], backward)


def correctness(settings: Settings, book: Book) -> Iterator[Step]:
    """Every precision against the CPU in fp32, and, on more images than the CPU can do, against the device's own."""
    yield "out_of_memory", {"network": settings.main, "precision": "fp32"}, partial(_out_of_memory, settings)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        dataset = f"folder:{pictures(Path(folder), settings)}"
        small = {"device": "cpu", "batch_size": 64}
        real = [Job(model="tiny_vgg_10", dataset="digits", limit=settings.real, **small)]
        if settings.shared.is_dir():
            jobs = precision.jobs(settings.real // 2, settings.shared)
            real = [job.model_copy(update=small) for job in jobs if job.weights != "none"]
        random = partial(random_job, dataset=dataset, settings=settings, **small)
        checks = [(CPU, job) for job in real]
        for reference, limit in ((CPU, settings.compared), (settings.device, settings.wide)):
            checks += [(reference, random(name, limit=limit)) for name in settings.networks]
        for reference, job in checks:
            yield from _check(settings, book, reference, job)
    rows = pd.DataFrame(book.tables["correctness"])
    for (reference, name), own in rows.groupby(["reference", "precision"], sort=False):
        worst = own.drop(columns=["network", "weights", "images"]).max(numeric_only=True)
        yield "precisions", {"reference": reference, "precision": name}, lambda own=own, worst=worst: {  # type: ignore[misc]
            "networks": int(own.get("largest_df", pd.Series()).notna().sum()), **worst.to_dict(),
            "two_runs_equal": bool(own["two_runs_equal"].all()) if "two_runs_equal" in own else None,
        }  # fmt: skip


def _check(settings: Settings, book: Book, reference: torch.device, job: Job) -> Iterator[Step]:
    """A row for each precision of one network, and its cells."""

    @cache
    def prepared() -> tuple[run.Resolved, list[Block], precision.Counts]:
        resolved = run.resolve(job)
        blocks = list(run.pixels_of(resolved, workers=settings.workers).blocks())
        return resolved, blocks, counted("fp32", resolved, blocks, reference)

    def counted(
        name: str, resolved: Any, blocks: list[Block], device: torch.device, batch: int = 64
    ) -> precision.Counts:
        book.check()
        placed = replace(resolved, device=device, batch_size=batch)
        return precision.counts(placed, blocks, name, DEFAULT_GRID, groups=64)[0]

    def compared(name: str) -> Cells:
        resolved, blocks, expected = prepared()
        found, again, other = (counted(name, resolved, blocks, settings.device, batch) for batch in (64, 64, 7))
        images = sum(len(block.positions) for block in blocks)
        cells = pd.DataFrame(precision.compare(expected, found, images, DEFAULT_GRID))
        about = {"network": resolved.network.name, "weights": resolved.network.weights, "precision": name}
        for cell in cells.to_dict("records"):
            book.add("correctness_cells", **about, **cell, reference=f"{reference.type} fp32", note=None)
        known = cells.dropna(subset="difference")
        fed = known[known["firings"] >= precision.FED * known["channels"]]
        worst = known.loc[known["difference"].idxmax()] if len(known) else None
        fired = int(cells["firings"].sum())
        return {
            **about,
            "images": images,
            "largest_df": None if worst is None else float(worst["difference"]),
            "largest_df_at": None if worst is None else f"{worst['layer']} at {worst['threshold']:g}",
            "largest_df_fed": float(fed["difference"].max()) if len(fed) else None,
            "nan_in_one": int((cells["f"].isna() != cells["f_fp32"].isna()).sum()),
            "firings": fired,
            "differing": int(cells["differing"].sum()),
            "differing_share": cells["differing"].sum() / fired if fired else None,
            "other_batch_share": sum(np.abs(found[m] - other[m]).sum() for m in found) / fired if fired else None,
            "two_runs_equal": all(np.array_equal(found[module], again[module]) for module in found),
        }

    for name in settings.precisions:
        names = {"network": job.model, "reference": f"{reference.type} fp32", "precision": name}
        yield "correctness", names, partial(compared, name)


def _out_of_memory(settings: Settings) -> Cells:
    """A batch that cannot fit: the engine must go on with a smaller one, and count every image once."""
    network, n = models.load(settings.main, "none"), settings.huge
    layers, block, found = stage_modules(network, side=settings.side), noise(n, settings.side, settings.device), []
    real = settings.device.type == "cuda"

    def refuse(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs[0]) > FITS:
            raise torch.OutOfMemoryError("made out")

    for batch in (32, n):
        with ExitStack() as stack:
            if not real and batch == n:
                stack.callback(network.module.register_forward_pre_hook(refuse).remove)
            found.append(stack.enter_context(engine(network.module, layers, batch, settings, "fp32", "channels_last")))
            found[-1].run([block])
    usual, halved = found
    fired = sum(int(usual.counts(layer).sum()) for layer in layers)
    differing = sum(int((usual.counts(layer) - halved.counts(layer)).abs().sum()) for layer in layers)
    return {
        "images": n,
        "how": "real" if real else f"made out: {FITS} images fit",
        "batch_asked": n,
        "batch_in_the_end": halved.batch_size,
        "all_counted_once": int(halved.tally[0]) == n,
        "differing_share": differing / fired if fired else None,
        "note": None if halved.batch_size < n else "it fitted, and so nothing was tried",
    }


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
