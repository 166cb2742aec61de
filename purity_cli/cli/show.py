"""`purity show`: stored results, at any threshold."""

from __future__ import annotations

from pathlib import Path

import click

from purity_cli.cli import console, options, stored


@click.command("show")
@click.argument("folders", nargs=-1, metavar="[DIR]...", type=click.Path(path_type=Path))
@options.threshold_option()
@options.rate_option
@options.stored_layers_option
@click.option(
    "--view", type=console.Entries("purity_cli.views:VIEWS"), default="layers", show_default=True,
    help="What of the results: their layers, purity against the threshold, over epochs, or against accuracy.",
)  # fmt: skip
@click.option(
    "--reference", metavar="NAME|FILE.csv",
    help="Beside a table of the paper (table1, table2, table3, figure4) or of one's own, instead of --view.",
)  # fmt: skip
@options.format_option()
def command(
    folders: tuple[Path, ...],
    threshold: float,
    rate: float,
    layers: tuple[str, ...],
    view: str,
    reference: str | None,
    layout: str,
) -> None:
    """Show stored results: F with its standard error, N, live channels and the other measures of every layer.

    DIR is a folder that `purity score`, `bench` or `epochs` has written, or one that holds such folders; without
    any, what `purity score` without options has written.
    """
    from purity_cli.views import VIEWS
    from purity_cli.views.sweep import only

    results = only(stored.read(stored.or_default(folders)), layers)
    if reference is None:
        console.show(VIEWS[view](results, threshold, rate), layout)
        return
    from purity_cli import paper
    from purity_cli.views.suites import of_results

    console.show(paper.comparison(of_results(results), reference, paper.reference(reference), threshold), layout)
