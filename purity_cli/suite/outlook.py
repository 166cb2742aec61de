"""What a suite finds before it runs: images, finished jobs, the order of the others, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from purity_cli import cache, models, run, stages, store
from purity_cli.datasets import ImageDataset, open_dataset, select
from purity_cli.plan import Job, Preprocessing
from purity_cli.run.ranks import describe
from purity_cli.run.resolving import Resolved, resolve_preprocessing
from purity_cli.suite import Suite, Task


@dataclass(frozen=True)
class DryRun:
    """What one job would do."""

    task: Task
    plan: Resolved | None = None
    """None where the job cannot be resolved."""
    taps: Sequence[stages.Tap] = ()
    """What it would read; known of any network that can be built, even without weights and images."""
    weights_here: bool | None = None
    """None where no such model is known, or the job is left out."""
    finished: bool = False
    to_cache: int = 0
    """Bytes that it would add to the cache of pixels, less what jobs before it would."""
    problem: str | None = None


def forecast(suite: Suite, folder: Path, root: Path | None) -> Iterator[DryRun]:
    """What every job of a suite would do, in the order in which they would run; nothing is scored or downloaded.

    `root` is the folder of the cache, None for none.
    """
    sources = Sources()
    cached: dict[tuple[Any, ...], set[int]] = {}
    for task in grouped(suite.tasks()):
        if task.absent:
            yield DryRun(task, taps=_taps(task.job), problem=f"left out: {task.absent} is not there")
            continue
        job, preview = task.job, None
        try:
            preview = models.preview(job.model, job.weights)
            # The stages of a network do not depend on its weights.
            loaded = job if preview.weights_here else job.model_copy(update={"weights": "none"})
            plan = run.resolve(loaded, source=sources.open(job))
            plan = replace(plan, job=job, preprocessing=resolve_preprocessing(job, preview.preprocessing))
            over = preview.weights_here and kept_in(folder, task, plan) is not None
            add = 0
            if root and not over:
                before = cached.setdefault(pixels_wanted(job), set())
                new = [i for i in plan.selection if i not in before]
                add = cache.estimate(root, plan.source, plan.preprocessing, new) if new else 0
                before |= set(new)
        except Exception as error:  # anything can go wrong in a user's network
            here = preview.weights_here if preview else None
            yield DryRun(task, taps=_taps(job), weights_here=here, problem=describe(error))
            continue
        yield DryRun(task, plan, plan.taps, preview.weights_here, over, add)


def _taps(job: Job) -> Sequence[stages.Tap]:
    """The layers of a Job without its weights and images, at the network's own size; none where that cannot be told."""
    try:
        network = models.load(job.model, "none", headless=True)
        size = resolve_preprocessing(job, network.preprocessing).crop or network.input_size
        return stages.resolve(network.module, network.source, network.name, job.layers, size)
    except Exception:  # the job itself will say what is wrong
        return ()


def kept_in(folder: Path, task: Task, plan: Resolved) -> Path | None:
    """Where the result of this very job lies: in its own folder, or in another one, as that was renamed."""
    others = sorted(path.parent for path in folder.glob(f"*/{store.STATES}") if path.parent.name != task.name)
    return next((place for place in (folder / task.name, *others) if store.kept(place, plan.identity)[0]), None)


class Sources:
    """Data sets, each opened once for all jobs."""

    def __init__(self, download: bool = False) -> None:
        self.download = download
        self._open: dict[tuple[str | None, ...], ImageDataset] = {}

    def open(self, job: Job) -> ImageDataset:
        """The images of a Job; PurityError as `open_dataset`."""
        name = (job.dataset, job.data_dir, job.split)
        if name not in self._open:
            self._open[name] = open_dataset(job.dataset, data_dir=job.data_dir, split=job.split, download=self.download)
        return self._open[name]

    def amount(self, job: Job) -> tuple[int, int]:
        """How many images a Job has, and of how many pixels each, as far as can be told; 0 where they cannot be had."""
        try:
            source = self.open(job)
            selection = select(source, job.per_class, job.limit)
            pixels = wanted(job) or Preprocessing()
            size = pixels.crop or pixels.resize or source.load(selection[0]).size
            height, width = (size, size) if isinstance(size, int) else size
            return len(selection), height * width
        except Exception:  # the job itself will say what is wrong
            return 0, 0


def grouped(tasks: Sequence[Task]) -> list[Task]:
    """In the order of the suite, but with those that need the same pixels together, so that these are decoded once."""
    groups: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        groups.setdefault(pixels_wanted(task.job), []).append(task)
    return [task for group in groups.values() for task in group]


def pixels_wanted(job: Job) -> tuple[Any, ...]:
    """What decides the bytes of a Job's pixels; for a model that does not exist, nothing but the data set."""
    pixels = wanted(job)
    shape = (pixels.resize, pixels.crop, pixels.interpolation) if pixels else ()
    return (job.dataset, job.data_dir, job.split, *shape)


def images_of(job: Job) -> tuple[Any, ...]:
    """What decides which images a Job has."""
    return job.dataset, job.data_dir, job.split, job.per_class, job.limit


def wanted(job: Job) -> Preprocessing | None:
    """A Job's preprocessing, without loading its model; None where that does not exist."""
    try:
        paper = job.preprocess == "paper"
        declared = Preprocessing() if paper else models.preview(job.model, job.weights).preprocessing
        return resolve_preprocessing(job, declared)
    except Exception:  # the job itself will say what is wrong
        return None
