"""Reports on stdout in the form that `--format` names, and choices that are the entries of a dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.report import Report


class Entries(click.Choice):  # type: ignore[type-arg]  # click before 8.2 has no Generic here
    """One of a dict's keys, whenever they came into it; `get` is called where the choice is asked for."""

    def __init__(self, get: Callable[[], Mapping[str, Any]]) -> None:
        self._get, self.case_sensitive = get, True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._get())


def formats() -> Entries:
    """What `--format` can be."""
    from purity_cli import report

    return Entries(lambda: report.FORMATS)


def views() -> Entries:
    """What `purity show --view` can be."""
    from purity_cli.views import VIEWS

    return Entries(lambda: VIEWS)


def figures() -> Entries:
    """What `purity plot --figure` can be."""
    from purity_cli.figures import FIGURES

    return Entries(lambda: FIGURES)


def show(report: Report, layout: str = "table") -> None:
    """Print a report; where its form has no place for the notes, they go to stderr."""
    from purity_cli.report import FORMATS, WITHOUT_NOTES

    click.echo(FORMATS[layout](report), nl=False, color=True)
    for note in report.sentences if layout in WITHOUT_NOTES else ():
        log.info(note)
