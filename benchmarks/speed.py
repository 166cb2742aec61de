"""How much slower than a plain forward pass scoring is, and how much faster than the ways there were before.

    make benchmark                    # everything; a quarter of an hour on two idle cores
    make benchmark ARGS=resnet50      # one network's rows
    make benchmark ARGS=--memory      # peak memory of each kind of data set; minutes

Every figure is a ratio within one process on the same images, since absolute times differ between machines and from
minute to minute. Each round runs every contender once, in turn; the median over rounds counts, and the lowest and the
highest stand beside it. Where others use the machine, the ratio of processor times says more than that of the clock.
Random weights: speed does not depend on them.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.precision import precisions
from purity_cli import __version__, models, stages, store
from purity_cli.datasets import open_dataset
from purity_cli.engine import HALF, Engine
from purity_cli.machine import keep_freed_memory
from purity_cli.pixels import Pixels, normalise
from purity_cli.plan import DEFAULT_GRID, Preprocessing
from tests.conftest import SHARED
from tests.core import oracle
from tests.datasets import packing

NETWORKS = ("resnet50", "alexnet", "densenet121", "vgg16", "timm:legacy_senet154")
BATCH = {"alexnet": 32}
FEW = 2
"""Images of the released procedure, which takes them one at a time."""
IMAGENET = Preprocessing(crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CPU = torch.device("cpu")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")


class Batch:
    """`n` images of noise, 224 x 224."""

    def __init__(self, n: int) -> None:
        pixels = torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8)
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.positions = torch.arange(n)
        self.labels = torch.full((n,), -1)


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


def gflop(work: Callable[[], object]) -> float:
    """What `work` computes, a multiplication and an addition each an operation."""
    with Flops() as counter:
        work()
    return counter.total / 1e9


def stage_modules(network: models.Network, specs: str = "C1..last", side: int = 224) -> list[str]:
    taps = stages.resolve(network.module, network.source, network.name, [specs], (side, side))
    return list(dict.fromkeys(tap.module for tap in taps))


def make_engine(
    net: nn.Module, layers: list[str], batch_size: int, precision: str = "fp32", device: torch.device = CPU, **more: Any
) -> Engine:
    return Engine(
        net,
        layers,
        normalise=partial(normalise, preprocessing=IMAGENET),
        thresholds=DEFAULT_GRID,
        groups=more.pop("groups", 20),
        device=device,
        precision=precision,
        batch_size=batch_size,
        **more,
    )


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


@dataclass
class Contender:
    """Work on some images, and how much of it there is."""

    work: Callable[[], object]
    images: int
    gflop: float | None = None
    """Per image."""
    precision: str = "fp32"


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """On the clock, and of all processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


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


def compare(
    network: str, contenders: dict[str, Contender], rounds: int, most: dict[str, float]
) -> list[dict[str, Any]]:
    """A row for each, beside the first: of every round the ratio per image, of which the median counts."""
    for one in contenders.values():
        one.work()
    times = [{name: seconds(one.work) for name, one in contenders.items()} for _ in range(rounds)]
    first, rows = next(iter(contenders)), []
    for name, one in contenders.items():
        share = one.images / contenders[first].images
        wall, cpu = ([row[name][i] / row[first][i] / share for row in times] for i in (0, 1))
        took = statistics.median(row[name][0] for row in times) / one.images
        rate = one.gflop / took if one.gflop else None
        rows.append(
            {
                "network": network,
                "what": name,
                "ratio": statistics.median(wall),
                "from": min(wall),
                "to": max(wall),
                "processor time": statistics.median(cpu),
                "ms/image": 1000 * took,
                "GFLOP/s": rate,
                "of the product's": rate / most[one.precision] if rate else None,
            }
        )
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.2f", na_rep="-"), flush=True)
    return rows


