"""A suite becomes results: job after job, each in its own folder, whatever happens to the others."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from purity_cli import run, store
from purity_cli.errors import PurityError
from purity_cli.results import Result
from purity_cli.run import parts
from purity_cli.run.ranks import RankLost, Ranks, describe
from purity_cli.run.resolving import Plan, Warn
from purity_cli.suite import Suite, Task
from purity_cli.suite.outlook import Sources, finished, grouped, same

FAILED = "failed.json"


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    task: Task
    status: str
    """`scored`, `kept` from an earlier run, `failed`, or `left out`."""
    folder: Path
    result: Result | None = None
    error: str | None = None


class Watch(Protocol):
    """Is told how a suite goes on."""

    def plans(self, tasks: Sequence[tuple[Task, int, int]]) -> None:
        """The jobs in the order in which they run, each with its images and the pixels of one, 0 where unknown."""

    def begins(self, task: Task) -> None:
        """This job is next."""

    def images(self, done: int, total: int) -> None:
        """Images that the current job has scored."""

    def ends(self, outcome: Outcome) -> None:
        """The current job is over."""


class Unwatched:
    """Tells nobody."""

    def plans(self, tasks: Sequence[tuple[Task, int, int]]) -> None: ...
    def begins(self, task: Task) -> None: ...
    def images(self, done: int, total: int) -> None: ...
    def ends(self, outcome: Outcome) -> None: ...


class Bench:
    """Runs a suite's jobs into `folder`.

    A job whose result is there already, by its key and by what its names stand for, is kept, unless `fresh`. A failed
    one leaves `failed.json`. `workers` threads decode for all jobs, and `cache` is where they share decoded pixels.
    Every one of several `ranks` must call this with the same suite.
    """

    def __init__(
        self,
        suite: Suite,
        folder: Path,
        *,
        workers: int,
        cache: Path | None = None,
        fresh: bool = False,
        every: float = 60.0,
        ranks: Ranks | None = None,
        watch: Watch | None = None,
        warn: Warn = run.silent,
        say: Warn = run.silent,
        command: str | None = None,
    ) -> None:
        self.suite, self.folder, self.workers, self.cache, self.fresh = suite, folder, workers, cache, fresh
        self.every, self.ranks, self.command = every, ranks or Ranks(), command
        heard = self.ranks.first
        self.watch: Watch = watch if watch and heard else Unwatched()
        self.warn, self.say = (warn, say) if heard else (run.silent, run.silent)
        self.sources = Sources()
        self.finished: dict[str, tuple[Path, Result]] = {}

    def run(self) -> list[Outcome]:
        """Run every job; the outcomes are in the order of the suite."""
        with claimed(self.folder, self.ranks), ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            tasks = self.ranks.together(self.suite.tasks)[0]
            if self.ranks.first and not self.fresh:
                self.finished = finished(self.folder, self.warn)
            order = self.ranks.together(lambda: [tasks.index(task) for task in grouped(tasks)])[0]
            if self.ranks.first:
                absent = (0, 0)
                amounts = [absent if tasks[i].absent else self.sources.amount(tasks[i].job) for i in order]
                self.watch.plans([(tasks[i], *amount) for i, amount in zip(order, amounts, strict=True)])
            outcomes = {}
            for i in order:
                self.watch.begins(tasks[i])
                outcomes[i] = self._outcome(tasks[i], pool)
                self.watch.ends(outcomes[i])
        return [outcomes[i] for i in range(len(tasks))]

    def _outcome(self, task: Task, pool: ThreadPoolExecutor) -> Outcome:
        folder = self.folder / task.name
        if task.absent:
            return Outcome(task, "left out", folder, error=f"{task.absent} is not there")
        try:
            plan = run.resolve_together(
                task.job, self.ranks, source=lambda: self.sources.open(task.job), warn=self._warn(task)
            )
            kept = self.ranks.together(lambda: self._kept(plan))[0]
            if kept:
                return Outcome(task, "kept", kept, self.finished[task.job.key()][1] if self.ranks.first else None)
            result = self._score(plan, task, folder, pool)
        except RankLost:
            raise
        except Exception as error:  # anything can go wrong in a user's network, and the other jobs must go on
            if self.ranks.first:
                self._record(task, folder, error)
            return Outcome(task, "failed", folder, error=describe(error))
        return Outcome(task, "scored", folder, result)

    def _score(self, plan: Plan, task: Task, folder: Path, pool: ThreadPoolExecutor) -> Result:
        if self.fresh:
            self.ranks.together(lambda: parts.clear(folder) if self.ranks.first else None)
        warn = self._warn(task)
        result = run.score_into(
            folder,
            plan,
            self.ranks,
            threshold=self.suite.threshold,
            command=self.command,
            warn=warn,
            workers=self.workers,
            pixels=run.pixels_of(plan, workers=self.workers, pool=pool, cache=self.cache, warn=warn, say=self.say),
            every=self.every,
            progress=self.watch.images,
        )
        if self.ranks.first:
            (folder / FAILED).unlink(missing_ok=True)
        return result

    def _kept(self, plan: Plan) -> Path | None:
        """The folder of this job's result, from an earlier run; asked on rank 0 alone."""
        folder, result = self.finished.get(plan.job.key(), (None, None))
        if folder is None or result is None or not same(plan, result):
            return None
        (folder / FAILED).unlink(missing_ok=True)
        parts.clear(folder)
        return folder

    def _record(self, task: Task, folder: Path, error: Exception) -> None:
        unexpected = None if isinstance(error, PurityError) else "".join(traceback.format_exception(error))
        record = {
            "key": task.job.key(),
            "error": describe(error),
            "traceback": unexpected,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": task.job.model_dump(mode="json"),
        }
        try:
            store.write_text(store.prepare(folder) / FAILED, json.dumps(record, indent=2) + "\n")
        except PurityError as problem:
            self.warn(str(problem))

    def _warn(self, task: Task) -> Warn:
        return lambda sentence: self.warn(f"{task.name}: {sentence}")


@contextmanager
def claimed(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Let nobody else run a suite into `folder`, and clear away what a killed run was just writing.

    The lock goes with the process that holds it, however that ends.
    """
    handle = None

    def claim() -> str:
        nonlocal handle
        if not ranks.first:
            return ""
        handle = store.claim(folder, "purity bench")
        mark = uuid4().hex if ranks.size > 1 else ""
        handle.truncate(0)
        handle.write(mark)
        handle.flush()
        os.fsync(handle.fileno())
        for leftover in folder.glob(f"*/{store.LEFTOVERS}"):
            leftover.unlink(missing_ok=True)
        return mark

    try:
        mark = ranks.together(claim)[0]
        ranks.together(lambda: _see(folder, mark, ranks))
        yield
    finally:
        if handle:
            handle.close()


def _see(folder: Path, mark: str, ranks: Ranks) -> None:
    path = folder / store.LOCK
    if not path.is_file() or path.read_text() != mark:
        raise PurityError(f"Process {ranks.rank} does not see the first one's {folder}: all machines must share it.")
