"""`purity channels`: which channels of a layer fire, which never do, and what their loss would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options, progress, stored
from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.report import Report
    from purity_cli.results import Result
    from purity_cli.run.resolving import Resolved

ROWS, COLUMNS = 16, 12
STRONGEST = 8
"""Channels that are drawn where none are named."""


@click.command("channels")
@click.argument("folders", nargs=-1, metavar="[RESULT]...", type=click.Path(path_type=Path))
@click.option("--layer", "-l", "layers", multiple=True, metavar="SPEC", help="Only this layer; again for more.")
@click.option("--channel", "-k", "named", multiple=True, type=click.IntRange(0), help="Draw, or set to zero, this one.")
@click.option("--dead", is_flag=True, help="List only the channels that never fire at the threshold.")
@click.option(
    "--images", type=click.IntRange(1, COLUMNS), metavar="K",
    help="Draw the K images on which the strongest channels of the layer, or the named ones, fire most.",
)  # fmt: skip
@click.option("--ablate", is_flag=True, help="Set dead channels, or the named ones, to zero and say what changes.")
@options.threshold_option()
@options.rate_option
@options.workers_option
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), default=Path("channels.png"), show_default=True,
    metavar="FILE", help="Where --images draws: .png, .svg or .pdf; without an ending PNG and SVG.",
)  # fmt: skip
@options.format_option("csv has a row per channel.")
def command(
    folders: tuple[Path, ...],
    layers: tuple[str, ...],
    named: tuple[int, ...],
    dead: bool,
    images: int | None,
    ablate: bool,
    threshold: float,
    rate: float,
    workers: int,
    output: Path,
    layout: str,
) -> None:
    """List the channels of stored results: how often each fires, which are dead, how few make half of all firings.

    RESULT is a folder that `purity score` has written; without any, what `purity score` without options has written.
    --images and --ablate run the network of one result over its images once more.
    """
    from purity_cli.views import channels as view
    from purity_cli.views.sweep import only

    results = only(stored.read(stored.or_default(folders)), layers or ("*",))
    if images or ablate:
        if len(results) != 1:
            raise click.UsageError(f"--images and --ablate are of one result, not of {len(results)}.")
        if named and len(results[0].layers) != 1:
            raise click.UsageError("--channel names channels of one layer: give --layer.")
    if images:
        _draw(results[0], layers, named, images, threshold, workers, output)
    if ablate:
        console.show(_ablate(results[0], named, threshold, workers), layout)
    elif not images:
        console.show(view.channels(results, threshold, rate, dead=dead), layout)


def _again(result: Result) -> Resolved:
    """The network and the images of a result, tapped at its layers."""
    from purity_cli import run

    modules = tuple(dict.fromkeys(layer.module for layer in result.layers))
    return run.resolve(result.job.model_copy(update={"layers": modules}))


def _checked(named: Sequence[int], channels: int) -> list[int]:
    from purity_cli.errors import PurityError

    for channel in named:
        if channel >= channels:
            raise PurityError(f"There is no channel {channel}: the layer has {channels}, from 0 to {channels - 1}.")
    return list(dict.fromkeys(named))


def _draw(
    result: Result, layers: Sequence[str], named: Sequence[int], k: int, threshold: float, workers: int, output: Path
) -> None:
    from purity_cli.cam import channels, panels
    from purity_cli.errors import PurityError
    from purity_cli.figures import drawing
    from purity_cli.views import cells
    from purity_cli.views.channels import of_layer

    drawing.targets(output)
    layer = result.layers[0] if len(result.layers) == 1 else cells.deepest(result)
    rows = {row["channel"]: row["firings"] for row in of_layer(result, layer, threshold)}
    chosen = _checked(named, layer.channels) or [channel for channel in rows if rows[channel]][:STRONGEST]
    if not chosen or len(chosen) > ROWS:
        raise PurityError(f"{layer.name} has {len(chosen)} channels to draw, and a panel has room for 1 to {ROWS}.")
    plan = _again(replace(result, layers=(layer,)))
    with progress.images(plan.network.name) as show:
        found = channels.strongest(plan, {channel: rows[channel] for channel in chosen}, k, threshold, workers, show)
    found = {channel: images for channel, images in found.items() if images}
    if not found:
        raise PurityError(
            f"The chosen channels of {layer.name} fire on no image at the threshold {threshold:g}: lower --threshold."
        )
    shown = channels.panel(plan, found, layer.name)
    caption = f"{shown.what}; {result.n_images:,} images of {result.dataset}"
    for path in drawing.save(panels.panel(shown.headings, shown.rows, caption, "jet", 0.5), output):
        log.info(f"Wrote {path}")


def _ablate(result: Result, named: Sequence[int], threshold: float, workers: int) -> Report:
    from purity_cli.cam import channels
    from purity_cli.errors import PurityError
    from purity_cli.views.channels import ablation, of_layer

    plan = _again(result)
    lost = {
        layer.module: _checked(named, layer.channels)
        or sorted(row["channel"] for row in of_layer(result, layer, threshold) if row["dead"])
        for layer in result.layers
    }
    if not any(lost.values()):
        raise PurityError(f"No channel is dead at the threshold {threshold:g}: name channels with --channel.")
    with progress.images(plan.network.name) as show:
        rows, images = channels.ablate(plan, lost, result.top1, workers, show)
    return ablation(rows, images, threshold)
