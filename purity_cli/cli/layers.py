"""`purity layers`: what a network offers to --layers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options, progress

if TYPE_CHECKING:
    from purity_cli.stages import LayerInfo


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    size = options.Setting("resize").convert(value, param, ctx)
    if size == "none":
        raise click.BadParameter("'none' is no size: write 224, or 240x320 (height x width).", ctx, param)
    return (size, size) if isinstance(size, int) else size


@click.command("layers")
@click.argument("model")
@click.option("--weights", default="none", show_default=True, help="As for score; shapes do not depend on them.")
@click.option("--size", callback=_size, metavar="N|HxW", help="Of the image.  [default: the network's own]")
@click.option("--all", "everything", is_flag=True, help="Also modules that cannot be scored, and why.")
@click.option("--format", "layout", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def command(model: str, weights: str, size: tuple[int, int] | None, everything: bool, layout: str) -> None:
    """List the modules of MODEL that --layers can name.

    Shows each module's path, type, output (channels x height x width) for an image of the network's own size or of
    --size, how often it runs per image, and what else it is called. Only a module that runs once and gives one feature
    map can be scored.

    \b
    C1, C2, ...  stages: the layers before each down-sampling, after the activation
    conv:C3      the last convolution that runs before or at C3, on maps of its size
    block:C3     the container of layers whose output C3 is
    pool:C3      the pooling that follows C3

    --layers also takes `last` for the deepest stage, ranges (conv:C2..last), and all:C1..last for every reading that
    each stage has.
    """
    from purity_cli import models, stages

    network = models.load(model, weights, headless=True)
    size = size or network.input_size
    network = models.tried(network, size, scored=False)
    found = stages.layers(network.module, network.source, network.name, size)
    shown = [layer for layer in found if everything or layer.shape]
    if layout == "table":
        _show(shown, size)
    else:
        click.echo({"csv": _csv, "json": _json}[layout](shown), nl=False)
    try:
        stages.stages(network.module, network.source, network.name, {layer.module: layer for layer in found})
    except stages.NoStages as error:
        progress.note(str(error))
    if not shown:
        progress.note(f"No module of {network.name} can be scored; --all shows why.")


def _show(layers: Sequence[LayerInfo], size: tuple[int, int]) -> None:
    import pandas as pd

    rows = [
        (layer.module, layer.kind, " x ".join(map(str, layer.shape)) if layer.shape else layer.problem, layer.calls,
         ", ".join(layer.readings))
        for layer in layers
    ]  # fmt: skip
    maps = f"c x h x w of {size[0]}x{size[1]}"
    text = pd.DataFrame(rows, columns=["layer", "type", maps, "calls", "readings"])
    console.show(console.table(text, left=("layer", "type", "readings")))


def _csv(layers: Sequence[LayerInfo]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "type", "channels", "height", "width", "calls", "stage", "readings", "problem"])
    for layer in layers:
        place = (layer.module, layer.kind, *(layer.shape or ("", "", "")), layer.calls)
        writer.writerow([*place, layer.stage, ",".join(layer.readings), layer.problem])
    return text.getvalue()


def _json(layers: Sequence[LayerInfo]) -> str:
    rows = [{**asdict(layer), "stage": layer.stage} for layer in layers]
    return json.dumps([{name: row[name] for name in row if name != "ran"} for row in rows], indent=2) + "\n"
