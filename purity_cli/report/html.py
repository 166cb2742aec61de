"""A report as one HTML file that needs nothing beside it: no network, no font, no other file.

What comes from outside is text: Jinja escapes all of it, figures are made of elements, and a policy in the page's head
lets run no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from purity_cli.report import SIGNS, Chart, Column, Report, Table, to_csv, written

LONG, WIDE = 20, 8
"""Rows from which a table can be searched, and columns from which they can be chosen."""


@dataclass(frozen=True)
class PageCell:
    """A value on the page: as people read it, and to its last digit."""

    text: str
    value: str
    sign: str = ""
    error: str = ""
    error_value: str = ""
    mark: str = ""
    hint: str = ""
    share: str = ""
    """Of a bar's whole length."""


def render(report: Report) -> str:
    """The page."""
    counter = iter(range(10**9))
    script, style = _static("page.js"), _static("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            script=Markup(script),
            style=Markup(style),
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
            columns=columns,
            lines=lines,
            picture=_picture,
            chart=_chart,
            number=lambda: next(counter),
            downloads=list(_downloads(report)),
            plot=_plot,
            LONG=LONG,
            WIDE=WIDE,
        )
    )
    # Half a character, as a path may hold, has no place in UTF-8; zero is no character of HTML.
    return page.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "backslashreplace").decode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("purity_cli.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _static(name: str) -> str:
    return (resources.files("purity_cli.report") / name).read_text("utf-8")


def columns(table: Table) -> list[Column]:
    """Those that a page shows, and those that it can: an error stands behind its value instead."""
    errors = {column.error for column in table.for_people}
    shown = {column.key for column in table.shown}
    held = {key for row in table.rows for key, value in row.items() if value is not None}
    return [
        one
        for one in table.for_people
        if one.key not in errors and (one.key in shown or (one.optional and one.key in held))
    ]


def lines(table: Table) -> Iterator[tuple[str, list[PageCell]]]:
    """Each row with the id of what it is of, the foot's last."""
    shown = columns(table)
    for place, row in enumerate([*table.rows, *table.foot]):
        yield table.links.get(place, ""), [_cell(table, place, row, column) for column in shown]


def _cell(table: Table, place: int, row: Mapping[str, Any], column: Column) -> PageCell:
    value, error = row.get(column.key), row.get(column.error) if column.error else None
    digits = None if column.digits is None else table.digits.get(place, column.digits)
    mark = table.marks.get((place, column.key), "")
    share = value if column.bar and isinstance(value, float) and not math.isnan(value) else None
    return PageCell(
        text=written(value, digits, column.signed),
        value=_exact(value),
        sign=SIGNS.get(mark, ""),
        error="" if error is None or math.isnan(error) else written(error, digits),
        error_value=_exact(error),
        mark=mark,
        hint=table.hints.get((place, column.key), ""),
        share="" if share is None else f"{min(max(share, 0.0), 1.0):.3f}",
    )


def _exact(value: Any) -> str:
    """As a CSV file has it."""
    return "" if value is None else "NaN" if isinstance(value, float) and math.isnan(value) else str(value)


def _downloads(report: Report) -> Iterator[tuple[str, str]]:
    """The name and the address of a CSV file for each table of the report that programs read."""
    for table in report.of("all", "data"):
        content = base64.b64encode(to_csv(Report([table])).encode("utf-8", "backslashreplace")).decode()
        yield f"{table.key}.csv", f"data:text/csv;charset=utf-8;base64,{content}"


def _plot(table: Table) -> Markup:
    """What the script needs to set two columns against each other."""
    assert table.plot is not None
    return _json({name: getattr(table.plot, name) for name in ("x", "y", "groups", "rho")})


def _chart(chart: Chart) -> Markup:
    return _json({"kind": chart.kind, **chart.data})


def _json(data: Any) -> Markup:
    """JSON in a script element; `<` and `&` are written as JSON can write them."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _picture(content: bytes, caption: str) -> Markup:
    kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
    return Markup('<img src="data:{};base64,{}" alt="{}">').format(kind, base64.b64encode(content).decode(), caption)
