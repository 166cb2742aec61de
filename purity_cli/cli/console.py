"""Tables on stdout: never cut, coloured only on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType
    from rich.table import Table

WIDE = 1000
"""Columns: a narrow terminal may wrap lines, but module paths are there to be copied and nothing may cut them."""


def table(text: pd.DataFrame, left: tuple[str, ...] = (), last: list[RenderableType] | None = None) -> Table:
    """A frame of text as a table, its columns flush right but for those named; `last` is a column of drawings."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD)
    for name in text.columns:
        drawn.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    if last:
        drawn.add_column("")
    for i, row in enumerate(text.astype(str).itertuples(index=False)):
        drawn.add_row(*row, *(last[i : i + 1] if last else ()))
    return drawn


def show(table: Table) -> None:
    """Print a table without the padding that rich puts behind it."""
    from rich.console import Console

    console = Console(width=WIDE)
    with console.capture() as captured:
        console.print(table, markup=False, highlight=False)
    for line in captured.get().splitlines():
        if line.strip():
            print(line.rstrip())
