"""`purity score`: the purity of every chosen layer of one or more models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import console, options, progress
from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.results import Result


KEPT = ": it holds this very result; --fresh scores it again."


@click.command("score", cls=options.JobCommand)
@options.job_options
@options.threshold_option("A channel fires where its mean-to-peak ratio exceeds this; every threshold is stored.")
@options.fresh_option
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
    fresh: bool,
    cache: Path | None,
    output: Path | None,
    layout: str,
) -> None:  # fmt: skip
    """Score the feature purity of a model's layers.

    Without options this scores the bundled resnet10_cifar on 1,000 bundled test images of CIFAR-10, offline. A result
    that is there already, of all that decides its numbers, is kept; an unfinished one is gone on from.
    """
    from purity_cli.views import layers

    results = score_all(models, settings, (threshold,), threshold, download, workers, output, cache, fresh)
    console.show(layers.layers(results, threshold), layout)


def score_all(
    models: tuple[str, ...],
    settings: dict[str, Any],
    thresholds: tuple[float, ...],
    threshold: float,
    download: bool,
    workers: int,
    output: Path | None,
    cache: Path | None = None,
    fresh: bool = False,
) -> list[Result]:
    """Score every model at the default grid and `thresholds`, and write the results, `purity.md` at `threshold`.

    `cache` is the folder in which decoded pixels are kept, None for none. Of several processes under torchrun only the
    first returns.
    """
    from purity_cli import run, store
    from purity_cli.plan import STORED_GRID
    from purity_cli.run.ranks import joined

    jobs = options.make_jobs(models, settings, tuple(sorted({*STORED_GRID, *thresholds})))
    names = store.folder_names(jobs)
    results = []
    with joined() as crew:
        for job, name in zip(jobs, names, strict=True):
            resolved = run.resolve_together(job, crew, download=download)
            folder = output if output and len(jobs) == 1 else (output or Path("results")) / name
            with (
                run.claimed(folder, "purity score", crew),
                progress.images(resolved.network.name, crew.first) as advance,
            ):
                result, kept = run.score_into(
                    folder, resolved, ranks=crew, threshold=threshold, fresh=fresh,
                    command=click.get_current_context().find_root().obj, workers=workers, cache=cache,
                    progress=advance,
                )  # fmt: skip
            if result is not None:
                results.append(result)
            log.info(f"{'Kept' if kept else 'Wrote'} {folder}{KEPT if kept else ''}")
    if not crew.first:
        raise click.exceptions.Exit(0)
    return results
