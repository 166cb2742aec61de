"""`purity cam`: what layers look at, beside their purity."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import options, progress, stored
from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.cam import Chosen
    from purity_cli.datasets import ImageDataset
    from purity_cli.results import Result
    from purity_cli.run.resolving import Resolved

CLASSES = 8
"""Rows where nothing else is asked for."""
COLOURS = ("jet", "turbo", "viridis", "inferno", "cividis")
"""The paper's, its successor, and three that grow evenly lighter."""
ROWS, COLUMNS = 16, 12
"""The largest panel that a page still shows."""


@click.command("cam")
@options.job_options(without=("weights", "metrics"))
@click.option(
    "--weights", "-w", multiple=True, default=("default",), show_default=True, metavar="NAME|FILE|none",
    help="As for score; again for each --model, or for more weights of one.",
)  # fmt: skip
@click.option(
    "--images", "-i", multiple=True, metavar="FILE|N",
    help=f"Images to show; or one of each of the first N classes.  [default: {CLASSES}]",
)  # fmt: skip
@click.option(
    "--class", "-c", "classes", multiple=True, metavar="NAME", help="Show an image of this class; again for more."
)  # fmt: skip
@click.option(
    "--channels", type=click.IntRange(1, COLUMNS), metavar="N",
    help="Instead of Grad-CAM the N channels of one layer that fire most on each class, with their counts.",
)  # fmt: skip
@options.stored_option("Take purity from stored results instead of scoring the data set; again for more.")
@options.threshold_option()
@click.option(
    "--map", "colours", type=click.Choice(COLOURS), default="jet", show_default=True,
    help="Colours: jet as in the paper; viridis, inferno and cividis are even to the eye and in grey.",
)  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Opacity of the maps.")
@click.option("--dpi", type=click.IntRange(20, 1200), default=200, show_default=True, help="Of a PNG.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), default=Path("cam.png"), show_default=True,
    metavar="FILE", help=".png, .svg or .pdf; without an ending PNG and SVG.",
)  # fmt: skip
def command(
    models: tuple[str, ...],
    settings: dict[str, Any],
    weights: tuple[str, ...],
    download: bool,
    workers: int,
    images: tuple[str, ...],
    classes: tuple[str, ...],
    channels: int | None,
    folders: tuple[Path, ...],
    threshold: float,
    colours: str,
    alpha: float,
    dpi: int,
    output: Path,
) -> None:  # fmt: skip
    """Draw Grad-CAM maps of the predicted class over images as the network sees them, in a panel.

    Rows are images or classes. Columns are the layers of one model, or several models (--model again), or several
    checkpoints of one (--weights again), then at their last stage unless --layers says otherwise. Every column is
    headed by its purity: over the data set (--per-class and --limit make it smaller), or over the images shown where
    these are files and no --dataset is given. Every map is scaled between its least and greatest value.
    """
    from purity_cli.cam import panels
    from purity_cli.errors import PurityError
    from purity_cli.figures import drawing

    drawing.targets(output)
    pairs = _pairs(models, weights)
    if not options.is_given("layers") and (channels or len(pairs) > 1):
        settings["layers"] = ("last",)
    chosen, scored = _choose(images, classes, settings, download)
    if channels and chosen.classes is None:
        raise PurityError(
            "--channels counts over the images of a class: give --class, or a number with labelled images."
        )
    plans = _plans(pairs, settings, threshold, scored)
    heads = panels.Heads(
        stored=stored.read(folders),
        threshold=threshold,
        dataset=scored.name,
        models=len({model for model, _ in pairs}) > 1,
        weights=len(pairs) > len({model for model, _ in pairs}),
        score=partial(_score, workers=workers),
    )
    if channels:
        shown = panels.channels(next(plans), chosen, channels, heads)
    else:
        shown = panels.grad_cams(plans, chosen, heads)
    where = "" if folders else f" over the images of {scored.name}"
    scale = f"each map from its least to its greatest value ({colours})"
    caption = f"{shown.what}; {scale}; F at t = {threshold:g}{where}"
    figure = panels.panel(shown.headings, shown.rows, caption, colours, alpha)
    for path in drawing.save(figure, output, dpi):
        log.info(f"Wrote {path}")


def _pairs(models: Sequence[str], weights: Sequence[str]) -> list[tuple[str, str]]:
    """Each model with its weights."""
    if 1 in (len(models), len(weights)):
        pairs = [(model, weight) for model in models for weight in weights]
    elif len(models) == len(weights):
        pairs = list(zip(models, weights, strict=True))
    else:
        raise click.UsageError(
            f"{len(models)} --model and {len(weights)} --weights do not pair: give one of each pair."
        )
    _check(len(pairs), COLUMNS, "columns")
    return pairs


def _check(asked: int, most: int, what: str) -> None:
    from purity_cli.errors import PurityError

    if asked > most:
        raise PurityError(f"A panel has room for {most} {what}, not for {asked}: draw several panels.")


def _choose(
    images: Sequence[str], classes: Sequence[str], settings: dict[str, Any], download: bool
) -> tuple[Chosen, ImageDataset]:
    """The images to show, and those whose purity stands over them."""
    from purity_cli import cam
    from purity_cli.datasets import open_dataset

    numbers = [int(text) for text in images if text.isdecimal() and not Path(text).exists()]
    files = [text for text in images if not text.isdecimal() or Path(text).exists()]
    if bool(numbers) + bool(files) + bool(classes) > 1 or len(numbers) > 1:
        raise click.UsageError("Give files, or a number, to --images, or else --class.")
    if 0 in numbers:
        raise click.UsageError("--images 0 shows nothing: give a number from 1, or files.")
    _check(max(len(files), len(classes), *numbers, 0), ROWS, "rows")
    chosen = cam.of_files(files) if files else None
    if chosen and not options.is_given("dataset"):
        return chosen, chosen.source
    place = {name: settings.get(name) for name in ("data_dir", "split")}
    source = open_dataset(settings["dataset"], **place, download=download)
    if chosen is None and classes:
        chosen = cam.of_classes(source, [cam.find_class(source, name) for name in classes])
    return chosen or cam.first(source, *(numbers or [CLASSES])), source


def _plans(
    pairs: Sequence[tuple[str, str]], settings: dict[str, Any], threshold: float, source: ImageDataset
) -> Iterator[Resolved]:
    """One network after the other, since all of them may not fit into memory."""
    from purity_cli import run

    columns = 0
    for model, weights in pairs:
        (job,) = options.make_jobs([model], {**settings, "weights": weights}, (threshold,))
        log.addFilter(_not_of_accuracy)
        try:
            plan = run.resolve(job, source=source)
        finally:
            log.removeFilter(_not_of_accuracy)
        columns += len(plan.taps)
        _check(max(columns, len(plan.taps) * len(pairs)), COLUMNS, "columns")
        yield plan


def _not_of_accuracy(record: logging.LogRecord) -> bool:
    """A filter of messages: a panel shows no accuracy."""
    return not record.getMessage().startswith("No accuracy")


def _score(plan: Resolved, workers: int) -> Result:
    from purity_cli import run

    with progress.images(plan.network.name) as show:
        return run.score(plan, workers=workers, progress=show)
