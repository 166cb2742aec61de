"""`purity score`: the purity of every chosen layer of one or more models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import console, options, progress, show

if TYPE_CHECKING:
    from purity_cli.results import Result


@click.command("score")
@options.job_options
@options.threshold_option("A channel fires where its mean-to-peak ratio exceeds this; every threshold is stored.")
@options.metrics_option
@options.cache_option("none")
@options.output_option(
    "Folder of the results; with several models, of a folder for each.  [default: results/MODEL_DATASET]"
)
@options.format_option("What is printed; the files are always written.")
def command(
    models: tuple[str, ...],
    settings: dict[str, Any],
    download: bool,
    workers: int,
    threshold: float,
    metrics: tuple[str, ...],
    cache: Path | None,
    output: Path | None,
    layout: str,
) -> None:  # fmt: skip
    """Score the feature purity of a model's layers.

    Without options this scores the bundled resnet13_cifar on 1,000 bundled test images of CIFAR-10, offline.
    """
    results = score_all(models, settings, (threshold,), threshold, download, workers, output, metrics, cache)
    show_results(results, threshold, layout)


def score_all(
    models: tuple[str, ...],
    settings: dict[str, Any],
    thresholds: tuple[float, ...],
    threshold: float,
    download: bool,
    workers: int,
    output: Path | None,
    peers: tuple[str, ...] = (),
    cache: Path | None = None,
) -> list[Result]:
    """Score every model at the default grid and `thresholds`, and write the results, `purity.md` at `threshold`.

    `cache` is the folder in which decoded pixels are kept, None for none. Of several processes under torchrun only the
    first returns.
    """
    from purity_cli import run, store
    from purity_cli.plan import DEFAULT_GRID
    from purity_cli.run import parts, ranks

    jobs = options.make_jobs(models, settings, tuple(sorted({*DEFAULT_GRID, *thresholds})))
    results = []
    with ranks.joined() as crew:
        for job in jobs:
            plan = run.resolve_together(job, crew, download=download, warn=progress.warn)
            name = f"{plan.network.name}_{plan.source.name}"
            folder = Path("results", name) if output is None else output / name if len(jobs) > 1 else output
            before = store.occupant(folder) if crew.first else None
            if before and before.key() != job.key():
                progress.warn(f"{folder} holds the results of another job, which these replace: --output keeps both.")
            heard = (progress.warn, progress.note) if crew.first else (run.silent, run.silent)
            pixels = run.pixels_of(plan, workers=workers, cache=cache, warn=heard[0], say=heard[1])
            with progress.images(plan.network.name, crew.first) as advance:
                try:
                    result = run.score_into(
                        folder, plan, crew, threshold=threshold, command=click.get_current_context().find_root().obj,
                        warn=progress.warn, workers=workers, pixels=pixels, peers=peers, progress=advance,
                    )  # fmt: skip
                except KeyboardInterrupt:
                    if crew.first and any(folder.glob(parts.ALL)):
                        click.echo("The same command goes on where this stopped.", err=True)
                    raise
            results.append(result)
            if crew.first:
                click.echo(f"Wrote {folder}", err=True)
    if not crew.first:
        raise click.exceptions.Exit(0)
    return results


def show_results(results: list[Result], threshold: float, layout: str) -> None:
    """Print the tables at one threshold, and warn where too little fired."""
    from purity_cli import tables

    rows = tables.at(tables.frame(results), threshold)
    if layout == "table":
        details = tables.details(rows)
        console.show(console.table(details, ("model", "stage", "layer"), show.bars(rows["purity"])))
        for result in results:
            click.echo(tables.summary(result, threshold))
    else:
        write = {"csv": tables.to_csv, "json": tables.to_json}
        text = tables.to_markdown(results, threshold) if layout == "md" else write[layout](rows)
        click.echo(text, nl=False)
    low = tables.starved(rows)
    silent = low["activations"] == 0
    if silent.any():
        names = ", ".join(tables.labels(low[silent]))
        progress.warn(f"Nothing fired in {names} at the threshold {threshold:g}, so that F is NaN: try a lower one.")
    if not silent.all():
        names = ", ".join(tables.labels(low[~silent]))
        progress.warn(f"F is biased low in {names}, where N < {tables.ENOUGH} c: score more images.")
