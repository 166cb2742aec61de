"""`purity sweep-threshold`: the purity of every layer at every threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from purity_cli.cli import console, options, stored
from purity_cli.errors import log


def _thresholds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    from purity_cli.errors import PurityError
    from purity_cli.plan import parse_thresholds

    try:
        return None if value is None else parse_thresholds(value)
    except PurityError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command("sweep-threshold")
@options.job_options()
@click.option(
    "--thresholds", callback=_thresholds, metavar="A:B:STEP",
    help="Both ends included.  [default: 0.05:0.95:0.05, or all that are stored]",
)  # fmt: skip
@options.stored_option("Read stored counts instead of scoring; again for more results, or a folder of their folders.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Draw F against the threshold, as .png, .svg or .pdf; without an ending as PNG and SVG.",
)  # fmt: skip
@click.option("--suggest", is_flag=True, help="Also name the threshold at which the layers differ most.")
@options.output_option("Folder of the results, as for score.  [default: results/MODEL_DATASET]")
@options.format_option()
def command(
    models: tuple[str, ...],
    settings: dict[str, Any],
    download: bool,
    workers: int,
    thresholds: tuple[float, ...] | None,
    folders: tuple[Path, ...],
    plot: Path | None,
    suggest: bool,
    output: Path | None,
    layout: str,
) -> None:  # fmt: skip
    """Show feature purity against the threshold, from one pass over the images or from stored counts.

    With --from, --layers picks from the layers that were scored: stages, paths or globs.

    With --suggest: the threshold t at which the layers differ most, that is with the largest variance of F(t) between
    the layers less the mean of their squared standard errors, among the thresholds at which every layer fires five
    times per channel.
    """
    from purity_cli.plan import DEFAULT_GRID
    from purity_cli.views import cells
    from purity_cli.views import sweep as view

    if plot:
        from purity_cli.figures import charts, drawing

        drawing.targets(plot)
    if folders:
        stored.refuse_job_options()
        results = stored.read(folders)
        results = view.only(results, settings["layers"]) if options.is_given("layers") else results
    else:
        from purity_cli.cli.score import score_all

        thresholds = thresholds or DEFAULT_GRID
        results = score_all(
            thresholds, 0.5, models=models, settings=settings, download=download, workers=workers, output=output
        )
    report = view.sweep(results, thresholds, suggested=suggest)
    # Before anything is printed: whoever reads that may stop reading.
    if plot:
        for path in drawing.save(charts.threshold_sweep(cells.frame(results, thresholds)), plot):
            log.info(f"Wrote {path}")
    console.show(report, layout)
