"""How a suite goes on, on stderr: two bars on a terminal, and everywhere a line for each job."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from purity_cli.cli import progress
from purity_cli.errors import log
from purity_cli.report import duration

if TYPE_CHECKING:
    from purity_cli.suite import Task
    from purity_cli.suite.bench import JobOutcome


class ConsoleWatch:
    """A `bench.ProgressCallback`; a context manager, since it may hold bars."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs = self._number = self._done = 0
        self._last = 0.0
        self._bars: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        note = TextColumn("{task.fields[note]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
        self._bars = self._stack.enter_context(progress.bars(*columns))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def plans(self, tasks: Sequence[Task]) -> None:
        self._jobs = len(tasks)
        log.info(f"{self._jobs} job{'' if self._jobs == 1 else 's'}.")
        if self._bars:
            self._bars.add_task("jobs", total=self._jobs, note="")
            self._bars.add_task("", total=None, note="")

    def begins(self, task: Task) -> None:
        self._number, self._done = self._number + 1, 0
        if self._bars:
            self._bars.reset(1, description=task.name, total=None, note="")

    def images(self, done: int, total: int) -> None:
        now = self._clock()
        # What an earlier run had scored comes with the first block, and says nothing about the speed.
        if self._done and self._bars:
            speed = (done - self._done) / max(now - self._last, 1e-9)
            self._bars.update(1, completed=done, total=total, note=f"{rate(speed)} images/s")
        self._done, self._last = done, now

    def ends(self, outcome: JobOutcome) -> None:
        left = self._jobs - self._number
        remain = f" ({left} left)" if left else ""
        if self._bars:
            self._bars.advance(0)
        log.info(f"[{self._number}/{self._jobs}] {outcome.task.name}: {said(outcome)}{remain}")


def said(outcome: JobOutcome) -> str:
    """What became of a job, in a line."""
    result = outcome.result
    if result is None:
        return f"{outcome.status}: {outcome.error}"
    if outcome.status == "kept":
        return f"kept, {result.n_images:,} images"
    speed, seconds = result.provenance["images_per_second"], result.provenance["seconds"]
    return f"{result.n_images:,} images, {rate(speed)} images/s, {duration(seconds)}"


def rate(speed: float) -> str:
    """Images per second: `45.2`, `0.037`."""
    return f"{speed:.1f}" if speed >= 1 else f"{speed:.2g}"
