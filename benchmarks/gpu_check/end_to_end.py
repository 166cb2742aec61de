"""As users run it: 50,000 images from JPEG, and from pixels decoded before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import speed as benchmark
from benchmarks.gpu_check.measuring import Book, Cells, Settings, Step, Watcher
from purity_cli import run
from purity_cli.datasets import open_dataset
from purity_cli.plan import Job


def random_job(name: str, dataset: str, settings: Settings, **more: Any) -> Job:
    """A Job with random weights on pictures of `settings.side`."""
    side = settings.side
    return Job.of(model=name, weights="none", dataset=dataset, preprocess="paper", resize=side, crop=side, **more)


def pictures(folder: Path, settings: Settings) -> Path:
    """A folder of JPEGs in class folders: the sample if it is at hand, else made ones."""
    sample = settings.shared / "data/imagenet-sample"
    if sample.is_dir():
        return sample
    benchmark.photographs(folder, settings.pictures)
    for path in list(folder.glob("*.JPEG")):
        (folder / f"n{path.stem:0>8}").mkdir()
        path.rename(folder / f"n{path.stem:0>8}" / path.name)
    return folder


def repeated(pictures: Path, folder: Path, n: int) -> Path:
    """A folder of `n` images: links to the pictures, as often as needed, in their class folders."""
    files = sorted(path.resolve() for path in pictures.rglob("*.JPEG"))
    for i in range(n):
        file = files[i % len(files)]
        link = folder / file.parent.name / f"{file.stem}_{i // len(files):04}.JPEG"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, link)
    return folder


def end_to_end(settings: Settings, book: Book) -> Iterator[Step]:
    """The part; its cache is filled by the second step."""
    with tempfile.TemporaryDirectory(dir=settings.scratch) as name:
        (made := Path(name, "made")).mkdir()
        folder = repeated(pictures(made, settings), Path(name, "repeated"), settings.images)
        yield from EndToEnd(settings, book, f"folder:{folder}", Path(name)).steps()


class EndToEnd:
    """What its steps share."""

    def __init__(self, settings: Settings, book: Book, dataset: str, folder: Path) -> None:
        self.settings, self.book, self.dataset, self.folder = settings, book, dataset, folder
        self.cache, self.source = folder / "cache", open_dataset(dataset)

    def steps(self) -> Iterator[Step]:
        """The first precision is the one that JPEGs are scored in."""
        for what in ("JPEGs decoded", "JPEGs decoded into the cache", "read from the cache"):
            yield "end_to_end", {"what": f"{what}, not scored"}, partial(self.decode, what)
        first = self.settings.precisions[0]
        for what, name in (("from JPEG", first), *(("from the cache", name) for name in self.settings.precisions)):
            names = {"what": what, "network": self.settings.main, "precision": name}
            yield "end_to_end", names, partial(self.score, name, what)

    def plan(self, precision: str) -> run.Resolved:
        job = random_job(
            self.settings.main, self.dataset, self.settings, device=str(self.settings.device), precision=precision
        )
        return run.resolve(job, source=self.source)

    def root(self, what: str) -> Path | None:
        """Where decoded pixels are kept."""
        return self.cache if "JPEG" not in what or "into" in what else None

    def decode(self, what: str) -> Cells:
        """Only read: what the engine must not wait for."""
        images = 0
        with Watcher(torch.device("cpu")) as watcher:
            pixels = run.pixels_of(self.plan("fp32"), workers=self.settings.workers, cache=self.root(what))
            for block in pixels.blocks():
                self.book.check()
                images += len(block.positions)
        return {"images": images, "images_per_s": images / watcher.seconds, **watcher.cells}

    def score(self, precision: str, what: str) -> Cells:
        """A whole run; loading the network and the first batch, in which libraries load, are not in its time."""
        plan = self.plan(precision)
        options: dict[str, Any] = {"workers": self.settings.workers, "cache": self.root(what)}
        run.score(replace(plan, selection=plan.selection[: plan.batch_size]), **options)
        with Watcher(plan.device) as watcher:
            result = run.score(plan, progress=lambda done, total: self.book.check(), **options)
        told = {"scoring_seconds": result.provenance["seconds"], "batch_size": result.provenance["batch_size"]}
        return {"images": result.n_images, "images_per_s": result.n_images / watcher.seconds, **told, **watcher.cells}
