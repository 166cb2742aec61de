"""`purity report`: stored results as one page."""

from __future__ import annotations

from pathlib import Path

import click

from purity_cli.cli import console, options, stored


@click.command("report")
@click.argument("folders", nargs=-1, metavar="[DIR|PATTERN]...", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Where the page is written.  [default: report.html; other forms are printed]",
)  # fmt: skip
@click.option(
    "--format", "layout", type=console.Entries("purity_cli.report:FORMATS"), default="html", show_default=True,
    help="html is the page; the others have its table and what to be careful about, as md for a pull request.",
)  # fmt: skip
@options.threshold_option()
@options.rate_option
@click.option(
    "--reference", "references", metavar="NAME|FILE.csv", multiple=True,
    help="Beside a table of the paper (table1, table2, table3, figure4) or of one's own; again for more.  "
    "[default: those of the paper that have these networks]",
)  # fmt: skip
def command(
    folders: tuple[Path, ...],
    output: Path | None,
    layout: str,
    threshold: float,
    rate: float,
    references: tuple[str, ...],
) -> None:
    """Make one page of stored results, to sort, search and send: a file that needs no network.

    DIR is a folder that `purity score`, `bench` or `epochs` has written, or one that holds such folders, and PATTERN a
    pattern of them in quotes; without any, `results`. Of the same job scored twice, the newer result is shown. A PNG or
    JPEG in a result's folder whose name begins with cam, as `purity cam --output` makes it, stands in its panel.
    """
    from purity_cli import locks, paper, store
    from purity_cli.report import FORMATS
    from purity_cli.views.page import page, summary

    named = stored.expanded(folders)
    found = stored.newest(named)
    failures = [sentence for folder in named for sentence in stored.failures(folder)]
    if layout == "html":
        beside = paper.beside([one.result for one in found], threshold, references or None)
        pictures = stored.pictures(found)
        report = page(found, threshold, rate, beside=beside, failures=failures, pictures=pictures)
    else:
        report = summary(found, threshold, rate, failures)
    if layout == "html" or output:
        target = output or Path(f"report.{layout}")
        locks.prepare(target.parent)
        store.write_text(target, FORMATS[layout](report))
        click.echo(target)
    else:
        console.show(report, layout)
