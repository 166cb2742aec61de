"""Progress and messages on stderr: a bar with images/s and time left on a terminal, and sentences above it."""

from __future__ import annotations

import logging
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from purity_cli.errors import log

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

_live: Console | None = None
"""Where bars are drawn now: what else is said must go through it, lest it be glued to a bar."""


@contextmanager
def bars(*columns: ProgressColumn, shown: bool = True) -> Iterator[Progress | None]:
    """rich's Progress with these columns, while it is entered; None where stderr is no terminal, or not `shown`."""
    from rich.console import Console
    from rich.progress import Progress

    global _live  # noqa: PLW0603
    console = Console(stderr=True)
    if not (console.is_terminal and shown):
        yield None
        return
    # stdout is for results, also while bars are drawn.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        before, _live = _live, console
        try:
            yield progress
        finally:
            _live = before


@contextmanager
def images(description: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A function of (images done, images in all) that shows them, if they are to be shown."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with bars(*columns, shown=shown) as progress:
        if progress is None:
            yield lambda done, total: None
            return
        task = progress.add_task(description, total=None, rate="")

        def show(done: int, total: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, completed=done, total=total, rate=f"{speed:.1f} images/s" if speed else "")

        yield show


class _OnStderr(logging.Handler):
    """One sentence a message, in whole words on a terminal, and above the bars where there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        sentence = record.getMessage()
        if record.levelno > logging.INFO:
            sentence = f"{record.levelname.capitalize()}: {sentence}"
        if _live is not None:
            _live.print(_in_words(sentence), markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(_in_words(sentence) if sys.stderr and sys.stderr.isatty() else sentence, err=True)


@contextmanager
def messages() -> Iterator[None]:
    """While this is entered, all that is logged is shown, once: users' code may set up logging of its own."""
    handler, before = _OnStderr(), (log.level, log.propagate)
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
