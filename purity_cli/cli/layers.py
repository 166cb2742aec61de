"""`purity layers`: what a network offers to --layers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from purity_cli.stages import LayerInfo


@click.command("layers")
@click.argument("model")
@click.option("--weights", default="none", show_default=True, help="As for score; shapes do not depend on them.")
@click.option("--all", "everything", is_flag=True, help="Also modules that cannot be scored, and why.")
@click.option("--format", "layout", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def command(model: str, weights: str, everything: bool, layout: str) -> None:
    """List the modules of MODEL that --layers can name.

    Shows each module's path, type, output (channels x height x width), how often it runs per image, and whether it is
    one of the stages C1, C2, ... Only a module that runs once and gives one feature map can be scored.
    """
    from purity_cli import models, stages

    network = models.load(model, weights)
    found = stages.layers(network.module, network.source, network.name, network.input_size)
    shown = [layer for layer in found if everything or layer.shape]
    click.echo({"table": _table, "csv": _csv, "json": _json}[layout](shown), nl=False)
    if not any(layer.stage for layer in found):
        click.echo(f"{network.name} has no stages C1..Ck: give --layers with paths from this list.", err=True)
    if not shown:
        click.echo(f"No module of {network.name} can be scored; --all shows why.", err=True)


def _table(layers: Sequence[LayerInfo]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("layer", "type", "c x h x w", "calls", "stage"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("c x h x w", "calls") else "left")
    for layer in layers:
        shape = " x ".join(map(str, layer.shape)) if layer.shape else layer.problem
        table.add_row(layer.module, layer.kind, shape, str(layer.calls), layer.stage or "")
    # Module paths are there to be copied: a narrow terminal may wrap lines, but nothing may cut them.
    console = Console(file=io.StringIO(), width=1000)
    console.print(table, markup=False, highlight=False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"


def _csv(layers: Sequence[LayerInfo]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "type", "channels", "height", "width", "calls", "stage", "problem"])
    for layer in layers:
        writer.writerow(
            [layer.module, layer.kind, *(layer.shape or ("", "", "")), layer.calls, layer.stage, layer.problem]
        )
    return text.getvalue()


def _json(layers: Sequence[LayerInfo]) -> str:
    return json.dumps([asdict(layer) for layer in layers], indent=2) + "\n"
