"""`purity epochs`: purity and accuracy over the checkpoints of a training."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import console, options, progress
from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.epochs import CheckpointFile


@click.command("epochs")
@click.argument("given", nargs=-1, metavar="[CHECKPOINT]...")
@options.job_options(without=("weights",))
@options.threshold_option("A channel fires where its mean-to-peak ratio exceeds this; every threshold is stored.")
@options.rate_option
@options.fresh_option
@options.cache_option("auto")
@options.log_option
@click.option(
    "--patience", type=options.COUNT, default=3, show_default=True, metavar="N",
    help="Early stopping ends after N checkpoints in a row without a higher value."
)  # fmt: skip
@options.progress_option
@options.output_option(
    "Folder of epochs.csv, .md, .png, .svg and a result per epoch.  [default: results/MODEL_DATASET_epochs]"
)  # fmt: skip
@options.format_option("What is printed; the files are always written.")
def command(
    given: tuple[str, ...], models: tuple[str, ...], settings: dict[str, Any], threshold: float, rate: float,
    patience: int, trackers: tuple[str, ...], output: Path | None, layout: str, **how: Any,
) -> None:  # fmt: skip
    """Score the purity of a network's layers at each checkpoint of its training.

    CHECKPOINT is a weight file, or a pattern in quotes; without any, these are the checkpoints that `purity train`
    without options has written here, else those that ship with this package. Epochs come from the JSON beside each
    file that `purity train` writes, and so do --model and --dataset where they are not given; else epochs come from
    the files' names. Purity without labels chooses a checkpoint, and the regret says how many points of accuracy that
    costs.
    """
    from purity_cli import epochs, loggers, paper, store
    from purity_cli.figures import charts, drawing
    from purity_cli.plan import STORED_GRID
    from purity_cli.report import FORMATS
    from purity_cli.store import slug
    from purity_cli.views import epochs as view

    if len(models) > 1:
        raise click.UsageError("Checkpoints are of one network: give one --model.")
    for target in trackers:
        loggers.check(target)  # says now what is missing
    checkpoints = epochs.number(epochs.find(given or _trained()))
    model = _recorded(checkpoints, models[0], settings)
    (job,) = options.make_jobs([model], settings, tuple(sorted({*STORED_GRID, threshold})))
    folder = output or Path("results", f"{slug(job)}_epochs")
    command_line = click.get_current_context().find_root().obj
    with progress.bars() as bars:
        watch = progress.SuiteProgress(bars)
        results = epochs.score(checkpoints, job, folder, threshold=threshold, watch=watch, command=command_line, **how)
    steps = {one.epoch: folder / f"epoch{one.epoch:03}" for one in checkpoints}
    loggers.log_results(trackers, folder.name, steps, threshold)
    published = paper.published(results)
    report = view.epochs(results, threshold, rate, patience=patience, published=published)
    store.write_text(folder / "epochs.csv", FORMATS["csv"](report))
    store.write_text(folder / "epochs.md", FORMATS["md"](report) + f"\n`{command_line}`\n")
    drawing.save(charts.training_curve(report, published.values if published else None), folder / "epochs")
    log.info(f"Wrote {folder}")
    console.show(report, layout)


def _trained() -> tuple[str, ...]:
    """The checkpoints of `purity train` without options: the user's own, or those of the same that ship."""
    from importlib import resources

    from purity_cli.train.settings import Training

    training = Training()
    name = f"{training.model}_{training.dataset}"
    own, ours = Path("checkpoints", name), Path(str(resources.files("purity_cli") / "assets" / name))
    return (f"{own if any(own.glob('*.safetensors')) else glob.escape(str(ours))}/*.safetensors",)


def _recorded(checkpoints: Sequence[CheckpointFile], model: str, settings: dict[str, Any]) -> str:
    """The network, and in `settings` the images: as given, else as the training recorded them."""
    from purity_cli.datasets import KINDS

    recipe: dict[str, Any] = next((one.about["recipe"] for one in checkpoints if "recipe" in one.about), {})
    if recipe and not options.is_given("dataset"):
        if recipe["dataset"] not in KINDS:
            raise click.UsageError(f"The training was on {recipe['dataset']}: give its path with --dataset.")
        settings["dataset"] = recipe["dataset"]
    recorded: str = recipe.get("model", model)
    if options.is_given("models"):
        return model
    if recorded.startswith("file:"):
        raise click.UsageError(f"The training was of {recorded.removeprefix('file:')}: give --model FILE.py:FUNCTION.")
    return recorded
