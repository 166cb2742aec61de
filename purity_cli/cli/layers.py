"""`purity layers`: what a network offers to --layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options
from purity_cli.errors import PurityError

if TYPE_CHECKING:
    from purity_cli.report import Report
    from purity_cli.stages import LayerInfo


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    from purity_cli.plan import parse_size

    try:
        size = parse_size(value)
    except PurityError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    if size == "none":
        raise click.BadParameter("'none' is no size: write 224, or 240x320 (height x width).", ctx, param)
    return (size, size) if isinstance(size, int) else size


@click.command("layers")
@click.argument("model")
@click.option("--weights", default="none", show_default=True, help="As for score; shapes do not depend on them.")
@click.option("--size", callback=_size, metavar="N|HxW", help="Of the image.  [default: the network's own]")
@click.option("--all", "everything", is_flag=True, help="Also modules that cannot be scored, and why.")
@options.format_option()
def command(model: str, weights: str, size: tuple[int, int] | None, everything: bool, layout: str) -> None:
    """List the modules of MODEL that --layers can name.

    Shows each module's path, type, feature map (channels x height x width) for an image of the network's own size or of
    --size, how often it runs per image, and what else it is called. Only a module that runs once and gives one feature
    map can be scored. Where the output is not (n, c, h, w), its layout stands beside the map: channels last, or tokens
    as in 1 + 14x14, a class token and a grid of patches. Below the table stands why each stage is one.

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
    network = models.validate(network, size, scored=False)
    found = stages.layers(network.module, network.source, network.name, size)
    shown = [layer for layer in found if everything or layer.shape]
    notes = [f"{layer.stage} = {layer.module}, {layer.reason}." for layer in found if layer.stage]
    if not notes:
        notes.append(f"{network.name} has no stages: none of its modules runs once and gives one map of the image.")
    if not shown:
        notes.append(f"No module of {network.name} can be scored; --all shows why.")
    console.show(_report(shown, size, notes), layout)


def _report(layers: Sequence[LayerInfo], size: tuple[int, int], notes: list[str]) -> Report:
    from purity_cli.report import Report, Table, number, text

    columns = [
        text("layer", fold=True), text("type"), text("map", f"c x h x w of {size[0]}x{size[1]}", data=False),
        *(number(key, digits=None, shown=False) for key in ("channels", "height", "width")),
        number("calls", "calls", digits=None), text("stage", shown=False), text("readings", fold=True),
        text("layout", shown=False), text("reason", shown=False), text("problem", shown=False),
    ]  # fmt: skip
    rows = [
        {
            "layer": layer.module,
            "type": layer.kind,
            "map": _map(layer),
            **dict(zip(("channels", "height", "width"), layer.shape or (), strict=False)),
            "calls": layer.calls,
            "stage": layer.stage,
            "readings": layer.readings,
            "layout": str(layer.layout) if layer.layout else None,
            "reason": layer.reason,
            "problem": layer.problem,
        }
        for layer in layers
    ]
    return Report([Table("layers", columns, rows)], notes)


def _map(layer: LayerInfo) -> str | None:
    """The size of a layer's map, with its layout where that is not the usual one; else why it has none."""
    if not layer.shape or not layer.layout:
        return layer.problem
    size = " x ".join(map(str, layer.shape))
    return size if layer.layout.kind == "first" else f"{size}, {layer.layout}"
