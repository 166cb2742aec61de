"""What goes to stderr while a command works: bars on a terminal, sentences above them, or lines of JSON."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from purity_cli.errors import log

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from purity_cli.suite import Task
    from purity_cli.suite.bench import JobOutcome

_live: Console | None = None
"""Where bars are drawn now: sentences must go through it, or they would be glued to a bar."""
_json = False
"""Whether `--progress json` was given."""


def set_form(ctx: click.Context, param: click.Parameter, value: str) -> None:
    """For `callback=` of --progress."""
    global _json  # noqa: PLW0603
    _json = value == "json"


def step(event: str, **facts: Any) -> None:
    """One line of JSON on stderr, where `--progress json` asked for them."""
    if _json:
        click.echo(json.dumps({"event": event, **facts}), err=True)


@contextmanager
def bars(shown: bool = True) -> Iterator[Progress | None]:
    """rich's Progress with description, count, images/s and time left; None where there is no terminal for it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{speed(task.speed)} {task.fields['unit']}/s" if task.speed else "")

    global _live  # noqa: PLW0603
    console = Console(stderr=True)
    if not (console.is_terminal and shown) or _json:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    # stdout is for results, also while bars are drawn.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        before, _live = _live, console
        try:
            yield progress
        finally:
            _live = before


@contextmanager
def images(description: str, shown: bool = True, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """A function of (images done, images in all) that shows them, if they are to be shown."""
    with bars(shown) as progress:
        task = progress.add_task(description, total=None, unit=unit) if progress else None

        def show(done: int, total: int) -> None:
            if shown:
                step(unit, job=description, done=done, total=total)
            if progress and task is not None:
                progress.update(task, completed=done, total=total)

        yield show


class SuiteProgress:
    """A `bench.ProgressCallback`: a bar of the jobs, a bar of the current job's images, and a line for each job."""

    def __init__(self, progress: Progress | None) -> None:
        self._bars, self._jobs, self._number, self._name = progress, 0, 0, ""

    def plans(self, tasks: Sequence[Task]) -> None:
        """The jobs in the order in which they run."""
        self._jobs = len(tasks)
        log.info(f"{self._jobs} job{'' if self._jobs == 1 else 's'}.")
        if self._bars:
            self._bars.add_task("jobs", total=self._jobs, unit="jobs")
            self._bars.add_task("", total=None, unit="images")

    def begins(self, task: Task) -> None:
        """This job is next."""
        self._name, self._number = task.name, self._number + 1
        if self._bars:
            self._bars.reset(self._bars.task_ids[1], description=task.name, total=None)

    def images(self, done: int, total: int) -> None:
        """Images that the current job has scored."""
        step("images", job=self._name, done=done, total=total)
        if self._bars:
            self._bars.update(self._bars.task_ids[1], completed=done, total=total)

    def ends(self, outcome: JobOutcome) -> None:
        """The current job is over."""
        name, result = outcome.task.name, outcome.result
        facts = {"job": name, "status": outcome.status, "number": self._number, "of": self._jobs}
        step("job", **facts, images=result.n_images if result else None, error=outcome.error)
        if self._bars:
            self._bars.advance(self._bars.task_ids[0])
        left = self._jobs - self._number
        if not _json:
            log.info(f"[{self._number}/{self._jobs}] {name}: {_became(outcome)}{f' ({left} left)' if left else ''}")


def _became(outcome: JobOutcome) -> str:
    """What became of a job, in a line."""
    from purity_cli.report import duration

    result = outcome.result
    if result is None:
        return f"{outcome.status}: {outcome.error}"
    if outcome.status == "kept":
        return f"kept, {result.n_images:,} images"
    rate, seconds = result.provenance["images_per_second"], result.provenance["seconds"]
    return f"{result.n_images:,} images, {speed(rate)} images/s, {duration(seconds)}"


def speed(value: float) -> str:
    """Images per second: `45.2`, `0.037`."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


class _OnStderr(logging.Handler):
    """A message is a sentence, above the bars on a terminal, or a line of JSON. The same warning comes once."""

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        sentence = record.getMessage()
        if record.levelno == logging.WARNING and sentence in self._warned:
            return
        self._warned.add(sentence)
        if _json:
            step("message", level=record.levelname.lower(), text=sentence)
            return
        if record.levelno > logging.INFO:
            sentence = f"{record.levelname.capitalize()}: {sentence}"
        if _live is not None:
            _live.print(_in_words(sentence), markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(_in_words(sentence) if sys.stderr and sys.stderr.isatty() else sentence, err=True)


@contextmanager
def messages() -> Iterator[None]:
    """While this is entered, everything that is logged is shown, once: users' code may set up logging of its own."""
    global _json
    handler, before, _json = _OnStderr(), (log.level, log.propagate), False
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def _in_words(sentence: str) -> str:
    return textwrap.fill(
        sentence, max(20, shutil.get_terminal_size().columns - 1), break_long_words=False, break_on_hyphens=False
    )
