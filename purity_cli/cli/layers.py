"""`purity layers`: what a network offers to --layers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console

if TYPE_CHECKING:
    from purity_cli.stages import LayerInfo


@click.command("layers")
@click.argument("model")
@click.option("--weights", default="none", show_default=True, help="As for score; shapes do not depend on them.")
@click.option("--all", "everything", is_flag=True, help="Also modules that cannot be scored, and why.")
@click.option("--format", "layout", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def command(model: str, weights: str, everything: bool, layout: str) -> None:
    """List the modules of MODEL that --layers can name.

    Shows each module's path, type, output (channels x height x width) for a picture of the network's own size, how
    often it runs per image, and whether it is one of the stages C1, C2, ... Only a module that runs once and gives one
    feature map can be scored.
    """
    from purity_cli import models, stages

    network = models.load(model, weights)
    network = models.tried(network, network.input_size, scored=False)
    found = stages.layers(network.module, network.source, network.name, network.input_size)
    shown = [layer for layer in found if everything or layer.shape]
    if layout == "table":
        _show(shown, network.input_size)
    else:
        click.echo({"csv": _csv, "json": _json}[layout](shown), nl=False)
    try:
        stages.stages(network.module, network.source, network.name, {layer.module: layer for layer in found})
    except stages.NoStages as error:
        click.echo(str(error), err=True)
    if not shown:
        click.echo(f"No module of {network.name} can be scored; --all shows why.", err=True)


def _show(layers: Sequence[LayerInfo], size: tuple[int, int]) -> None:
    import pandas as pd

    rows = [
        (layer.module, layer.kind, " x ".join(map(str, layer.shape)) if layer.shape else layer.problem, layer.calls,
         layer.stage or "")
        for layer in layers
    ]  # fmt: skip
    maps = f"c x h x w of {size[0]}x{size[1]}"
    text = pd.DataFrame(rows, columns=["layer", "type", maps, "calls", "stage"])
    console.show(console.table(text, left=("layer", "type", "stage")))


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
