"""What the device can do at most, and whether it and a precision change what is counted."""

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

from benchmarks import precision
from benchmarks import speed as benchmark
from benchmarks.gpu_check.end_to_end import pictures, random_job
from benchmarks.gpu_check.measuring import FORMATS, Book, Cells, Contender, Settings, Step, in_turn, noise
from benchmarks.speed import stage_modules
from purity_cli import models, run
from purity_cli.engine import HALF, Engine
from purity_cli.machine import float32_of
from purity_cli.pixels import Block
from purity_cli.plan import DEFAULT_GRID, Job

CPU = torch.device("cpu")
# (images, channels, side, kernel): the shapes of ResNet's and VGG's inner layers.
CONVOLUTIONS = ((128, 256, 56, 3), (128, 512, 28, 3), (128, 1024, 28, 1))
FITS = 2
"""Images that fit where the memory of a CPU is made out to be small."""


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
        small: dict[str, Any] = {"device": "cpu", "batch_size": 64}
        real = [Job(model="tiny_vgg_10", dataset="digits", limit=settings.real, **small)]
        if settings.shared.is_dir():
            jobs = precision.jobs(settings.real // 2, settings.shared)
            real = [job.model_copy(update=small) for job in jobs if job.weights != "none"]

        def random(name: str, limit: int) -> Job:
            return random_job(name, dataset, settings, limit=limit, **small)

        checks = [(CPU, job) for job in real]
        for reference, limit in ((CPU, settings.compared), (settings.device, settings.wide)):
            checks += [(reference, random(name, limit)) for name in settings.networks]
        for reference, job in checks:
            yield from _check(settings, book, reference, job)
    rows = pd.DataFrame(book.tables["correctness"])
    for (against, name), own in rows.groupby(["reference", "precision"], sort=False):
        worst = own.drop(columns=["network", "weights", "images"]).max(numeric_only=True)
        yield "precisions", {"reference": against, "precision": name}, lambda own=own, worst=worst: {  # type: ignore[misc]
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
        for cell in precision.compare(expected, found, images, DEFAULT_GRID):
            book.add("correctness_cells", **about, **cell, reference=f"{reference.type} fp32", note=None)
        known = cells.dropna(subset="difference")
        fed = known[known["firings"] >= precision.FED * known["channels"]]
        worst = known.sort_values("difference").iloc[-1] if len(known) else None
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
