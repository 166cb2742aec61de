"""Reports on stdout in the form that `--format` names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.report import Report


class Entries(click.Choice):  # type: ignore[type-arg]  # click before 8.2 has no Generic here
    """The keys of a dict of this package, `module:NAME`; read when they are asked for, because plug-ins add to it."""

    def __init__(self, place: str) -> None:
        self.place, self.case_sensitive = place, True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        module, _, name = self.place.partition(":")
        entries: Mapping[str, Any] = getattr(import_module(module), name)
        return tuple(entries)


def show(report: Report, layout: str = "table") -> None:
    """Print a report; where its form has no place for the notes, they go to stderr."""
    from purity_cli.report import FORMATS, WITHOUT_NOTES

    click.echo(FORMATS[layout](report), nl=False, color=True)
    for note in report.sentences if layout in WITHOUT_NOTES else ():
        log.info(note)
