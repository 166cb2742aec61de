"""As users run it: 50,000 pictures from JPEG, and from pixels decoded before; one network, and the paper's tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch

from purity_cli import run
from purity_cli.cache import CachedPixels
from purity_cli.datasets import ImageSource, open_dataset
from purity_cli.errors import PurityError
from purity_cli.pixels import Block, Pixels
from purity_cli.run.resolving import Resolved
from tests import given
from tests.gpu_check.budget import Budget
from tests.gpu_check.report import Cells, Planned, Sheet
from tests.gpu_check.settings import Settings
from tests.gpu_check.subjects import pictures, random_job, repeated
from tests.gpu_check.tables import paper_tables
from tests.gpu_check.watcher import Watcher

COLUMNS = (
    "what", "network", "precision", "images", "seconds", "images_per_s", "scoring_seconds", "batch_size", "gpu_busy",
    "host_mib", "device_mib",
)  # fmt: skip
FREE = 0.4
"""The part of the device's memory that pictures may take where all are kept there."""

Read = Callable[[Resolved], Iterable[Block]]


def part(settings: Settings, budget: Budget, about: Cells) -> list[Sheet]:
    """Fill `end_to_end`."""
    sheet = Sheet(settings, "end_to_end", COLUMNS, about)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        sheet.fill(EndToEnd(settings, budget, Path(folder)).planned())
    return [sheet]


class EndToEnd:
    """The part's steps, in their order: the cache is filled by the second."""

    def __init__(self, settings: Settings, budget: Budget, folder: Path) -> None:
        self.settings, self.budget, self.folder = settings, budget, folder
        self.cache = folder / "cache"

    @cached_property
    def dataset(self) -> str:
        settings, folder = self.settings, self.folder
        return f"folder:{repeated(pictures(folder / 'made', settings), folder / 'repeated', settings.images)}"

    @cached_property
    def source(self) -> ImageSource:
        return open_dataset(self.dataset)

    def planned(self) -> Iterator[Planned]:
        """A row for each step; the first precision is the one that everything is measured in."""
        first, *others = self.settings.precisions
        yield {"what": "JPEGs decoded, not scored"}, partial(self.decode, self.from_files)
        yield {"what": "JPEGs decoded into the cache, not scored"}, partial(self.decode, self.from_cache)
        yield {"what": "read from the cache, not scored"}, partial(self.decode, self.from_full_cache)
        network = {"network": self.settings.main}
        names = {**network, "precision": first}
        yield {"what": "from JPEG", **names}, partial(self.score, first, self.from_files)
        for precision in (first, *others):
            names = {**network, "precision": precision}
            yield {"what": "from the cache", **names}, partial(self.score, precision, self.from_full_cache)
        names = {**network, "precision": first}
        yield {"what": "from the cache, copied ahead", **names}, partial(self.score, first, self.copied_ahead)
        yield {"what": "pixels on the device", **names}, partial(self.score, first, self.resident)
        names = {"what": "tables 1 and 2, from the cache", "precision": first}
        yield names, partial(paper_tables, self.settings, self.budget, self.dataset, self.folder, self.cache)

    def plan(self, precision: str) -> Resolved:
        settings = self.settings
        job = random_job(settings.main, self.dataset, settings, device=str(settings.device), precision=precision)
        return run.resolve(job, source=self.source)

    def decode(self, read: Read) -> Cells:
        """Only read: what the engine must not wait for."""
        plan = self.plan("fp32")
        with Watcher(torch.device("cpu")) as watcher:
            images = sum(len(block.positions) for block in self._watched(read(plan)))
        return {"images": images, "images_per_s": images / watcher.seconds, **watcher.cells}

    def score(self, precision: str, read: Read) -> Cells:
        """A whole run; loading the network and the first batch, in which libraries load, are not in its time."""
        plan = self.plan(precision)
        workers = self.settings.workers
        few = replace(plan, selection=plan.selection[: plan.batch_size])
        run.score(few, workers=workers)
        blocks = self._watched(read(plan))
        with Watcher(plan.device) as watcher:
            result = given.score(plan, blocks)
        return {
            "images": result.n_images,
            "images_per_s": result.n_images / watcher.seconds,
            "scoring_seconds": result.provenance["seconds"],
            "batch_size": result.provenance["batch_size"],
            **watcher.cells,
        }

    def _watched(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            self.budget.check()
            yield block

    def from_files(self, plan: Resolved) -> Iterable[Block]:
        return run.pixels_of(plan, workers=self.settings.workers).blocks()

    def from_cache(self, plan: Resolved) -> Iterable[Block]:
        return self._cached(plan).blocks()

    def from_full_cache(self, plan: Resolved) -> Iterable[Block]:
        pixels = self._cached(plan)
        absent = pixels.cache.missing((1,)) if isinstance(pixels, CachedPixels) else len(plan.selection)
        if absent:
            raise PurityError(f"{absent} images are not in the cache.")
        return pixels.blocks()

    def _cached(self, plan: Resolved) -> Pixels:
        return run.pixels_of(plan, workers=self.settings.workers, cache=self.cache, warn=print)

    def copied_ahead(self, plan: Resolved) -> Iterable[Block]:
        return ahead(self.from_full_cache(plan), plan.device)

    def resident(self, plan: Resolved) -> Iterable[Block]:
        """All pictures, brought to the device before the clock starts."""
        if plan.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(plan.device)
            if 3 * self.settings.side**2 * len(plan.selection) > FREE * free:
                raise PurityError(f"The pictures take more than {FREE:.0%} of the device's free memory.")
        return [on(block, plan.device) for block in self._watched(self.from_full_cache(plan))]


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
