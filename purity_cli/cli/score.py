"""`purity score`: the purity of every chosen layer of one or more models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import console, options, progress
from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.results import Result


@click.command("score")
@options.job_options()
@options.threshold_option("A channel fires where its mean-to-peak ratio exceeds this; every threshold is stored.")
@options.rate_option
@options.fresh_option
@options.cache_option("none")
@options.output_option(
    "Folder of the results; with several models, of a folder for each.  [default: results/MODEL_DATASET]"
)
@options.progress_option
@options.format_option("What is printed; the files are always written.")
def command(threshold: float, rate: float, layout: str, **how: Any) -> None:
    """Score the feature purity of a model's layers.

    Without options this scores the bundled resnet10_cifar on 1,000 bundled test images of CIFAR-10, offline. A result
    that is there already is kept if everything that decides its numbers is the same; an unfinished one is continued.
    """
    from purity_cli.views import layers

    console.show(layers.layers(score_all((threshold,), threshold, **how), threshold, rate), layout)


def score_all(
    thresholds: tuple[float, ...],
    threshold: float,
    *,
    models: tuple[str, ...],
    settings: Mapping[str, Any],
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
    with joined() as ranks:
        for job, name in zip(jobs, names, strict=True):
            resolved = run.resolve_together(job, ranks, download=download)
            folder = output if output and len(jobs) == 1 else (output or Path("results")) / name
            with (
                run.claimed(folder, "purity score", ranks),
                progress.images(resolved.network.name, ranks.first) as advance,
            ):
                result, kept = run.score_into(
                    folder, resolved, ranks=ranks, threshold=threshold, fresh=fresh, workers=workers, cache=cache,
                    command=click.get_current_context().find_root().obj, progress=advance,
                )  # fmt: skip
            results += [result] if result else []
            again = ": it holds this very result; --fresh scores it again." if kept else ""
            log.info(f"{'Kept' if kept else 'Wrote'} {folder}{again}")
    if not ranks.first:
        raise click.exceptions.Exit(0)
    return results
