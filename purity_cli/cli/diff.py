"""`purity diff`: what moved between two sets of results."""

from __future__ import annotations

from pathlib import Path

import click

from purity_cli.cli import console, options, stored
from purity_cli.errors import log

FOLDER = click.Path(path_type=Path)
REGRESSION = 4


@click.command("diff")
@click.argument("old", type=FOLDER, required=False)
@click.argument("new", type=FOLDER, required=False)
@click.option(
    "--nightly", type=FOLDER, metavar="DIR",
    help="Instead of OLD and NEW: the newest of the nights in DIR, folders named as 2024-05-31, and the one before.",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(0), default=0.005, show_default=True, metavar="F",
    help="A cell has moved where F differs by more, or another measure by more of its value.",
)  # fmt: skip
@options.threshold_option()
@options.rate_option
@options.format_option("md is for a summary of CI, html is a page; csv holds the cells only.")
def command(
    old: Path | None,
    new: Path | None,
    nightly: Path | None,
    tolerance: float,
    threshold: float,
    rate: float,
    layout: str,
) -> None:
    """Compare the results in OLD and NEW, layer by layer.

    OLD and NEW are folders that `purity score` or `purity bench` has written, or folders of such. Results are matched
    by model, weights, data set, layer and preprocessing. Exits with 4 where a cell moved, or a job or a layer vanished.
    """
    from purity_cli.views.diff import diff

    if nightly is None and (old is None or new is None):
        raise click.UsageError("Give two folders of results, OLD and NEW, or --nightly DIR.")
    if nightly is not None:
        if old is not None:
            raise click.UsageError("Give two folders of results or --nightly, not both.")
        old, new = stored.nights(nightly)
        if old is None:
            stored.find(new)
            log.info(f"{new} is the first night with results: there is nothing to compare it with.")
            return
        log.info(f"{old} -> {new}")
    assert old is not None
    assert new is not None
    before, after = stored.find(old), stored.find(new)
    failures = stored.failures(new)
    found = diff(before, after, threshold=threshold, rate=rate, tolerance=tolerance, failures=failures)
    console.show(found.report(), layout)
    if found.regressed:
        raise click.exceptions.Exit(REGRESSION)
