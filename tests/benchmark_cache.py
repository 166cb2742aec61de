"""What decoding once is worth: reading with and without the cache, and a suite of four models beside its parts.

    python -m tests.benchmark_cache [IMAGES] [LIMIT]   # by default all of ../shared/data/imagenet-sample

Wall time is what counts on an idle machine; processor time can be compared on a busy one. Random weights: speed does
not depend on them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from purity_cli import run
from purity_cli.cache import CachedPixels
from purity_cli.datasets import open_dataset
from purity_cli.datasets.trees import FileSource
from purity_cli.pixels import Pixels
from purity_cli.run.resolving import PAPER
from purity_cli.suite import Suite
from purity_cli.suite.bench import Bench
from tests.conftest import SHARED

MODELS = ("alexnet", "resnet18", "timm:resnet10t", "timm:mobilenetv3_small_050")
WORKERS = len(os.sched_getaffinity(0))


class Clock:
    """Seconds of a block of code, on the wall and of the processors."""

    wall = cpu = 0.0

    def __str__(self) -> str:
        return f"{self.wall:7.1f} s, {self.cpu:7.1f} s of processors"


@contextmanager
def clock() -> Iterator[Clock]:
    measured = Clock()
    wall, cpu = time.perf_counter(), time.process_time()
    yield measured
    measured.wall, measured.cpu = time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def counted() -> Iterator[Counter[int]]:
    """How often each image of any folder or tar is decoded."""
    loads: Counter[int] = Counter()
    load, lock = FileSource.load, threading.Lock()

    def counting(self: FileSource, i: int, /) -> Image.Image:
        with lock:
            loads[i] += 1
        return load(self, i)

    FileSource.load = counting  # type: ignore[method-assign]
    try:
        yield loads
    finally:
        FileSource.load = load  # type: ignore[method-assign]


def reading(images: str, limit: int | None) -> None:
    """Blocks from files, into the cache, and out of it."""
    source = open_dataset(images)
    selection = range(len(source))[:limit]

    def time_one(name: str, root: Path | None) -> None:
        what, size = (source, selection, PAPER["imagenet"]), 32
        with counted() as loads, clock() as seconds:
            if root:
                pixels: Pixels = CachedPixels(*what, root=root, warn=print, batch_size=size, workers=WORKERS)
            else:
                pixels = Pixels(*what, batch_size=size, workers=WORKERS)
            n = sum(len(block.positions) for block in pixels.blocks())
        print(f"{name:25} {n / seconds.wall:7.0f} images/s, {sum(loads.values()):5} decoded {seconds}")

    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            time_one("files", None)
            time_one("files, filling the cache", Path(folder))
            time_one("the cache", Path(folder))


def suite(images: str, limit: int | None) -> None:
    """Four models that want the same pixels: how often each image is decoded, and the time beside that of the parts."""
    defaults = {"dataset": images, "weights": "none", "preprocess": "paper", "limit": limit, "batch_size": 16}
    defaults |= {"device": "cpu"}
    chosen = Suite.model_validate({"name": "four", "models": MODELS, "defaults": defaults})
    with tempfile.TemporaryDirectory() as folder, counted() as loads, clock() as whole:
        bench = Bench(chosen, Path(folder, "out"), workers=WORKERS, cache=Path(folder, "cache"), warn=print, say=print)
        outcomes = bench.run()
    results = [outcome.result for outcome in outcomes if outcome.result]
    assert len(results) == len(MODELS), [outcome.error for outcome in outcomes]
    print(
        f"{len(MODELS)} models, {results[0].n_images} images: decoded {dict(Counter(loads.values()))} (times: images)"
    )
    plans = [run.resolve(task.job) for task in chosen.tasks()]
    with clock() as decode:
        blocks = list(run.read(plans[0], workers=WORKERS))
    parts = [decode]
    for plan, result in zip(plans, results, strict=True):
        with clock() as engine:
            alone = run.score(plan, workers=WORKERS, blocks=blocks)
        parts.append(engine)
        same = all((a.counts == b.counts).all() for a, b in zip(alone.layers, result.layers, strict=True))
        print(f"{plan.network.name:25} {engine}; counts {'equal' if same else 'DIFFER FROM'} the suite's")
    print(f"{'one decode':25} {decode}")
    print(f"{'the suite':25} {whole}")
    wall, cpu = sum(part.wall for part in parts), sum(part.cpu for part in parts)
    print(f"suite / (engines + one decode): {whole.wall / wall:.3f} on the wall, {whole.cpu / cpu:.3f} of processors")


if __name__ == "__main__":
    place = sys.argv[1] if len(sys.argv) > 1 else str(SHARED / "data" / "imagenet-sample")
    few = int(sys.argv[2]) if len(sys.argv) > 2 else None
    reading(place, few)
    suite(place, few)
