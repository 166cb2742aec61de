"""What a command has found, before it has a form: titled tables of typed columns, and notes; `FORMATS` give it one.

A value is None where there is no such cell, and NaN where there is one and nothing fired; no renderer may mix them up.
Little is imported here, so that `--help` can name the formats.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from purity_cli.files import finite
from purity_cli.plugins import Registry

Value = str | float | Sequence[str] | None
"""Of a cell; a bool and an int are numbers, too."""
Row = Mapping[str, Any]
KeyPair = tuple[str, str]

SIGNS = {"starved": "*", "missing": "missing"}
"""What stands behind a value that is marked so, where people read it."""


@dataclass(frozen=True)
class Column:
    """One column: under `key` in CSV and JSON, under `title` where people read.

    A column of one `title` alone is of text made for people (`data=False`); one that only programs want is not `shown`.
    """

    key: str
    title: str = ""
    """The key where it is empty."""
    digits: int | None = None
    """Decimals that people see; None for whole numbers and text."""
    number: bool = False
    signed: bool = False
    shown: bool = True
    data: bool = True
    drop: int = 0
    """What a narrow terminal leaves out first: 1 before 2; 0 is never left out."""
    fold: bool = False
    """Whether a narrow terminal may break its values over several lines, as long paths of modules."""
    bar: bool = False
    """Whether a terminal draws a bar beside it; from 0 to 1."""
    error: str = ""
    """The key of its standard error, which a page shows behind it instead of in a column."""
    optional: bool = False
    """Whether people see it only where they can ask for it, as on a page."""
    behind: str = ""
    """The key of the column that people read it behind, where that is another place than in data."""

    @property
    def heading(self) -> str:
        return self.title or self.key


def text(key: str, title: str = "", **more: Any) -> Column:
    return Column(key, title, **more)


def number(key: str, title: str = "", digits: int | None = 3, **more: Any) -> Column:
    return Column(key, title, digits, number=True, **more)


@dataclass(frozen=True)
class Plot:
    """That a page may set any two columns of a table against each other, these two first.

    `groups` are what belongs together, one for each row; `rho` has the rank correlation of two columns in each group.
    """

    x: str
    y: str
    groups: Sequence[str]
    rho: Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Chart:
    """What a page draws: `kind` is a function of page.js, which takes `data` as JSON."""

    caption: str
    kind: Literal["lines", "channels"]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of values by the columns' keys; a key that no column has is ignored.

    `marks` name what is special of a cell, by its row's place and its column (see `SIGNS`); `digits` are those of rows
    that have others than their columns; `foot` are rows for people that follow from the others, as an average.
    `aim` says who wants the table: `all`; `page` leaves the console out; `people` and `data` have each other's out.
    """

    key: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    marks: Mapping[tuple[int, str], str] = field(default_factory=dict)
    digits: Mapping[int, int] = field(default_factory=dict)
    foot: Sequence[Row] = ()
    aim: Literal["all", "page", "people", "data"] = "all"
    hints: Mapping[tuple[int, str], str] = field(default_factory=dict)
    """What a page says of a cell to who points at it."""
    links: Mapping[int, str] = field(default_factory=dict)
    """By a row's place, the `id` of the report that it is of."""
    plot: Plot | None = None

    @property
    def for_people(self) -> list[Column]:
        """The columns that people can see, in their order."""
        columns = [one for one in self.columns if one.shown and not one.behind]
        keys = [one.key for one in self.columns if not one.behind]
        for moved in (one for one in self.columns if one.shown and one.behind):
            # Behind a column that is not shown itself, it stands where that would.
            before = set(keys[: keys.index(moved.behind) + 1] if moved.behind in keys else keys)
            columns.insert(sum(one.key in before for one in columns), moved)
        return columns

    @property
    def shown(self) -> list[Column]:
        """The columns for people; without a title of its own, one that holds nothing is left out."""
        held = {key for row in (*self.rows, *self.foot) for key, value in row.items() if value is not None}
        held |= {key for _, key in self.marks}
        return [one for one in self.for_people if not one.optional and (one.title or one.key in held or not self.rows)]

    @property
    def data(self) -> list[Column]:
        """The columns for programs."""
        return [column for column in self.columns if column.data]

    def texts(self, columns: Sequence[Column]) -> list[list[str]]:
        """The rows as people read them, the foot's last."""
        starred = {key for (_, key), mark in self.marks.items() if mark == "starved"}
        lines = []
        for place, row in enumerate([*self.rows, *self.foot]):
            line = []
            for column in columns:
                digits = None if column.digits is None else self.digits.get(place, column.digits)
                sign = SIGNS.get(self.marks.get((place, column.key), ""), " " if column.key in starred else "")
                line.append(written(row.get(column.key), digits, column.signed) + sign)
            lines.append(line)
        return lines


