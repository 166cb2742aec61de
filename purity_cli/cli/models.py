"""`purity models`: what can be scored, and whether its weights are on this machine."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from purity_cli.models import ModelEntry

COLUMNS = ("name", "source", "parameters", "input", "weights here")


@click.command("models")
@click.argument("pattern", required=False)
@click.option("--format", "layout", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def command(pattern: str | None, layout: str) -> None:
    """List the models that can be scored.

    PATTERN is a glob (resnet*), part of a name, or either behind a source (timm:*resnext*); with a dot it lists
    timm's weights one by one (resnet50.*). Without PATTERN every model is listed, its parameters uncounted.
    """
    from purity_cli.models import catalogue

    entries = catalogue(pattern)
    click.echo({"table": _table, "json": _json, "csv": _csv}[layout](entries))
    if layout == "table" and all(entry.parameters is None for entry in entries):
        click.echo(f"{len(entries)} models; parameters are counted where PATTERN leaves no more than 100.", err=True)


def _rows(entries: Sequence[ModelEntry]) -> list[list[str]]:
    return [
        [
            entry.name,
            entry.source,
            "" if entry.parameters is None else f"{entry.parameters:,}",
            "x".join(map(str, entry.input_size)) if entry.input_size else "",
            ", ".join(entry.weights) or "no",
        ]
        for entry in entries
    ]


def _table(entries: Sequence[ModelEntry]) -> str:
    rows = [list(COLUMNS), *_rows(entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i == 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _json(entries: Sequence[ModelEntry]) -> str:
    return json.dumps(
        [
            {
                "name": entry.name,
                "source": entry.source,
                "parameters": entry.parameters,
                "input_size": entry.input_size,
                "weights_here": entry.weights,
            }
            for entry in entries
        ],
        indent=2,
    )


def _csv(entries: Sequence[ModelEntry]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "source", "parameters", "input_size", "weights_here"])
    for entry, row in zip(entries, _rows(entries), strict=True):
        parameters = "" if entry.parameters is None else entry.parameters
        writer.writerow([entry.name, entry.source, parameters, row[3], ";".join(entry.weights)])
    return text.getvalue().rstrip("\n")
