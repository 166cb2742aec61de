"""`purity models`: what can be scored, and whether its weights are on this machine."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, progress

if TYPE_CHECKING:
    from purity_cli.models import ModelEntry


class Listing(click.Command):
    """Its help ends with where models come from, which only the models themselves know."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from purity_cli.models import SOURCES

        with formatter.section("Sources"):
            formatter.write_dl([(f"{name}:", source.about) for name, source in SOURCES.items()])


@click.command("models", cls=Listing)
@click.argument("pattern", required=False)
@click.option("--here", is_flag=True, help="Only models whose weights are on this machine.")
@click.option("--all", "everything", is_flag=True, help="Also models that have no stages or no classifier.")
@click.option("--format", "layout", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def command(pattern: str | None, here: bool, everything: bool, layout: str) -> None:
    """List the models that can be scored.

    PATTERN is a glob (resnet*), part of a name, or either behind a source (timm:*resnext*); with a dot it lists
    timm's weights one by one (resnet50.*). Without PATTERN every model is listed, its parameters uncounted.
    """
    from purity_cli.models import COUNTED, catalogue

    found = catalogue(pattern, here=here)
    entries = [entry for entry in found if everything or entry.scorable]
    if layout == "table":
        _show(entries)
    else:
        click.echo({"json": _json, "csv": _csv}[layout](entries), nl=False)
    if here and not found:
        progress.note("No weights of these models are on this machine.")
    if len(entries) < len(found):
        without = found[0].name if len(found) == 1 else f"{len(found) - len(entries)} models"
        progress.note(f"Left out: {without}, without stages or classifier; --all lists them as well.")
    if layout == "table" and any(entry.stages is None and entry.classifies for entry in entries):
        click.echo(
            f"{len(entries)} models; parameters and stages are shown where PATTERN leaves at most {COUNTED}.", err=True
        )


def _show(entries: Sequence[ModelEntry]) -> None:
    import pandas as pd

    rows = [
        (
            entry.name,
            entry.source,
            "" if entry.parameters is None else f"{entry.parameters:,}",
            _size(entry),
            _stages(entry),
            ", ".join(entry.weights) or ("no" if entry.classifies else "no classifier"),
        )
        for entry in entries
    ]
    text = pd.DataFrame(rows, columns=["name", "source", "parameters", "input", "stages", "weights here"])
    console.show(console.table(text, left=("name", "source", "stages", "weights here")))


def _stages(entry: ModelEntry) -> str:
    if entry.stages is None:
        return ""
    return "..".join(dict.fromkeys([*entry.stages[:1], *entry.stages[-1:]])) or "none"


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
                    "stages": entry.stages,
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
    writer.writerow(["name", "source", "parameters", "input_size", "stages", "weights_here", "classifies"])
    for entry in entries:
        weights = ";".join(entry.weights)
        row = [entry.name, entry.source, entry.parameters, _size(entry), _stages(entry), weights, entry.classifies]
        writer.writerow(row)
    return text.getvalue()
