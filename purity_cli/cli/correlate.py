"""`purity correlate`: whether purity goes with accuracy, or with anything else, over stored results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options, progress, stored

if TYPE_CHECKING:
    from purity_cli.results import Result


@click.command("correlate")
@click.argument("folders", nargs=-1, required=True, metavar="RESULT...", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="FILE.csv:COLUMN",
    help="Another column than accuracy, of timm's table of results or of one of yours: joined on the column model, on "
    "weights or the tag behind a dot, and on img_size; results without a row are left, and named.",
)
@click.option(
    "--any-size", is_flag=True, help="With --against, also take a row of another image size than the result's."
)  # fmt: skip
@click.option(
    "--baseline", type=click.Choice(["random"]),
    help="Also the purity of the same networks with random weights: scores the same images once more.",
)  # fmt: skip
@click.option("--every-layer", is_flag=True, help="Also the other measures of every layer, not of the deepest alone.")
@options.threshold_option()
@options.rate_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random orders and resamples.")
@options.workers_option
@options.format_option()
def command(
    folders: tuple[Path, ...],
    against: str | None,
    any_size: bool,
    baseline: str | None,
    every_layer: bool,
    threshold: float,
    rate: float,
    seed: int,
    workers: int,
    layout: str,
) -> None:
    """Correlate purity with accuracy over three or more results.

    RESULT is a folder that `purity score` has written, or one that holds such folders. Each stage, their average and
    the last one stand beside the baselines that explain as much without looking at weights: the number of parameters,
    the size of the last map, its channels. Pearson's r, Spearman's rho and Kendall's tau-b come with the middle 95 % of
    resampled results and a two-sided p, of all orders up to seven results and of random ones beyond.
    """
    from purity_cli.views import correlation
    from purity_cli.views.against import read_against

    results = stored.read(folders)
    target = read_against(against, results, any_size=any_size) if against else None
    correlation.points(results, threshold, rate, against=target)  # says what is wrong before the networks are scored
    random_init = _random_init(target.of(results) if target else results, workers) if baseline else None
    data = correlation.points(
        results, threshold, rate, against=target, random_init=random_init, every_layer=every_layer
    )
    console.show(correlation.correlation(data, seed=seed), layout)


def _random_init(results: Sequence[Result], workers: int) -> list[Result]:
    """The same images, layers and pixels by the same networks with random weights; each network once."""
    from purity_cli import run
    from purity_cli.errors import PurityError

    done: dict[str, Result] = {}
    found = []
    for result in results:
        job = result.job.model_copy(update={"weights": "none"})
        if job.key() not in done:
            plan = run.resolve(job)
            if plan.network.weights != "none":
                raise PurityError(
                    f"{result.model} comes {plan.network.weights}, not with random weights: leave out --baseline."
                )
            if plan.source.fingerprint != result.provenance.get("dataset_fingerprint"):
                raise PurityError(
                    f"The images of {result.dataset} are no longer those that {result.model} was scored on: score it "
                    "again, or leave out --baseline."
                )
            with progress.images(f"{plan.network.name}, random") as show:
                done[job.key()] = run.score(plan, workers=workers, progress=show)
        found.append(done[job.key()])
    return found
