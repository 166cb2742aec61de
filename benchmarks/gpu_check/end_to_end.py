"""As users run it: 50,000 pictures from JPEG, and from pixels decoded before; one network, and the paper's tables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import speed as benchmark
from benchmarks.gpu_check.measuring import LATE, Book, Cells, OutOfTime, Settings, Step, Watcher
from purity_cli import run
from purity_cli.cache import CachedPixels
from purity_cli.datasets import open_dataset
from purity_cli.errors import PurityError
from purity_cli.pixels import Block
from purity_cli.plan import Job
from purity_cli.suite import Suite, Task
from purity_cli.suite.bench import Bench, JobOutcome
from tests.run import given


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
        """The first precision is the one that everything is measured in."""
        first, *others = self.settings.precisions
        for what in ("JPEGs decoded", "JPEGs decoded into the cache", "read from the cache"):
            yield "end_to_end", {"what": f"{what}, not scored"}, partial(self.decode, what)
        ways = [("from JPEG", first), *(("from the cache", name) for name in (first, *others))]
        for what, name in (*ways, ("from the cache, copied ahead", first), ("pixels on the device", first)):
            names = {"what": what, "network": self.settings.main, "precision": name}
            yield "end_to_end", names, partial(self.score, name, what)
        yield "end_to_end", {"what": "tables 1 and 2, from the cache", "precision": first}, self.tables

    def plan(self, precision: str) -> run.Resolved:
        job = random_job(
            self.settings.main, self.dataset, self.settings, device=str(self.settings.device), precision=precision
        )
        return run.resolve(job, source=self.source)

    def decode(self, what: str) -> Cells:
        """Only read: what the engine must not wait for."""
        plan = self.plan("fp32")
        with Watcher(torch.device("cpu")) as watcher:
            images = sum(len(block.positions) for block in self.blocks(plan, what))
        return {"images": images, "images_per_s": images / watcher.seconds, **watcher.cells}

    def score(self, precision: str, what: str) -> Cells:
        """A whole run; loading the network and the first batch, in which libraries load, are not in its time."""
        plan = self.plan(precision)
        run.score(replace(plan, selection=plan.selection[: plan.batch_size]), workers=self.settings.workers)
        blocks: Iterable[Block] = self.blocks(plan, what)
        if what == "pixels on the device":
            if plan.device.type == "cuda":
                free, _ = torch.cuda.mem_get_info(plan.device)
                if 3 * self.settings.side**2 * len(plan.selection) > 0.4 * free:
                    raise PurityError("The pictures take more than 40 % of the device's free memory.")
            blocks = [on(block, plan.device) for block in blocks]
        with Watcher(plan.device) as watcher:
            result = given.score(plan, blocks)
        told = {"scoring_seconds": result.provenance["seconds"], "batch_size": result.provenance["batch_size"]}
        return {"images": result.n_images, "images_per_s": result.n_images / watcher.seconds, **told, **watcher.cells}

    def blocks(self, plan: run.Resolved, what: str) -> Iterator[Block]:
        """From files, or from the cache, which must be full but where it is filled."""
        cache = self.cache if "JPEG" not in what or "into" in what else None
        pixels = run.pixels_of(plan, workers=self.settings.workers, cache=cache)
        if cache and "into" not in what:
            absent = pixels.cache.missing((1,)) if isinstance(pixels, CachedPixels) else len(plan.selection)
            if absent:
                raise PurityError(f"{absent} images are not in the cache.")
        found = pixels.blocks()
        return self.watched(ahead(found, plan.device) if what.endswith("copied ahead") else found)

    def watched(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            self.book.check()
            yield block

    def tables(self) -> list[Cells]:
        """The paper's Tables 1 and 2 as one suite: a row for each network, and one for all if all were scored.

        A network's time is all that the suite takes for it, its making and its hash too.
        """
        settings, side = self.settings, self.settings.side
        suite = Suite.model_validate(
            {
                "name": "tables",
                "defaults": {
                    "weights": "none", "dataset": self.dataset, "preprocess": "paper", "resize": side, "crop": side,
                    "device": str(settings.device), "precision": settings.precisions[0],
                },
                "models": [{"model": name, "layers": "C1..last"} for name in settings.table1]
                + [{"model": name, "layers": "last"} for name in settings.table2],
            }
        )  # fmt: skip
        watch, late = ProgressCallback(settings, self.book), False
        with Watcher(settings.device) as watcher:
            try:
                Bench(suite, self.folder / "results", workers=settings.workers, cache=self.cache, watch=watch).run()
            except OutOfTime:
                late = True
            finally:
                watch.close()
        rows = watch.rows + [{"network": name, "note": LATE} for name in watch.left]
        total: Cells = {"note": LATE if late else "not all networks were scored"}
        if not late and all("seconds" in row for row in rows):
            images = sum(row["images"] for row in rows)
            total = {"images": images, "images_per_s": images / watcher.seconds, **watcher.cells}
            # Each network's watcher began to count anew.
            total["device_mib"] = max((row["device_mib"] for row in rows if row["device_mib"]), default=None)
        return [*rows, {"network": "all", **total}]


class ProgressCallback:
    """A `bench.ProgressCallback` that keeps a row for each job and stops the suite when time is out."""

    def __init__(self, settings: Settings, book: Book) -> None:
        self.settings, self.book = settings, book
        self.rows: list[Cells] = []
        self.left: list[str] = []
        self._watcher: Watcher | None = None

    def plans(self, tasks: Sequence[tuple[Task, int, int]]) -> None:
        self.left = [task.job.model for task, *_ in tasks]

    def begins(self, task: Task) -> None:
        self.book.check()
        self._watcher = Watcher(self.settings.device)
        self._watcher.__enter__()

    def images(self, done: int, total: int) -> None:
        self.book.check()

    def ends(self, outcome: JobOutcome) -> None:
        self.left.remove(outcome.task.job.model)
        watcher, result, row = self.close(), outcome.result, {"network": outcome.task.job.model}
        if result is None or watcher is None:
            self.rows.append({**row, "note": outcome.error})
            return
        told = {"scoring_seconds": result.provenance["seconds"], "batch_size": result.provenance["batch_size"]}
        rate = {"images": result.n_images, "images_per_s": result.n_images / watcher.seconds}
        self.rows.append({**row, **rate, **told, **watcher.cells})

    def close(self) -> Watcher | None:
        """End the current job's watcher, if there is one."""
        watcher, self._watcher = self._watcher, None
        if watcher:
            watcher.__exit__()
        return watcher


def on(block: Block, device: torch.device) -> Block:
    """The block on the device; from pinned memory the host need not wait."""
    pixels, positions, labels = (
        tensor.to(device, non_blocking=True) for tensor in (block.pixels, block.positions, block.labels)
    )
    return replace(block, pixels=pixels, positions=positions, labels=labels)


def ahead(blocks: Iterable[Block], device: torch.device) -> Iterator[Block]:
    """Each block on the device, copied on a stream of its own while the engine works on the one before."""
    if device.type != "cuda":
        yield from blocks
        return
    copies, work = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for block in blocks:
        with torch.cuda.stream(copies):
            moved = on(block, device)
        work.wait_stream(copies)
        for tensor in (moved.pixels, moved.positions, moved.labels):
            tensor.record_stream(work)
        yield moved
