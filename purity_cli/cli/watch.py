"""How a suite goes on, on stderr: two bars on a terminal, and everywhere a line for each job."""

from __future__ import annotations

import math
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
        self._left: dict[str, int] = {}
        self._cost: dict[str, float] = {}
        self._jobs = self._number = self._done = 0
        self._seconds = self._spent = self._last = 0.0
        self._name = ""
        self._bars: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

        note = TextColumn("{task.fields[note]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), note)
        self._bars = self._stack.enter_context(progress.bars(*columns))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def plans(self, tasks: Sequence[tuple[Task, int, int]]) -> None:
        self._left = {task.name: images for task, images, _ in tasks}
        self._cost = costs(tasks)
        self._jobs = len(tasks)
        images = sum(self._left.values())
        log.info(f"{self._jobs} job{'' if self._jobs == 1 else 's'}, {images:,} images in all.")
        if self._bars:
            self._bars.add_task("jobs", total=self._jobs, note="")
            self._bars.add_task("", total=None, note="")

    def begins(self, task: Task) -> None:
        self._name, self._number, self._done = task.name, self._number + 1, 0
        if self._bars:
            self._bars.reset(1, description=task.name, total=self._left[task.name] or None, note="")

    def images(self, done: int, total: int) -> None:
        now = self._clock()
        # What an earlier run had scored comes with the first block, and says nothing about the speed.
        if self._done:
            speed = (done - self._done) / max(now - self._last, 1e-9)
            self._spent += (done - self._done) * self._cost[self._name]
            self._seconds += now - self._last
            if self._bars:
                self._bars.update(1, completed=done, total=total, note=f"{rate(speed)} images/s")
                self._bars.update(0, note=self._time_left())
        self._done, self._last = done, now
        self._left[self._name] = total - done

    def ends(self, outcome: JobOutcome) -> None:
        self._left[outcome.task.name] = 0
        left = self._jobs - self._number
        remain = f" ({left} left{self._time_left(', ')})" if left else ""
        line = f"[{self._number}/{self._jobs}] {outcome.task.name}: {said(outcome)}{remain}"
        if self._bars:
            self._bars.advance(0)
        log.info(line)

    def _time_left(self, before: str = "") -> str:
        """By what the images that are left cost their networks."""
        left = sum(images * self._cost[name] for name, images in self._left.items())
        return f"{before}about {duration(left * self._seconds / self._spent)}" if left and self._spent else ""


def costs(tasks: Sequence[tuple[Task, int, int]]) -> dict[str, float]:
    """What an image of each job costs its network, in operations; where these can't be told, by its pixels."""
    from purity_cli.suite.costs import operations

    known = {}
    for task, images, pixels in tasks:
        side = math.isqrt(pixels)
        counted = operations(task.job.model, side, side) if images and side else None
        if counted:
            known[task.name] = counted / pixels
    usual = sum(known.values()) / len(known) if known else 1.0
    return {task.name: known.get(task.name, usual) * pixels for task, _, pixels in tasks}


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
