"""`purity sweep-threshold`: the purity of every layer at every threshold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import console, options, progress, show, stored

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from purity_cli.results import Result


def _thresholds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    from purity_cli.errors import PurityError
    from purity_cli.plan import parse_thresholds

    try:
        return None if value is None else parse_thresholds(value)
    except PurityError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command("sweep-threshold", cls=options.JobCommand)
@options.job_options
@click.option(
    "--thresholds",
    callback=_thresholds,
    metavar="A:B:STEP",
    help="Both ends included.  [default: 0.05:0.95:0.05, or all that are stored]",
)
@options.stored_option("Read stored counts instead of scoring; again for more results, or a folder of their folders.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw F against the threshold, as .png, .svg or .pdf; without an ending as PNG and SVG.",
)
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
    from purity_cli import sweep, tables
    from purity_cli.plan import DEFAULT_GRID

    if plot:
        from purity_cli import figures
        from purity_cli.figures import drawing

        drawing.targets(plot)
    if folders:
        stored.refuse_job_options()
        results = stored.read(folders)
        layers = settings["layers"] if options.said("layers") else ()
    else:
        from purity_cli.cli.score import score_all

        thresholds, layers = thresholds or DEFAULT_GRID, ()
        results = score_all(models, settings, thresholds, 0.5, download, workers, output)
    rows = tables.frame(results)
    rows = sweep.only(rows, layers) if layers else rows
    rows = rows if thresholds is None else sweep.at(rows, thresholds)
    suggested = {name: sweep.suggest(model) for name, model in tables.by_model(rows)} if suggest else {}
    # Before anything is printed: whoever reads that may stop reading.
    if plot:
        for path in drawing.save(figures.threshold_sweep(rows), plot):
            click.echo(f"Wrote {path}", err=True)
    _print(results, rows, layout)
    for name, found in suggested.items():
        # What --format asks for is alone on stdout.
        click.echo(f"Suggested threshold for {name}: {found}.", err=layout != "table")


def _print(results: list[Result], rows: pd.DataFrame, layout: str) -> None:
    from purity_cli import tables

    if layout in ("csv", "json"):
        click.echo({"csv": tables.to_csv, "json": tables.to_json}[layout](rows), nl=False)
        return
    for result, (_, model) in zip(results, tables.by_model(rows), strict=True):
        if layout == "md":
            click.echo(_grid(model).to_markdown(disable_numparse=True))
        else:
            console.show(_table(model))
        click.echo(f"{tables.summary(result)}\n" if layout == "md" else tables.summary(result))
    low = tables.starved(rows)
    if len(low):
        progress.warn(f"* fewer than {tables.ENOUGH} activations per channel: F is biased low; – nothing fires.")


def _grid(model: pd.DataFrame) -> pd.DataFrame:
    """F as text, a row per threshold and a column per layer."""
    from purity_cli import tables

    low = set(tables.starved(model).index)
    shown = ["–" if math.isnan(value) else f"{'*' * (i in low)}{value:.3f}" for i, value in model["purity"].items()]
    named = model.assign(label=tables.labels(model), shown=shown)
    grid = named.pivot(index="threshold", columns="label", values="shown")[list(dict.fromkeys(named["label"]))]
    grid.index = grid.index.map("{:g}".format).rename("threshold")
    return grid


def _table(model: pd.DataFrame) -> Table:
    """The grid, on a terminal with a bar beside each number."""
    from rich import box
    from rich.table import Table

    from purity_cli import tables

    grid = _grid(model)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns: list[Any] = [list(grid.index)]
    table.add_column("t", justify="right")
    for label, layer in model.assign(label=tables.labels(model)).groupby("label", sort=False):
        table.add_column(str(label), justify="right", max_width=18, overflow="fold")
        columns.append(list(grid[label]))
        drawn = show.bars(layer.sort_values("threshold")["purity"], 6)
        if drawn:
            table.add_column("")
            columns.append(drawn)
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table
