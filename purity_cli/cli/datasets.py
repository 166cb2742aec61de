"""`purity datasets`: the images that can be scored, what each set of them needs, and what is found behind a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import console, options

if TYPE_CHECKING:
    from purity_cli.datasets import ImageDataset
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
    console.show(_known() if name is None else _found(open_dataset(name, data_dir=data_dir, split=split)), layout)


def _known() -> Report:
    from purity_cli.datasets import KINDS

    facts = [
        {
            "name": kind.name,
            "classes": kind.classes,
            "splits": kind.splits or None,
            "needs": kind.needs,
            "about": kind.about,
        }
        for kind in KINDS.values()
    ]
    return _report(facts, "as found", [])


def _found(source: ImageDataset) -> Report:
    """What is known of images without a network; what was left out, and what else could be meant, is in its notes."""
    facts = {
        "name": source.name,
        "kind": source.kind,
        "images": len(source),
        "classes": None if source.labels is None else len(source.class_names or set(source.labels)),
        "labels": source.label_note or source.order or "as they come",
        "first": source.paths[0],
        "last": source.paths[-1],
        "fingerprint": source.fingerprint,
    }
    return _report([facts], "unknown", source.notes)


def _report(sets: Sequence[Mapping[str, Any]], missing: str, notes: Sequence[str]) -> Report:
    """For people a table of each set, whose values are too long for columns; `missing` stands where one is unknown."""
    from purity_cli.report import Report, Table, text

    tables = [Table("datasets", [text(key) for key in sets[0]], sets, aim="data")]
    for facts in sets:
        name, *others = facts
        rows = [{"what": what, "value": missing if facts[what] is None else facts[what]} for what in others]
        columns = [text("what", " "), text("value", facts[name], fold=True)]
        tables.append(Table("dataset", columns, rows, aim="people"))
    return Report(tables, notes)