@dataclass(frozen=True)
class Report:
    """Tables, and sentences that must stand beside them; `facts` are for programs alone.

    `lead` is the outcome in a sentence that stands above the tables. A page has more: `charts`, `pictures` (the bytes
    of a PNG or JPEG by its caption), and `parts` below it, which are folded up where they are `folded`.
    """

    tables: Sequence[Table]
    notes: Sequence[str] = ()
    title: str = ""
    lead: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    parts: Sequence[Report] = ()
    folded: bool = False
    id: str = ""

    @property
    def once(self) -> list[str]:
        """The notes, each once."""
        return list(dict.fromkeys(self.notes))

    @property
    def sentences(self) -> list[str]:
        """All that is said, for forms without a place above the tables."""
        return [*([self.lead] if self.lead else []), *self.once]

    def of(self, *aims: str) -> list[Table]:
        return [table for table in self.tables if table.aim in aims]

    @property
    def main(self) -> Table:
        """The table that a CSV file holds."""
        return self.of("all", "data")[0]


def written(value: Any, digits: int | None = None, signed: bool = False) -> str:
    """`0.123`; `NaN` where nothing fired, nothing where there is no such cell; whole numbers in groups of three."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(value)
    if math.isnan(value):
        return "NaN"
    if digits is None:
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return f"{value:{'+' if signed else ''}.{digits}f}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def markdown(report: Report) -> str:
    """Title, tables, notes, as GitHub and pandoc read them."""
    parts = [*([f"### {report.title}"] if report.title else []), *([report.lead] if report.lead else [])]
    for table in report.of("all", "page", "people"):
        if table.rows:
            parts += [*([f"**{table.title}**"] if table.title else []), _grid(table)]
    parts += ["\n".join(f"- {note}" for note in report.once)] if report.notes else []
    return "\n\n".join(parts) + "\n"


def _grid(table: Table) -> str:
    columns = table.shown
    lines = [[column.heading for column in columns], *table.texts(columns)]
    lines = [[cell.replace("|", "\\|").rstrip() for cell in line] for line in lines]
    widths = [max(3, *map(len, cells)) for cells in zip(*lines, strict=True)]
    rule = [
        "-" * (width - 1) + ":" if column.number else "-" * width for column, width in zip(columns, widths, strict=True)
    ]

    def line(cells: Iterable[str]) -> str:
        padded = [f"{cell:{'>' if c.number else '<'}{w}}" for cell, c, w in zip(cells, columns, widths, strict=True)]
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(lines[0]), f"| {' | '.join(rule)} |", *map(line, lines[1:])])


def to_csv(report: Report) -> str:
    """The main table, to the last digit: `NaN` where nothing fired, empty where there is no such cell, and `;` within
    a cell that has several values."""
    table, out = report.main, io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in table.data])
    for row in table.rows:
        writer.writerow([_csv_value(row.get(column.key)) for column in table.data])
    return out.getvalue()


def _csv_value(value: Value) -> str | float | None:
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return value if value is None or isinstance(value, (str, int, float)) else ";".join(value)


SCHEMA = "purity-report/1"
"""Of the JSON: the number grows where a key goes or changes its meaning, and stays where one is added."""


def to_json(report: Report) -> str:
    """An object with the facts, a list of objects for each table, and the notes; null for NaN. See docs/python.md."""
    found = {
        "schema": SCHEMA,
        **report.facts,
        **{
            table.key: [{column.key: row.get(column.key) for column in table.data} for row in table.rows]
            for table in report.of("all", "page", "data")
        },
        "notes": report.sentences,
    }
    return json.dumps(finite(found), indent=2, allow_nan=False) + "\n"


def _table(report: Report) -> str:
    from purity_cli.report.console import render

    return render(report)


def _html(report: Report) -> str:
    from purity_cli.report.html import render

    return render(report)


FORMATS: Registry[Callable[[Report], str]] = Registry(
    "purity_cli.formats",
    None,
    {"table": _table, "csv": to_csv, "md": markdown, "json": to_json, "html": _html},
)
"""What `--format` offers. One that has no place for notes leaves them to whoever prints it: see `WITHOUT_NOTES`."""
WITHOUT_NOTES = {"csv"}
