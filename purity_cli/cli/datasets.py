"""`purity datasets`: the images that can be scored, and what each set of them needs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from purity_cli.datasets import Family

COLUMNS = ("name", "classes", "splits", "needs", "about")


@click.command("datasets")
@click.option("--format", "layout", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def command(layout: str) -> None:
    """List the data sets that --dataset can name.

    Of several splits the first is the default. The path of a folder or a tar needs no name.
    """
    from purity_cli.datasets import FAMILIES

    click.echo({"table": _table, "json": _json, "csv": _csv}[layout](list(FAMILIES.values())))


def _rows(families: Sequence[Family]) -> list[list[str]]:
    return [
        [
            family.name,
            "as found" if family.classes is None else str(family.classes),
            ", ".join(family.splits) or "as found",
            family.needs,
            family.about,
        ]
        for family in families
    ]


def _table(families: Sequence[Family]) -> str:
    """A paragraph each: what a set needs is too long for a column."""
    lines = []
    for row in _rows(families):
        lines.append(row[0])
        lines += [f"  {column.ljust(8)} {cell}" for column, cell in zip(COLUMNS[1:], row[1:], strict=True)]
    return "\n".join(lines)


def _json(families: Sequence[Family]) -> str:
    return json.dumps(
        [
            {
                "name": family.name,
                "classes": family.classes,
                "splits": family.splits,
                "needs": family.needs,
                "about": family.about,
            }
            for family in families
        ],
        indent=2,
    )


def _csv(families: Sequence[Family]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for family in families:
        classes = "" if family.classes is None else family.classes
        writer.writerow([family.name, classes, ";".join(family.splits), family.needs, family.about])
    return text.getvalue().rstrip("\n")
