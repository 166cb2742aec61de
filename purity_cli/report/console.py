"""Reports on a terminal: as wide as it is, never a number cut. In a pipe: full width, so that paths can be copied."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from purity_cli.report import Column, Report, Table

if TYPE_CHECKING:
    from rich.console import Console

FULL = 10_000
"""Columns of what is no terminal."""
BAR, LEAST, GAP = 8, 14, 2
"""Columns of a bar, of the narrowest that a path is folded to, and between two columns."""
STYLES = {"starved": "yellow", "moved": "red", "vanished": "red", "missing": "dim"}


def render(report: Report) -> str:
    """Tables, then notes, each note once."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = FULL
    with console.capture() as captured:
        if report.title:
            console.print(Text(report.title, "bold"))
        if report.lead:
            console.print(Text(report.lead))
        for table in report.of("all", "people"):
            if table.rows or not report.notes:
                _print(console, table)
        for note in report.once:
            console.print(Text(note))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _print(console: Console, table: Table) -> None:
    from rich.text import Text

    if table.title:
        console.print(Text(table.title, "bold"))
    columns, bars, folded = fitted(table, console.width, _draws(console))
    for block in blocks(table, columns, console.width, folded):
        _draw(console, table, block, bars, folded)
    left = [column.heading for column in table.shown if column not in columns]
    if left:
        console.print(Text(f"Too narrow for {', '.join(left)}: widen the terminal, or give --format md.", "dim"))


def _draws(console: Console) -> bool:
    """Whether this is a terminal whose encoding has block characters."""
    return console.is_terminal and "utf" in (console.encoding or "").lower()


def fitted(table: Table, width: int, bars: bool = False) -> tuple[list[Column], bool, dict[str, int]]:
    """The columns that fit into `width`, whether their bars do, and the widths that paths are folded to.

    Bars go first, then the columns of `drop` 1, then paths are folded, then the columns of `drop` 2 and more go, then
    every text is folded.
    """
    columns, folded = table.shown, dict[str, int]()
    barred = sum(column.bar for column in columns)
    bars = bars and barred > 0 and _width(table, columns, {}) + barred * (BAR + GAP) <= width
    for level in (1, 0, *sorted({column.drop for column in columns} - {0, 1})):
        over = _width(table, columns, folded) - width
        if over <= 0:
            break
        if level:
            columns = [column for column in columns if column.drop != level]
        else:
            folded = _fold(table, columns, over)
    over = _width(table, columns, {}) - width
    if folded:  # what went since may leave the paths more room
        folded = _fold(table, columns, over)
    if _width(table, columns, folded) > width:
        folded = _fold(table, columns, over, every=True)
    return columns, bars, folded


def _fold(table: Table, columns: Sequence[Column], over: int, *, every: bool = False) -> dict[str, int]:
    """The widths of the columns that may fold, or of `every` one of text, that save `over` if they can."""
    folded = {}
    for column in sorted(columns, key=lambda column: not column.fold):
        if over > 0 and (column.fold or (every and not column.number)):
            natural = _widths(table, [column])[0]
            folded[column.key] = max(min(natural, LEAST), natural - over)
            over -= natural - folded[column.key]
    return folded


def _widths(table: Table, columns: Sequence[Column]) -> list[int]:
    from rich.cells import cell_len

    lines = [[_longest_word(column) for column in columns], *table.texts(columns)]
    return [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]


def _longest_word(column: Column) -> str:
    """A heading may break between its words."""
    return max(column.heading.split() or [""], key=len)


def _width(table: Table, columns: Sequence[Column], folded: dict[str, int]) -> int:
    widths = zip(columns, _widths(table, columns), strict=True)
    return sum(min(width, folded.get(column.key, width)) + GAP for column, width in widths)


def blocks(table: Table, columns: list[Column], width: int, folded: dict[str, int]) -> list[list[Column]]:
    """The columns in as many tables below each other as it takes, each behind the text that names its rows."""
    if _width(table, columns, folded) <= width:
        return [columns]
    named = next((i for i, column in enumerate(columns) if column.number), 1) or 1
    rest = max((_width(table, [column], folded) for column in columns[named:]), default=0)
    stub = columns[:named] if _width(table, columns[:named], folded) + rest <= width else columns[:1]
    parts = [[*stub]]
    for column in columns[len(stub) :]:
        if len(parts[-1]) > len(stub) and _width(table, [*parts[-1], column], folded) > width:
            parts.append([*stub])
        parts[-1].append(column)
    return parts


def _draw(console: Console, table: Table, columns: list[Column], bars: bool, folded: dict[str, int]) -> None:
    from rich import box
    from rich.table import Table as Drawing
    from rich.text import Text

    drawn = Drawing(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    rigid = console.width == FULL
    for column, natural in zip(columns, _widths(table, columns), strict=True):
        side: Any = "right" if column.number else "left"
        width = None if rigid else min(natural, folded.get(column.key, natural))
        drawn.add_column(column.heading, justify=side, overflow="fold", no_wrap=rigid, width=width)
        if bars and column.bar:
            drawn.add_column("", width=BAR)
    everything = [*table.rows, *table.foot]
    for place, line in enumerate(table.texts(columns)):
        if place == len(table.rows):
            drawn.add_section()
        cells: list[Any] = []
        for column, cell in zip(columns, line, strict=True):
            mark = table.marks.get((place, column.key), "")
            cells.append(Text(cell, STYLES.get(mark, "")))
            if bars and column.bar:
                cells.append(bar(everything[place].get(column.key), hollow=mark == "starved"))
        drawn.add_row(*cells)
    console.print(drawn)


def bar(value: float | None, *, hollow: bool = False) -> Any:
    """A bar of `BAR` characters at 1; hollow where the value cannot be trusted, none where there is none."""
    from rich.bar import Bar

    if value is None or math.isnan(value):
        return ""
    length = max(0.0, min(1.0, value))
    return "░" * max(1, round(length * BAR)) if hollow else Bar(size=1, begin=0, end=length, width=BAR)
