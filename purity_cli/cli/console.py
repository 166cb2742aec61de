"""Tables on stdout: never cut, coloured only on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 1000
"""Columns: a narrow terminal may wrap lines, but module paths are there to be copied and nothing may cut them."""


def show(table: Table) -> None:
    """Print a table without the padding that rich puts behind it."""
    from rich.console import Console

    console = Console(width=WIDE)
    with console.capture() as captured:
        console.print(table, markup=False, highlight=False)
    for line in captured.get().splitlines():
        if line.strip():
            print(line.rstrip())
