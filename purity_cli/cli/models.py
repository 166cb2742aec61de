"""`purity models`: what can be scored, and whether its weights are on this machine."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console

if TYPE_CHECKING:
    from purity_cli.models import ModelEntry


@click.command("models")
@click.argument("pattern", required=False)
@click.option("--format", "layout", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def command(pattern: str | None, layout: str) -> None:
    """List the models that can be scored.

    PATTERN is a glob (resnet*), part of a name, or either behind a source (timm:*resnext*); with a dot it lists
    timm's weights one by one (resnet50.*). Without PATTERN every model is listed, its parameters uncounted.
    """
    from purity_cli.models import COUNTED, catalogue

    entries = catalogue(pattern)
    if layout == "table":
        _show(entries)
    else:
        click.echo({"json": _json, "csv": _csv}[layout](entries), nl=False)
    if layout == "table" and (pattern is None or len(entries) > COUNTED):
        click.echo(f"{len(entries)} models; parameters are counted where PATTERN leaves at most {COUNTED}.", err=True)


def _show(entries: Sequence[ModelEntry]) -> None:
    import pandas as pd

    rows = [
        (
            entry.name,
            entry.source,
            "" if entry.parameters is None else f"{entry.parameters:,}",
            _size(entry),
            ", ".join(entry.weights) or ("no" if entry.classifies else "no classifier"),
        )
        for entry in entries
    ]
    text = pd.DataFrame(rows, columns=["name", "source", "parameters", "input", "weights here"])
    console.show(console.table(text, left=("name", "source", "weights here")))


def _size(entry: ModelEntry) -> str:
    return "x".join(map(str, entry.input_size)) if entry.input_size else ""


def _json(entries: Sequence[ModelEntry]) -> str:
    return (
        json.dumps(
            [
                {
                    "name": entry.name,
                    "source": entry.source,
                    "parameters": entry.parameters,
                    "input_size": entry.input_size,
                    "weights_here": entry.weights,
                    "classifies": entry.classifies,
                }
                for entry in entries
            ],
            indent=2,
        )
        + "\n"
    )


def _csv(entries: Sequence[ModelEntry]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "source", "parameters", "input_size", "weights_here", "classifies"])
    for entry in entries:
        weights = ";".join(entry.weights)
        writer.writerow([entry.name, entry.source, entry.parameters, _size(entry), weights, entry.classifies])
    return text.getvalue()
