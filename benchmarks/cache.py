"""What decoding once is worth: reading with and without the cache, and a suite of four models beside its parts.

    python -m benchmarks.cache [ROUNDS] [IMAGES] [LIMIT]   # by default 6, all of ../shared/data/imagenet-sample

Wall time is what counts on an idle machine; processor time can be compared on a busy one. Random weights: speed does
not depend on them.
"""

from __future__ import annotations

import os
import statistics
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
from purity_cli.machine import keep_freed_memory
from purity_cli.pixels import Block, Pixels
from purity_cli.results import Result
from purity_cli.run.resolving import PAPER
from purity_cli.suite import Suite, Task
from purity_cli.suite.bench import Bench, JobOutcome, Unwatched
from tests.conftest import SHARED
from tests.run import given

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
                pixels: Pixels = CachedPixels(*what, root=root, batch_size=size, workers=WORKERS)
            else:
                pixels = Pixels(*what, batch_size=size, workers=WORKERS)
            n = sum(len(block.positions) for block in pixels.blocks())
        print(f"{name:25} {n / seconds.wall:7.0f} images/s, {sum(loads.values()):5} decoded {seconds}")

    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            time_one("files", None)
            time_one("files, filling the cache", Path(folder))
            time_one("the cache", Path(folder))


class Beside(Unwatched):
    """Scores each job of a suite once more, by the engine alone on pixels decoded beforehand.

    Before and after the suite scores it by turns: a machine's speed drifts by more than what is sought, and the first
    to run a network finds nothing warm. `first` tells whether the suite comes first with the first job.
    """

    def __init__(self, blocks: list[Block], first: bool) -> None:
        self.blocks = blocks
        self.engines: list[Clock] = []
        self.results: list[Result] = []
        self.aside = Clock()
        """All that the suite itself does not do."""
        self.loading = 0.0
        """Seconds of building, hashing and resolving the networks, which the suite does once more."""
        self.first = not first

    def begins(self, task: Task) -> None:
        self.first = not self.first
        if not self.first:
            self._score(task)

    def ends(self, outcome: JobOutcome) -> None:
        if outcome.result is None:
            raise RuntimeError(f"{outcome.task.name} failed: {outcome.error}")
        if self.first:
            self._score(outcome.task)
        alone, own = self.results[-1], outcome.result
        same = all((a.counts == b.counts).all() for a, b in zip(alone.layers, own.layers, strict=True))
        seconds = own.provenance["seconds"]
        print(
            f"{own.model:25} {self.engines[-1]}; in the suite {seconds:.1f} s; counts {'equal' if same else 'DIFFER'}"
        )

    def _score(self, task: Task) -> None:
        with clock() as whole:
            plan = run.resolve(task.job)
            with clock() as engine:
                self.results.append(given.score(plan, self.blocks))
        self.engines.append(engine)
        self.loading += whole.wall - engine.wall
        self.aside.wall += whole.wall
        self.aside.cpu += whole.cpu


def suite(images: str, limit: int | None, rounds: int) -> None:
    """Four models that want the same pixels: how often each image is decoded, and the time beside that of the parts."""
    defaults = {"dataset": images, "weights": "none", "preprocess": "paper", "limit": limit, "device": "cpu"}
    chosen = Suite.model_validate({"name": "four", "models": MODELS, "defaults": defaults})
    plan = run.resolve(chosen.tasks()[0].job)
    ratios = []
    for i in range(rounds):
        with clock() as decode:
            blocks = list(run.pixels_of(plan, workers=WORKERS).blocks())
        beside = Beside(blocks, first=i % 2 == 0)
        with tempfile.TemporaryDirectory() as folder, counted() as loads, clock() as whole:
            Bench(
                chosen, Path(folder, "out"), workers=WORKERS, cache=Path(folder, "cache"), watch=beside
            ).run()  # fmt: skip
        whole.wall -= beside.aside.wall
        whole.cpu -= beside.aside.cpu
        parts = [decode, *beside.engines]
        wall, cpu = sum(part.wall for part in parts), sum(part.cpu for part in parts)
        ratios.append(whole.wall / wall)
        print(f"{len(MODELS)} models: decoded {dict(Counter(loads.values()))} (times: images)")
        print(f"{'one decode':25} {decode}")
        print(f"{'loading the networks':25} {beside.loading:7.1f} s")
        print(f"{'the suite':25} {whole}")
        print(f"suite / (engines + one decode): {ratios[-1]:.3f} on the wall, {whole.cpu / cpu:.3f} of processors")
    print(f"of {rounds} rounds: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    keep_freed_memory()
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    place = sys.argv[2] if len(sys.argv) > 2 else str(SHARED / "data" / "imagenet-sample")
    few = int(sys.argv[3]) if len(sys.argv) > 3 else None
    reading(place, few)
    suite(place, few, times)