def measure(name: str, rounds: int, most: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of one network."""
    size = BATCH.get(name, 8)
    network = models.load(name, "none")
    net = network.module.to(memory_format=torch.channels_last)
    layers = stage_modules(network)
    batch, one = Batch(size), Batch(1)
    images = normalise(batch.pixels, IMAGENET)

    with torch.no_grad():  # what runs in inference mode is not seen operation by operation
        operations = gflop(partial(net, images[:1]))

    def plain(precision: str) -> Contender:
        @torch.inference_mode()
        def work(images: Tensor = images) -> None:
            with torch.autocast("cpu", HALF.get(precision, torch.bfloat16), enabled=precision in HALF):
                net(images)

        return Contender(with_default_memory(work), size, operations, precision)

    def scored(taps: list[str], precision: str) -> Contender:
        engine = make_engine(net, taps, size, precision)

        def work(batch: Batch = batch) -> None:
            with engine:
                engine.add(batch)

        work(one)  # the first batch also tries the network out
        return Contender(work, size, gflop(partial(work, one)), precision)

    contenders = {"forward, fp32": plain("fp32")}
    for precision in (*precisions(CPU), "fp32"):
        if precision != "fp32":
            contenders[f"forward, {precision}"] = plain(precision)
        contenders[f"C1..C5, {precision}"] = scored(layers, precision)
        contenders[f"C5, {precision}"] = scored(layers[-1:], precision)
        contenders[f"all readings, {precision}"] = scored(stage_modules(network, "all:C1..last"), precision)
    rows = compare(network.name, contenders, rounds, most)
    slow = {
        "forward, fp32": contenders["forward, fp32"],
        "captum's LayerGradCam, five layers": Contender(
            with_default_memory(partial(captum_cams, net, layers, images)), size
        ),
        "the released procedure": Contender(with_default_memory(partial(released, net, layers, images[:FEW])), FEW),
    }
    return rows + compare(network.name, slow, 2, most)[1:]


def matrix_product(precision: str, n: int = 2048) -> float:
    """GFLOP/s of a square matrix product, the best of some: what this machine can do at most, or nearly."""
    a, b = (torch.randn(n, n).to(HALF.get(precision, torch.float32)) for _ in range(2))
    return 2e-9 * n**3 / min(clock(lambda: a @ b) for _ in range(10))


def machine() -> str:
    """What the figures were measured on."""
    flags, model = set[str](), "a CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else ():
        key, _, value = line.partition(":")
        flags |= set(value.split()) if key.strip() == "flags" else set()
        model = value.strip() if key.strip() == "model name" else model
    known = ", ".join(name for name in INSTRUCTIONS if name in flags)
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model}, {torch.get_num_threads()} threads of {len(os.sched_getaffinity(0))} processors; instruction sets "
        f"{known or 'unknown'} (PyTorch goes by {torch.backends.cpu.get_cpu_capability()}); torch {torch.__version__}; "
        f"load over 1/5/15 minutes {load}"
    )


def photographs(folder: Path, n: int) -> None:
    """`n` different JPEGs of ImageNet's usual size, smooth enough to compress like photographs."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:04}.JPEG", quality=90)


def end_to_end(n: int, precision: str) -> str:
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
        with make_engine(network.module, layers, 16, precision) as engine:
            engine.run(pixels.blocks(numbers[:2]))
            # In turns, since the machine's speed drifts over the minutes that this takes.
            for start in range(0, len(numbers), 16):
                part = numbers[start : start + 16]
                ready = list(pixels.blocks(part))
                alone += clock(partial(engine.run, ready))
                whole += clock(partial(engine.run, pixels.blocks(part)))
    return f"end to end, {n} JPEGs of 500 x 375, resnet50 C1..C5, {precision}: {whole / alone:.2f} x the engine alone"


PEAK = """
import atexit, runpy
from pathlib import Path
atexit.register(lambda: print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]))
runpy.run_module("purity_cli", run_name="__main__")
"""
"""Any command, and then the KiB that it needed at most. `getrusage` would begin with those of the parent process."""


def peak_memory(*command: str) -> float:
    """MiB that a command of `purity` needs at most, in a process of its own."""
    ran = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=True)
    return int(ran.stdout.split()[-1]) / 1024


