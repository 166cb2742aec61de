"""`purity datasets`: the images that can be scored, what each set of them needs, and what is found behind a path."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from typing import Any

import click


@click.command("datasets")
@click.argument("name", required=False, metavar="[NAME|PATH]")
@click.option("--data-dir", metavar="DIR", help="Where a named data set lies.")
@click.option("--split", metavar="NAME", help="Which split of the data set.  [default: test, else val]")
@click.option("--format", "layout", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def command(name: str | None, data_dir: str | None, split: str | None, layout: str) -> None:
    """List the data sets that --dataset can name, or say what is found behind a name or path and how it is read.

    Of several splits the first is the default. The path of a folder, an archive or a table needs no name before it.
    """
    from purity_cli.datasets import open_dataset

    if name is None and (data_dir or split):
        raise click.UsageError("--data-dir and --split are of one data set: name it.")
    rows = _known() if name is None else [_found(open_dataset(name, data_dir=data_dir, split=split))]
    click.echo({"table": _table, "json": _json, "csv": _csv}[layout](rows), nl=layout != "csv")


def _known() -> list[dict[str, Any]]:
    from purity_cli.datasets import FAMILIES

    return [
        {
            "name": family.name,
            "classes": family.classes,
            "splits": list(family.splits),
            "needs": family.needs if isinstance(family.needs, str) else family.needs(),
            "about": family.about,
        }
        for family in FAMILIES.values()
    ]


def _found(source: Any) -> dict[str, Any]:
    """What is known of images without a network; `left out` and other choices are in the notes."""
    seen = sorted(set(source.labels or ()))
    return {
        "name": source.name,
        "kind": source.kind,
        "images": len(source),
        "classes": None if source.labels is None else len(source.class_names or seen),
        "labels": source.label_note or source.order or "as they come",
        "first": source.paths[0],
        "last": source.paths[-1],
        "notes": list(source.notes),
        "fingerprint": source.fingerprint,
    }


def _cell(value: list[str] | str | int | None) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else value or ""


def _table(rows: list[dict[str, Any]]) -> str:
    """A paragraph each: what a set needs, or what there is to say of it, is too long for a column."""
    lines = []
    for row in rows:
        lines.append(row["name"])
        width = max(map(len, row))
        for column, value in list(row.items())[1:]:
            unknown = "unknown" if "kind" in row else "as found"
            texts = value if isinstance(value, list) and column == "notes" else [_cell(value) or unknown]
            if column not in ("first", "last", "fingerprint"):
                texts = [line for text in texts for line in textwrap.wrap(text, 77 - width)]
            lines += [f"  {(column if k == 0 else '').ljust(width)} {text}" for k, text in enumerate(texts)]
    return "\n".join(lines)


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows if "kind" not in rows[0] else rows[0], indent=2)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(
        [
            ["" if value is None else ";".join(value) if isinstance(value, list) else value for value in row.values()]
            for row in rows
        ]
    )
    return text.getvalue()
