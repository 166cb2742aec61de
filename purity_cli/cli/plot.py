"""`purity plot`: stored results as figures."""

from __future__ import annotations

from pathlib import Path

import click

from purity_cli.cli import console, options, stored
from purity_cli.errors import log


@click.command("plot")
@click.argument("folders", nargs=-1, metavar="[DIR]...", type=click.Path(path_type=Path))
@click.option(
    "--figure", "-f", "chosen", type=console.Entries("purity_cli.figures:FIGURES"), multiple=True,
    help="Which to draw; again for more.  [default: all that the results allow]",
)  # fmt: skip
@options.threshold_option()
@options.rate_option
@click.option("--against-rate", is_flag=True, help="In sweep: F over the firing rate in place of the threshold.")
@options.stored_layers_option
@options.output_option("Folder of the figures.", Path("figures"))
def command(
    folders: tuple[Path, ...],
    chosen: tuple[str, ...],
    threshold: float,
    rate: float,
    against_rate: bool,
    layers: tuple[str, ...],
    output: Path,
) -> None:
    """Draw stored results as PNG and SVG.

    DIR is a folder that `purity score` has written, or one that holds such folders; without any, what `purity score`
    without options has written. stages: purity from stage to stage, a line per model; heatmap: models by stages;
    accuracy: purity of the last stage against top-1 accuracy; sweep: purity of every layer against the threshold.
    With --rate, the first three show F at that firing rate in place of F at the threshold.
    """
    from purity_cli.errors import PurityError
    from purity_cli.figures import FIGURES, Scored, charts, drawing
    from purity_cli.views.cells import frame
    from purity_cli.views.sweep import only

    results = stored.read(stored.or_default(folders))
    shown = only(results, layers)
    rows, every = frame(shown, threshold, rate), frame(results, threshold, rate)
    if options.is_given("rate"):
        rows, every = charts.at_rate(rows), charts.at_rate(every)
    scored = Scored(rows, every, frame(shown), against_rate)
    for name in chosen or FIGURES:
        try:
            figure = FIGURES[name](scored)
        except PurityError as error:
            if chosen:
                raise
            log.info(str(error))
            continue
        for path in drawing.save(figure, output / name):
            click.echo(path)
