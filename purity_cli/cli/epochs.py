"""`purity epochs`: purity and accuracy over the checkpoints of a training."""

from __future__ import annotations

import functools
import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from purity_cli.cli import console, options, progress
from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.epochs import CheckpointFile
    from purity_cli.report import Report
    from purity_cli.views.epochs import Published


@click.command("epochs", cls=options.JobCommand)
@click.argument("given", nargs=-1, metavar="[CHECKPOINT]...")
@functools.partial(options.job_options, without=("weights",))
@options.threshold_option("A channel fires where its mean-to-peak ratio exceeds this; every threshold is stored.")
@options.fresh_option
@options.cache_option("auto")
@options.log_option
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
    fresh: bool,
    cache: Path | None,
    trackers: tuple[str, ...],
    patience: int,
    output: Path | None,
    layout: str,
) -> None:
    """Score the purity of a network's layers at each checkpoint of its training.

    CHECKPOINT is a weight file, or a pattern in quotes; without any, those that `purity train` without options has
    written here, else those that ship with this package. Epochs,
    and --model and --dataset where they are not given, come from the JSON beside each file that `purity train` writes;
    else epochs come from the files' names. Purity without labels chooses a checkpoint, and the regret says how many
    points of accuracy that costs.
    """
    from purity_cli import epochs, loggers, paper
    from purity_cli.plan import STORED_GRID
    from purity_cli.store import slug
    from purity_cli.views import epochs as view

    for target in trackers:
        loggers.check(target)  # says now what is missing
    checkpoints = epochs.number(epochs.find(given or _trained()))
    model = _defaults(checkpoints, models, settings)
    (job,) = options.make_jobs([model], settings, tuple(sorted({*STORED_GRID, threshold})))
    folder = output or Path("results", f"{slug(job)}_epochs")
    with progress.images(model) as show:
        results = epochs.score(
            checkpoints,
            job,
            folder,
            threshold=threshold,
            workers=workers,
            download=download,
            fresh=fresh,
            cache=cache,
            progress=show,
            command=click.get_current_context().find_root().obj,
        )
    published = paper.published(results)
    report = view.epochs(results, threshold, patience=patience, published=published)
    _write(report, published, folder)
    if trackers:
        steps = {one.epoch: folder / f"epoch{one.epoch:03}" for one in checkpoints}
        loggers.log_results(trackers, folder.name, steps, threshold)
    console.show(report, layout)


def _trained() -> tuple[str, ...]:
    """The checkpoints of `purity train` without options: the user's own, or those of the same that ship."""
    from importlib import resources

    from purity_cli.train.settings import Training

    training = Training()
    name = f"{training.model}_{training.dataset}"
    own, ours = Path("checkpoints", name), Path(str(resources.files("purity_cli") / "assets" / name))
    return (f"{own if any(own.glob('*.safetensors')) else glob.escape(str(ours))}/*.safetensors",)


def _defaults(checkpoints: list[CheckpointFile], models: tuple[str, ...], settings: dict[str, Any]) -> str:
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


def _write(report: Report, published: Published | None, folder: Path) -> None:
    from purity_cli import store
    from purity_cli.figures import charts, drawing
    from purity_cli.report import FORMATS

    said = click.get_current_context().find_root().obj
    store.write_text(folder / "epochs.csv", FORMATS["csv"](report))
    store.write_text(folder / "epochs.md", FORMATS["md"](report) + f"\n`{said}`\n")
    drawing.save(charts.training_curve(report, published.values if published else None), folder / "epochs")
    log.info(f"Wrote {folder}")
