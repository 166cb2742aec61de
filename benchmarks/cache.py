"""What decoding once is worth: reading with and without the cache, and a suite of four models with and without it.

    make benchmark-cache ARGS='--limit 200'

Wall time is what counts on an idle machine; processor time can be compared on a busy one. Random weights: speed does
not depend on them.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import click
from PIL import Image

from benchmarks.speed import seconds
from purity_cli import run
from purity_cli.cli.options import cores
from purity_cli.datasets import ImageDataset, open_dataset
from purity_cli.machine import keep_freed_memory
from purity_cli.suite import Suite
from purity_cli.suite.bench import Bench
from tests.conftest import SHARED

MODELS = ("alexnet", "resnet18", "timm:resnet10t", "timm:mobilenetv3_small_050")


@contextmanager
def counted(source: type[ImageDataset]) -> Iterator[Counter[int]]:
    """How often each image of a kind of data set is decoded."""
    loads: Counter[int] = Counter()
    decode, lock = source.decode, threading.Lock()

    def counting(self: ImageDataset, i: int, data: bytes, /) -> Image.Image:
        with lock:
            loads[i] += 1
        return decode(self, i, data)

    with mock.patch.object(source, "decode", counting):
        yield loads


def reading(suite: Suite, source: type[ImageDataset], root: Path | None) -> int:
    """Read all blocks, from files or through the cache; the number of images."""
    plan = run.resolve(suite.tasks()[0].job)
    return sum(len(block.positions) for block in run.pixels_of(plan, workers=cores(), cache=root).blocks())


@click.command(help=__doc__)
@click.argument("images", default=str(SHARED / "data" / "imagenet-sample"))
@click.option("--limit", type=int, help="Only so many images.")
@click.option("--rounds", default=3, show_default=True)
def main(images: str, limit: int | None, rounds: int) -> None:
    keep_freed_memory()
    defaults = {"dataset": images, "weights": "none", "preprocess": "paper", "limit": limit, "device": "cpu"}
    suite = Suite.model_validate({"name": "four", "models": MODELS, "defaults": defaults})
    source, ratios = type(open_dataset(images)), []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for what, root in (("files", None), ("filling the cache", folder / "c"), ("the cache", folder / "c")):
                with counted(source) as loads:
                    wall, cpu = seconds(partial(reading, suite, source, root))
                print(f"reading, {what:18} {sum(loads.values()):5} decoded, {wall:6.1f} s, {cpu:6.1f} s of processors")
            took = []
            for what, root in (("without a cache", None), ("with one", folder / "cache")):
                bench = Bench(suite, folder / what, workers=cores(), cache=root)
                with counted(source) as loads:
                    wall, cpu = seconds(bench.run)
                took.append(wall)
                times = dict(Counter(loads.values()))
                print(f"{len(MODELS)} models {what:16} decoded {times} (times: images), {wall:6.1f} s, {cpu:6.1f} s")
            ratios.append(took[1] / took[0])
    print(f"with the cache, of the time without: median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