def copied(times: int, place: Path) -> packing.Files:
    """500 of the photographs beside the checkout so many times, or else some that `place` is for."""
    chosen = sorted((SHARED / "data" / "imagenet-sample").glob("*/*"))[::2]
    if not chosen:
        photographs(place, 500)
        chosen = sorted(place.iterdir())
    contents = [path.read_bytes() for path in chosen]
    return {f"class{k // 20:02}/{k:04}-{i}.jpg": data for k, data in enumerate(contents) for i in range(times)}


def memory(times: Sequence[int] = (1, 5)) -> pd.DataFrame:
    """MiB at most for each kind of data set, and for a cache, of some photographs and of so many copies of them."""
    layouts: dict[str, dict[str, Any]] = {"shards": {"size": 100}, "parquet": {"rows": 2500, "row_group_size": 100}}
    columns: dict[str, dict[str, float]] = {}
    for copies in times:
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            (place / "new").mkdir()
            files = copied(copies, place / "new")
            size = sum(map(len, files.values())) / 2**20
            peaks = columns.setdefault(f"{len(files):,} images, {size:.0f} MiB", {})
            score = ("score", "--workers", "2", "-b", "16", "--fresh", "-o", str(place / "out"))
            for kind, make in packing.PACKINGS.items():
                where = make(place / kind, files, **layouts.get(kind, {}))
                peaks[kind] = peak_memory(*score, "-d", where, "--resize", "32", "--crop", "32")
            cached = ("-d", str(place / "folder"), "--resize", "64", "--crop", "64", "--cache", str(place / "cache"))
            peaks["folder, to fill a cache"] = peak_memory("cache", "build", *cached, "--workers", "2", "-b", "16")
            peaks["folder, from the cache"] = peak_memory(*score, *cached)
        print(pd.DataFrame(columns).to_markdown(floatfmt=".0f"), flush=True)
    return pd.DataFrame(columns)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", default=5, show_default=True)
@click.option("--images", default=1000, show_default=True, help="JPEGs of the end-to-end part.")
@click.option("--memory", "only_memory", is_flag=True, help="Only print the peak memory of each kind of data set.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/benchmark"), show_default=True)
def main(names: tuple[str, ...], rounds: int, images: int, only_memory: bool, out: Path) -> None:
    """Print the ratios, and write them to speed.md and speed.csv; with NAMES, those of these networks alone."""
    if only_memory:
        memory()
        return
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    most = {precision: matrix_product(precision) for precision in ("fp32", *precisions(CPU))}
    notes = [machine(), *(f"a matrix product reaches {rate:.0f} GFLOP/s in {name}" for name, rate in most.items())]
    rows: list[dict[str, Any]] = []

    def write() -> None:
        frame = pd.DataFrame(rows).astype(object)
        page = frame.where(frame.notna(), None).to_markdown(index=False, floatfmt=".2f", missingval="") if rows else ""
        text = f"# Speed\n\n`make benchmark ARGS='{' '.join(sys.argv[1:])}'`, purity {__version__}\n\n"
        store.write_text(out / "speed.md", text + "\n".join(f"- {note}" for note in notes) + f"\n\n{page}\n")
        store.write_text(out / "speed.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.4g"))

    print("\n".join(notes), flush=True)
    for name in names or NETWORKS:
        rows += measure(name, rounds, most)
        write()
    if not names:
        known = len(notes)
        notes += [end_to_end(images, precision) for precision in (*precisions(CPU), "fp32")]
        notes.append(f"peak memory in MiB:\n\n{memory().to_markdown(floatfmt='.0f')}\n")
        start = [
            clock(
                partial(subprocess.run, [sys.executable, "-m", "purity_cli", "--help"], check=True, capture_output=True)
            )
            for _ in range(5)
        ]
        notes.append(f"purity --help: {statistics.median(start):.2f} s")
        print("\n".join(notes[known:]))
        write()


if __name__ == "__main__":
    main()
