"""`purity diff`: what moved between two sets of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options

if TYPE_CHECKING:
    from purity_cli.diff import Diff

FOLDER = click.Path(path_type=Path)
REGRESSION = 4


@click.command("diff")
@click.argument("old", type=FOLDER, required=False)
@click.argument("new", type=FOLDER, required=False)
@click.option(
    "--nightly",
    type=FOLDER,
    metavar="DIR",
    help="Instead of OLD and NEW: the newest of the nights in DIR, folders named as 2024-05-31, and the one before.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=0.005,
    show_default=True,
    metavar="F",
    help="A cell has moved where it differs by more.",
)
@options.threshold_option()
@options.format_option("md is for a summary of CI; csv holds the cells only.")
def command(
    old: Path | None, new: Path | None, nightly: Path | None, tolerance: float, threshold: float, layout: str
) -> None:
    """Compare the results in OLD and NEW, layer by layer.

    OLD and NEW are folders that `purity score` or `purity bench` has written, or folders of such. Results are matched
    by model, weights, data set, layer and preprocessing. Exits with 4 where a cell moved, or a job or a layer vanished.
    """
    from purity_cli import diff
    from purity_cli.diff import pairs

    if nightly is None and (old is None or new is None):
        raise click.UsageError("Give two folders of results, OLD and NEW, or --nightly DIR.")
    if nightly is not None:
        if old is not None:
            raise click.UsageError("Give two folders of results or --nightly, not both.")
        old, new = pairs.nights(nightly)
        if old is None:
            pairs.find(new)
            click.echo(f"{new} is the first night with results: there is nothing to compare it with.", err=True)
            return
        click.echo(f"{old} -> {new}", err=True)
    assert old is not None
    assert new is not None
    found = diff.diff(old, new, threshold=threshold, tolerance=tolerance)
    _show(found, layout)
    if found.regressed:
        raise click.exceptions.Exit(REGRESSION)


def _show(found: Diff, layout: str) -> None:
    if layout == "md":
        click.echo(found.markdown(), nl=False)
    elif layout == "table":
        console.show(console.table(found.text(), left=("job", "stage", "layer", "")))
        if len(found.changes):
            click.echo("\nIn what else the runs differ:")
            console.show(console.table(found.changes, left=tuple(found.changes.columns)))
        click.echo()
        for sentence in (*found.failures, found.caution(), found.verdict()):
            click.echo(sentence)
    else:
        click.echo(found.json() if layout == "json" else found.csv(), nl=False)
        click.echo(found.verdict(), err=True)
