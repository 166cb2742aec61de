"""`purity datasets`: the images that can be scored, what each set of them needs, and what is found behind a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options

if TYPE_CHECKING:
    from purity_cli.datasets import ImageSource
    from purity_cli.report import Report


@click.command("datasets")
@click.argument("name", required=False, metavar="[NAME|PATH]")
@click.option("--data-dir", metavar="DIR", help="Where a named data set lies.")
@click.option("--split", metavar="NAME", help="Which split of the data set.  [default: test, else val]")
@options.format_option()
def command(name: str | None, data_dir: str | None, split: str | None, layout: str) -> None:
    """List the data sets that --dataset can name, or say what is found behind a name or path and how it is read.

    Of several splits the first is the default. The path of a folder, an archive or a table needs no name before it.
    """
    from purity_cli.datasets import open_dataset

    if name is None and (data_dir or split):
        raise click.UsageError("--data-dir and --split are of one data set: name it.")
    known = name is None
    console.show(_known() if known else _found(open_dataset(name, data_dir=data_dir, split=split)), layout)


def _known() -> Report:
    from purity_cli.datasets import FAMILIES
    from purity_cli.report import Report, Table, number, text

    columns = [text("name"), number("classes", digits=None), text("splits"), text("needs"), text("about")]
    rows = [
        {
            "name": family.name,
            "classes": family.classes,
            "splits": family.splits,
            "needs": family.needs if isinstance(family.needs, str) else family.needs(),
            "about": family.about,
        }
        for family in FAMILIES.values()
    ]
    return Report([Table("datasets", columns, rows)])


def _found(source: ImageSource) -> Report:
    """What is known of images without a network; what was left out, and what else could be meant, is in its notes."""
    from purity_cli.report import Report, Table, text

    classes = None if source.labels is None else len(source.class_names or set(source.labels))
    found = {
        "name": source.name,
        "kind": source.kind,
        "images": len(source),
        "classes": classes,
        "labels": source.label_note or source.order or "as they come",
        "first": source.paths[0],
        "last": source.paths[-1],
        "fingerprint": source.fingerprint,
    }
    lines = [{"what": what, "value": "unknown" if value is None else value} for what, value in found.items()]
    people = Table("found", [text("what", " "), text("value", source.name, fold=True)], lines[1:], aim="people")
    return Report([people, Table("datasets", [text(key) for key in found], [found], aim="data")], source.notes)
