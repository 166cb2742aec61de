"""Progress on stderr: a bar with images/s and time left on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def images(description: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A function of (images done, images in all) that shows them, if they are to be shown."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal and shown):
        yield lambda done, total: None
        return
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=None, rate="")

        def show(done: int, total: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, completed=done, total=total, rate=f"{speed:.1f} images/s" if speed else "")

        yield show


def warn(sentence: str) -> None:
    """One warning on stderr."""
    click.echo(f"Warning: {sentence}", err=True)


def note(sentence: str) -> None:
    """One line on stderr that is no warning."""
    click.echo(sentence, err=True)
