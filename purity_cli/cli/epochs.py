"""`purity epochs`: purity and accuracy over the checkpoints of a training."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from purity_cli.cli import console, options, progress

if TYPE_CHECKING:
    from purity_cli.epochs import Checkpoint, Measured
    from purity_cli.report import Report
    from purity_cli.results import Result

RECORDED = ("test_top1", "test_fingerprint", "test_images")
"""What a training says of its accuracy, in the JSON beside a checkpoint and in the recipe there."""


@click.command("epochs")
@click.argument("given", nargs=-1, required=True, metavar="CHECKPOINT...")
@functools.partial(options.job_options, weights=False)
@options.threshold_option("A channel fires where its mean-to-peak ratio exceeds this; every threshold is stored.")
@options.metrics_option
@click.option(
    "--patience", type=click.IntRange(1), default=3, show_default=True, metavar="N",
    help="Early stopping ends after N checkpoints in a row without a higher value.",
)  # fmt: skip
@options.output_option(
    "Folder of epochs.csv, .md, .png, .svg and a result per epoch.  [default: results/MODEL_DATASET_epochs]"
)
@options.format_option("What is printed; the files are always written.")
def command(
    given: tuple[str, ...],
    models: tuple[str, ...],
    settings: dict[str, Any],
    download: bool,
    workers: int,
    threshold: float,
    metrics: tuple[str, ...],
    patience: int,
    output: Path | None,
    layout: str,
) -> None:
    """Score the purity of a network's layers at each checkpoint of its training.

    CHECKPOINT is a weight file, or a pattern in quotes. Epochs, and --model and --dataset where they are not given,
    come from the JSON beside each file that `purity train` writes; else epochs come from the files' names. Purity
    without labels chooses a checkpoint, and the regret says how many points of accuracy that costs.
    """
    from purity_cli import epochs
    from purity_cli.plan import DEFAULT_GRID
    from purity_cli.views import epochs as view

    checkpoints = epochs.number(epochs.find(given), progress.warn)
    model = _defaults(checkpoints, models, settings)
    (job,) = options.make_jobs([model], settings, tuple(sorted({*DEFAULT_GRID, threshold})))
    with progress.images(model) as show:
        measured = epochs.score(
            checkpoints,
            job,
            workers=workers,
            download=download,
            peers=metrics,
            progress=show,
            warn=progress.warn,
        )
    results = [_recorded(one) for one in measured]
    report = view.epochs(results, threshold, patience=patience)
    _write(results, report, threshold, output)
    console.show(report, layout)


def _recorded(one: Measured) -> Result:
    """The result, with what its training wrote beside the checkpoint."""
    about, provenance = one.checkpoint.about, one.result.provenance
    provenance |= {"epoch": one.checkpoint.epoch, "checkpoint": one.checkpoint.path.name}
    recipe = {name: value for name, value in about.get("recipe", {}).items() if name in RECORDED}
    recorded = {name: about[name] for name in RECORDED if name in about} | recipe
    if recorded:
        provenance["recorded"] = recorded
    return one.result


def _defaults(checkpoints: list[Checkpoint], models: tuple[str, ...], settings: dict[str, Any]) -> str:
    """The network, and in `settings` the images: as given, else as the training recorded them."""
    from purity_cli.datasets import FAMILIES

    source = click.get_current_context().get_parameter_source
    recipe: dict[str, Any] = next((one.about["recipe"] for one in checkpoints if "recipe" in one.about), {})
    if len(models) > 1:
        raise click.UsageError("Checkpoints are of one network: give one --model.")
    if source("dataset") == ParameterSource.DEFAULT and recipe:
        if recipe["dataset"] not in FAMILIES:
            raise click.UsageError(f"The training was on {recipe['dataset']}: give its path with --dataset.")
        settings["dataset"] = recipe["dataset"]
    recorded = recipe.get("model", models[0])
    if source("models") == ParameterSource.DEFAULT and recorded.startswith("file:"):
        raise click.UsageError(f"The training was of {recorded.removeprefix('file:')}: give --model FILE.py:FUNCTION.")
    return recorded if source("models") == ParameterSource.DEFAULT else models[0]


def _write(results: list[Result], report: Report, threshold: float, output: Path | None) -> None:
    from purity_cli import store
    from purity_cli.figures import curves, drawing
    from purity_cli.report import FORMATS

    folder = output or Path("results", f"{results[0].model}_{results[0].dataset}_epochs")
    store.prepare(folder)
    said = click.get_current_context().find_root().obj
    for result in results:
        result.provenance["command"] = said
        store.write(result, folder / f"epoch{result.provenance['epoch']:03}", threshold)
    store.write_text(folder / "epochs.csv", FORMATS["csv"](report))
    store.write_text(folder / "epochs.md", FORMATS["md"](report) + f"\n`{said}`\n")
    drawing.save(curves.training_curve(results, threshold, report), folder / "epochs")
    click.echo(f"Wrote {folder}", err=True)
