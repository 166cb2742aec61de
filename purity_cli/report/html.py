"""A report as one HTML file that needs nothing beside it: no network, no font, no other file.

What comes from outside is text: Jinja escapes all of it, figures are made of elements, and a policy in the page's head
lets run no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from purity_cli.report import SIGNS, Column, Report, Table, said, to_csv

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
INK = re.compile(r"#000000|#262626|\bblack\b")
"""What matplotlib draws text and axes with: the page's own colour of text stands for it."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
"""Characters that XML cannot hold, as names of files may have them."""
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
            figure=lambda caption, draw: _figure(draw(), caption, f"f{next(counter)}-"),
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
    every = {column.key: column for column in table.columns if column.shown}
    errors = {column.error for column in every.values()}
    shown = {column.key for column in table.shown}
    held = {key for row in table.rows for key, value in row.items() if value is not None}
    return [one for key, one in every.items() if key not in errors and (key in shown or (one.optional and key in held))]


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
        text=said(value, digits, column.signed),
        value=_exact(value),
        sign=SIGNS.get(mark, ""),
        error="" if error is None or math.isnan(error) else said(error, digits),
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
    """What is known of two columns, for the script; `<` and `&` are written as JSON can write them."""
    assert table.plot is not None
    said = {group: {"\n".join(pair): text for pair, text in pairs.items()} for group, pairs in table.plot.said.items()}
    found = {"x": table.plot.x, "y": table.plot.y, "groups": list(table.plot.groups), "said": said}
    text = json.dumps(found, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _figure(drawn: Any, caption: str, prefix: str) -> Markup:
    """An image, or an SVG element with a title for who cannot see it."""
    if isinstance(drawn, bytes):
        content = base64.b64encode(drawn).decode()
        return Markup('<img src="data:{};base64,{}" alt="{}">').format(_kind(drawn), content, caption)
    svg = drawn if isinstance(drawn, ElementTree.Element) else _from_matplotlib(drawn, prefix)
    svg.attrib |= {"role": "img", "aria-label": caption}
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _kind(content: bytes) -> str:
    return "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"


def _from_matplotlib(figure: Any, prefix: str) -> ElementTree.Element:
    """Its SVG with ids of its own, in the page's ink, on the page's ground."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "purity"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text, and the reader's fonts have it
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", out.getvalue())
    svg = ElementTree.fromstring(text[text.index("<svg") :])
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in svg.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.set(name, prefix + value)
            elif name == f"{{{XLINK}}}href":
                del element.attrib[name]
                element.set("href", "#" + prefix + value.removeprefix("#"))
            else:
                element.set(name, INK.sub("currentColor", value.replace("url(#", f"url(#{prefix}")))
    svg.attrib = {"viewBox": svg.get("viewBox", ""), "class": "drawn"}
    return svg
