"""A suite becomes results: job after job, each in its own folder, whatever happens to the others."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from purity_cli import locks, models, run, store
from purity_cli.datasets import ImageDataset, open_dataset
from purity_cli.errors import PurityError, about, log
from purity_cli.machine import environment_number
from purity_cli.plan import Job, Preprocessing
from purity_cli.results import Result
from purity_cli.run.ranks import RankLost, Ranks, describe
from purity_cli.run.resolving import resolve_preprocessing
from purity_cli.suite import Task

ELSEWHERE = ("held", "elsewhere")
"""What becomes of a job that is left to another process, which may have finished it by the end."""


class Shard(NamedTuple):
    """One of `of` shares of a suite's jobs, from 1, for where no locks can tell which are this process's."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`3/8`; PurityError for anything else."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or not 1 <= shard.number <= shard.of:
            raise PurityError(f"--shard {text} is none: write I/N with I from 1 to N, as 3/8 for the third of eight.")
        return shard

    @classmethod
    def of_this_task(cls) -> Self | None:
        """The share of this task of a Slurm array, whose numbers may begin anywhere; None outside of one."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        place, least, count = (environment_number(name) for name in names)
        return None if place is None or count is None else cls.parse(f"{place - (least or 0) + 1}/{count}")

    def has(self, place: int) -> bool:
        """Whether the job at this place of the suite, from 0, is of this share: of every `of` jobs, one."""
        return place % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard(1, 1)


@dataclass(frozen=True)
class JobOutcome:
    """What became of one job."""

    task: Task
    status: str
    """`scored`, `kept` from an earlier run, `failed`, `left out`, `held` by another process, or of another shard and
    therefore `elsewhere`."""
    folder: Path
    result: Result | None = None
    error: str | None = None


class Jobs(Protocol):
    """What a Bench needs of a Suite."""

    @property
    def threshold(self) -> float: ...
    def tasks(self) -> list[Task]: ...


class ProgressCallback(Protocol):
    """Is told how a suite goes on."""

    def plans(self, tasks: Sequence[Task]) -> None:
        """The jobs in the order in which they run."""

    def begins(self, task: Task) -> None:
        """This job is next."""

    def images(self, done: int, total: int) -> None:
        """Images that the current job has scored."""

    def ends(self, outcome: JobOutcome) -> None:
        """The current job is over."""


class Unwatched:
    """Tells nobody."""

    def plans(self, tasks: Sequence[Task]) -> None: ...
    def begins(self, task: Task) -> None: ...
    def images(self, done: int, total: int) -> None: ...
    def ends(self, outcome: JobOutcome) -> None: ...


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


class Bench:
    """Runs a suite's jobs into `folder`, each into one of its own.

    A job whose result is there already, of all that decides its numbers, is kept, unless `fresh`. A failed one leaves
    `failed.json`. Several of these, in as many processes, share the jobs of one folder: each takes the next that is
    neither finished nor held by another; where the file system has no locks, each is given its `shard`. `workers`
    threads decode for all jobs, and `cache` is where they share decoded pixels. Every one of several `ranks` must call
    this with the same suite.
    """

    def __init__(
        self,
        suite: Jobs,
        folder: Path,
        *,
        workers: int,
        cache: Path | None = None,
        download: bool = False,
        fresh: bool = False,
        every: float = 60.0,
        shard: Shard | None = None,
        ranks: Ranks | None = None,
        watch: ProgressCallback | None = None,
        command: str | None = None,
        name: str = "purity bench",
    ) -> None:
        self.suite, self.folder, self.workers, self.cache, self.fresh = suite, folder, workers, cache, fresh
        self.every, self.ranks, self.command, self.name = every, ranks or Ranks(), command, name
        self.shard = shard or WHOLE
        self.watch: ProgressCallback = watch if watch and self.ranks.first else Unwatched()
        self.sources = Sources(download)

    def run(self) -> list[JobOutcome]:
        """Run every job of this shard that no other process holds; the outcomes are in the order of the suite."""
        self.ranks.on_first(lambda: locks.prepare(self.folder))
        tasks = self.ranks.on_first(self.suite.tasks)
        order = self.ranks.on_first(lambda: grouped(tasks, self.shard))
        if self.shard == WHOLE and not locks.there_are(self.folder):
            log.warning(
                f"The file system of {self.folder} has no locks: several processes would score the same jobs, "
                "unless each is given its --shard."
            )
        self.watch.plans([tasks[place] for place in order])
        outcomes = [self._left(task, "elsewhere", f"of another shard than {self.shard}") for task in tasks]
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            while order:
                for place in order:
                    outcomes[place] = self._outcome(tasks[place], pool)
                    if outcomes[place].status != "held":
                        self.watch.ends(outcomes[place])
                # What another process held may be free by now, if that was killed; if nothing is, it is still at it.
                held = [place for place in order if outcomes[place].status == "held"]
                order = held if len(held) < len(order) else []
        for outcome in (outcome for outcome in outcomes if outcome.status == "held"):
            self.watch.begins(outcome.task)
            self.watch.ends(outcome)
        return outcomes

    def _left(self, task: Task, status: str, why: str) -> JobOutcome:
        return JobOutcome(task, status, self.folder / task.name, error=why)

    @contextmanager
    def closing(self, outcomes: Sequence[JobOutcome]) -> Iterator[list[JobOutcome]]:
        """For rank 0 to write tables in: the outcomes, with what other processes have finished by now.

        One process at a time is let in, so that the last one's tables have everything.
        """
        with locks.claim(self.folder, self.name, wait=True):
            yield [self._finished(outcome) if outcome.status in ELSEWHERE else outcome for outcome in outcomes]

    def _finished(self, outcome: JobOutcome) -> JobOutcome:
        """With the result that another process stored, if that is of this very job: its network is loaded to see."""
        if not (outcome.folder / store.STATES).exists():
            return outcome
        try:
            with about(outcome.task.name):
                job = run.resolve(outcome.task.job, source=self.sources.open(outcome.task.job))
            result, _ = run.stored(outcome.folder, job)
        except Exception as error:  # anything can go wrong in a user's network
            return replace(outcome, error=describe(error))
        return replace(outcome, status="kept", result=result, error=None) if result else outcome

    def _outcome(self, task: Task, pool: ThreadPoolExecutor) -> JobOutcome:
        folder = self.folder / task.name
        if task.absent:
            self.watch.begins(task)
            return self._left(task, "left out", f"{task.absent} is not there")
        try:
            with run.claimed(folder, self.name, self.ranks):
                self.watch.begins(task)
                with about(task.name):
                    return self._run(task, folder, pool)
        except (RankLost, KeyboardInterrupt):
            raise
        except locks.Held:
            return self._left(task, "held", "another process is at it")
        except Exception as error:  # anything can go wrong in a user's network, and the other jobs must go on
            if self.ranks.first:
                self._record(task, folder, error)
            return self._left(task, "failed", describe(error))

    def _run(self, task: Task, folder: Path, pool: ThreadPoolExecutor) -> JobOutcome:
        job = run.resolve_together(task.job, self.ranks, source=lambda: self.sources.open(task.job))
        if not self.fresh and (renamed := self.ranks.on_first(lambda: kept_in(self.folder, task, job))):
            return JobOutcome(task, "kept", renamed, store.read(renamed) if self.ranks.first else None)
        result, kept = run.score_into(
            folder,
            job,
            ranks=self.ranks,
            threshold=self.suite.threshold,
            command=self.command,
            fresh=self.fresh,
            about=task.about,
            workers=self.workers,
            pool=pool,
            cache=self.cache,
            every=self.every,
            progress=self.watch.images,
        )
        if self.ranks.first:
            (folder / store.FAILED).unlink(missing_ok=True)
        return JobOutcome(task, "kept" if kept else "scored", folder, result)

    def _record(self, task: Task, folder: Path, error: Exception) -> None:
        sentence = isinstance(error, PurityError) and error.__cause__ is None
        unexpected = None if sentence else "".join(traceback.format_exception(error))
        record = {
            "key": task.job.key(),
            "error": describe(error),
            "traceback": unexpected,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": task.job.model_dump(mode="json"),
        }
        try:
            store.write_text(locks.prepare(folder) / store.FAILED, json.dumps(record, indent=2) + "\n")
        except PurityError as problem:
            log.warning(str(problem))


def kept_in(folder: Path, task: Task, job: run.Resolved) -> Path | None:
    """Another folder than the job's own with the result of this very job, as one that was renamed."""
    if (folder / task.name / store.STATES).exists():
        return None
    others = sorted(path.parent for path in folder.glob(f"*/{store.STATES}"))
    return next((place for place in others if run.stored(place, job)[0]), None)


def grouped(tasks: Sequence[Task], shard: Shard = WHOLE) -> list[int]:
    """The places of a shard's tasks, with those that need the same pixels together, so that these are decoded once."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, task in enumerate(tasks):
        if shard.has(place):
            groups.setdefault(_pixels_wanted(task.job), []).append(place)
    return [place for group in groups.values() for place in group]


def _pixels_wanted(job: Job) -> tuple[Any, ...]:
    """What decides the bytes of a Job's pixels; for a model that does not exist, nothing but the data set."""
    images = (job.dataset, job.data_dir, job.split)
    try:
        paper = job.preprocess == "paper"
        declared = Preprocessing() if paper else models.preview(job.model, job.weights).preprocessing
        pixels = resolve_preprocessing(job, declared)
    except Exception:  # the job itself will say what is wrong
        return images
    return (*images, pixels.resize, pixels.crop, pixels.interpolation)
