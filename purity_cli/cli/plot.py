"""`purity plot`: stored results as figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from purity_cli.cli import options, progress, stored

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from purity_cli.results import Result

FIGURES = ("stages", "heatmap", "accuracy")


@click.command("plot")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option(
    "--figure",
    "-f",
    "chosen",
    type=click.Choice(FIGURES),
    multiple=True,
    help="Which to draw; again for more.  [default: all that the results allow]",
)
@options.threshold_option()
@click.option(
    "--layers",
    "-l",
    default="*",
    show_default=True,
    callback=options.parse_layers,
    metavar="SPEC,...",
    help="Only these of the layers scored: stages, paths or globs.",
)
@options.output_option("Folder of the figures.", Path("figures"))
def command(
    folders: tuple[Path, ...], chosen: tuple[str, ...], threshold: float, layers: tuple[str, ...], output: Path
) -> None:
    """Draw stored results as PNG and SVG.

    DIR is a folder that `purity score` has written, or one that holds such folders. stages: purity from stage to
    stage, a line per model; heatmap: models by stages; accuracy: purity of the last stage against top-1 accuracy.
    """
    from purity_cli import figures, sweep, tables
    from purity_cli.errors import PurityError
    from purity_cli.figures import drawing

    results = stored.read(folders)
    scored = tables.at(tables.frame(results), threshold)
    rows = sweep.only(scored, layers)

    def accuracy() -> Figure:
        known = _deepest(results, scored).dropna(subset=["top1", "purity"])
        if len(known) < 2:
            raise PurityError(
                f"Purity against accuracy needs two results or more whose last stage fires and whose images carry "
                f"labels, and there {'is' if len(known) == 1 else 'are'} {len(known)}."
            )
        if len(known) < len(results):
            progress.warn(f"{len(results) - len(known)} of {len(results)} results have no accuracy or no purity.")
        return figures.against_accuracy(known, correlation(known["top1"].tolist(), known["purity"].tolist()))

    makers = {
        "stages": lambda: figures.stage_curve(rows),
        "heatmap": lambda: figures.heatmap(rows),
        "accuracy": accuracy,
    }
    for name in chosen or FIGURES:
        try:
            figure = makers[name]()
        except PurityError as error:
            if chosen:
                raise
            progress.warn(str(error))
            continue
        for path in drawing.save(figure, output / name):
            click.echo(path)


def _deepest(results: Sequence[Result], rows: pd.DataFrame) -> pd.DataFrame:
    """The row of each result's last stage."""
    import pandas as pd

    from purity_cli import tables

    by_result = [part for _, part in tables.by_model(rows)]
    return pd.concat(
        [part[part["layer"] == result.deepest.module] for result, part in zip(results, by_result, strict=True)]
    )


def correlation(x: Sequence[float], y: Sequence[float]) -> str:
    """Pearson's r with n, its interval from three points on, and p from five on; why there is none otherwise."""
    import numpy as np

    from purity_cli.correlate.correlations import correlate

    n = len(x)
    if n < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return f"n = {n}, too few or too alike to correlate"
    found = correlate(np.array(x), np.array(y))["pearson"]
    p = f", p = {found.p:.2g}" if n >= 5 else ""
    return f"Pearson's r = {found.value:.2f}, 95 % interval {found.low:.2f} to {found.high:.2f}{p}, n = {n}"
