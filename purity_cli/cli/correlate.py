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
    help="Another column than accuracy, joined on the column model, and on weights if there is one.",
)
@click.option(
    "--baseline",
    type=click.Choice(["random"]),
    help="Also the purity of the same networks with random weights: scores the same images once more.",
)
@options.threshold_option()
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random orders and resamples.")
@options.workers_option
@options.format_option()
def command(
    folders: tuple[Path, ...],
    against: str | None,
    baseline: str | None,
    threshold: float,
    seed: int,
    workers: int,
    layout: str,
) -> None:
    """Correlate purity with accuracy over three or more results.

    RESULT is a folder that `purity score` has written, or one that holds such folders. Each stage, their average and
    the last one stand beside the baselines that explain as much without looking at weights: the number of parameters,
    the size of the last map, its channels. Pearson's r, Spearman's rho, Kendall's tau-b and the weighted tau come with
    the middle 95 % of resampled results and a two-sided p, of all orders up to seven results and of random ones beyond.
    """
    from purity_cli import correlate

    results = stored.read(folders, by_name=False)
    target = correlate.read_against(against, results) if against else None
    data = correlate.points(results, threshold, against=target)
    if baseline:
        twins = _random_twins(results, workers)
        data = correlate.points(results, threshold, against=target, twins=twins)
    found = correlate.study(data, seed=seed)
    if layout == "table":
        console.show(console.table(correlate.layout(found.table), left=("quantity", "kind")))
    else:
        write = {"csv": correlate.to_csv, "md": correlate.to_markdown, "json": correlate.to_json}
        click.echo(write[layout](data, found), nl=False)
    if layout in ("table", "csv"):
        for note in found.notes:
            click.echo(note, err=layout == "csv")


def _random_twins(results: Sequence[Result], workers: int) -> list[Result]:
    """The same images, layers and pixels by the same networks with random weights; each network once."""
    from purity_cli import run
    from purity_cli.errors import PurityError

    done: dict[str, Result] = {}
    twins = []
    for result in results:
        job = result.job.model_copy(update={"weights": "none"})
        if job.key() not in done:
            plan = run.resolve(job, warn=progress.warn)
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
                done[job.key()] = run.score(plan, workers=workers, progress=show, warn=progress.warn)
        twins.append(done[job.key()])
    return twins
