"""A suite becomes results: job after job, each in its own folder, whatever happens to the others."""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from purity_cli import locks, run, store
from purity_cli.errors import PurityError, about, log
from purity_cli.results import Result
from purity_cli.run.ranks import RankLost, Ranks, describe
from purity_cli.suite import Task
from purity_cli.suite.outlook import Sources, grouped, kept_in

ELSEWHERE = ("held", "elsewhere")
"""What becomes of a job that is left to another process, which may have finished it by the end."""


class Shard(NamedTuple):
    """One of `of` shares of a suite's jobs, from 1, for where no locks can tell which are this process's."""

    number: int
    of: int

    def has(self, place: int) -> bool:
        """Whether the job at this place of the suite, from 0, is of this share: of every `of` jobs, one."""
        return place % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """`3/8`; PurityError for anything else."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    shard = Shard(*map(int, found.groups())) if found else WHOLE
    if not found or not 1 <= shard.number <= shard.of:
        raise PurityError(f"--shard {text} is none: write I/N with I from 1 to N, as 3/8 for the third of eight.")
    return shard


def shard_of_this_task() -> Shard | None:
    """The share of this task of a Slurm array, whose numbers may begin anywhere; None outside of one.

    PurityError where its numbers have gaps, so that no place among the tasks follows from one.
    """
    place = _number("SLURM_ARRAY_TASK_ID")
    count = _number("SLURM_ARRAY_TASK_COUNT")
    if place is None or count is None:
        return None
    least, step = _number("SLURM_ARRAY_TASK_MIN") or 0, _number("SLURM_ARRAY_TASK_STEP") or 1
    most = _number("SLURM_ARRAY_TASK_MAX")
    before, off = divmod(place - least, step)
    if off or not 0 <= before < count or (most is not None and most != least + step * (count - 1)):
        raise PurityError(
            f"This is task {place} of a Slurm array of {count} whose numbers are not evenly spaced: give --shard I/N, "
            "or submit the array without gaps, as --array=1-8."
        )
    return Shard(before + 1, count)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    return int(text) if text.isascii() and text.isdecimal() else None


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

    def plans(self, tasks: Sequence[tuple[Task, int, int]]) -> None:
        """The jobs in the order in which they run, each with its images and the pixels of one, 0 where unknown."""

    def begins(self, task: Task) -> None:
        """This job is next."""

    def images(self, done: int, total: int) -> None:
        """Images that the current job has scored."""

    def ends(self, outcome: JobOutcome) -> None:
        """The current job is over."""


class Unwatched:
    """Tells nobody."""

    def plans(self, tasks: Sequence[tuple[Task, int, int]]) -> None: ...
    def begins(self, task: Task) -> None: ...
    def images(self, done: int, total: int) -> None: ...
    def ends(self, outcome: JobOutcome) -> None: ...


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
        self.ranks.together(lambda: locks.prepare(self.folder) if self.ranks.first else None)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            tasks = self.ranks.together(self.suite.tasks)[0]
            if self.shard == WHOLE and not locks.there_are(self.folder):
                log.warning(
                    f"The file system of {self.folder} has no locks: several processes would score the same jobs, "
                    "unless each is given its --shard."
                )
            mine = [task for place, task in enumerate(tasks) if self.shard.has(place)]
            order = self.ranks.together(lambda: [tasks.index(task) for task in grouped(mine)])[0]
            if self.ranks.first:
                absent = (0, 0)
                amounts = [absent if tasks[i].absent else self.sources.amount(tasks[i].job) for i in order]
                self.watch.plans([(tasks[i], *amount) for i, amount in zip(order, amounts, strict=True)])
            outcomes = {
                place: JobOutcome(
                    task, "elsewhere", self.folder / task.name, error=f"of another shard than {self.shard}"
                )
                for place, task in enumerate(tasks)
                if not self.shard.has(place)
            }
            while order:
                for i in order:
                    outcomes[i] = self._outcome(tasks[i], pool)
                    if outcomes[i].status != "held":
                        self.watch.ends(outcomes[i])
                # What another process held may be free by now, if that was killed; if nothing is, it is still at it.
                held = [i for i in order if outcomes[i].status == "held"]
                order = held if len(held) < len(order) else []
            for outcome in (outcome for outcome in outcomes.values() if outcome.status == "held"):
                self.watch.begins(outcome.task)
                self.watch.ends(outcome)
        return [outcomes[i] for i in range(len(tasks))]

    @contextmanager
    def closing(self, outcomes: Sequence[JobOutcome]) -> Iterator[list[JobOutcome]]:
        """For rank 0 to write tables in: the outcomes, with what other processes have finished by now.

        One process at a time is let in, so that the last one's tables have everything.
        """
        with locks.claim(self.folder, self.name, wait=True):
            yield [self._finished(outcome) if outcome.status in ELSEWHERE else outcome for outcome in outcomes]

    def _finished(self, outcome: JobOutcome) -> JobOutcome:
        try:
            result = store.read(outcome.folder)
        except PurityError:
            return outcome
        same = result.job == outcome.task.job
        return replace(outcome, status="kept", result=result, error=None) if same else outcome

    def _outcome(self, task: Task, pool: ThreadPoolExecutor) -> JobOutcome:
        folder = self.folder / task.name
        if task.absent:
            self.watch.begins(task)
            return JobOutcome(task, "left out", folder, error=f"{task.absent} is not there")
        try:
            with run.claimed(folder, self.name, self.ranks):
                self.watch.begins(task)
                with about(task.name):
                    return self._run(task, folder, pool)
        except (RankLost, KeyboardInterrupt):
            raise
        except locks.Held:
            return JobOutcome(task, "held", folder, error="another process is at it")
        except Exception as error:  # anything can go wrong in a user's network, and the other jobs must go on
            if self.ranks.first:
                self._record(task, folder, error)
            return JobOutcome(task, "failed", folder, error=describe(error))

    def _run(self, task: Task, folder: Path, pool: ThreadPoolExecutor) -> JobOutcome:
        job = run.resolve_together(task.job, self.ranks, source=lambda: self.sources.open(task.job))
        look = self.ranks.first and not self.fresh and not (folder / store.STATES).exists()
        elsewhere = self.ranks.together(lambda: kept_in(self.folder, task, job) if look else None)[0]
        if elsewhere:
            return JobOutcome(task, "kept", elsewhere, store.read(elsewhere) if self.ranks.first else None)
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
