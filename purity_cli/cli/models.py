"""`purity models`: what can be scored, and whether its weights are on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options

if TYPE_CHECKING:
    from purity_cli.models.listing import ModelEntry
    from purity_cli.report import Table


class ModelsCommand(click.Command):
    """Its help ends with the libraries that models come from."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from purity_cli.models import LIBRARIES

        with formatter.section("Libraries"):
            formatter.write_dl([(f"{name}:", library.about) for name, library in LIBRARIES.items()])


@click.command("models", cls=ModelsCommand)
@click.argument("pattern", required=False)
@click.option("--here", is_flag=True, help="Only models whose weights are on this machine.")
@click.option("--all", "everything", is_flag=True, help="Also models that have no stages or no classifier.")
@options.format_option()
def command(pattern: str | None, here: bool, everything: bool, layout: str) -> None:
    """List the models that can be scored.

    PATTERN is a glob (resnet*), part of a name, or either behind a source (timm:*resnext*); with a dot it lists
    timm's weights one by one (resnet50.*). Without PATTERN every model is listed, its parameters uncounted.
    """
    from purity_cli.models.listing import COUNTED, catalogue
    from purity_cli.report import Report

    found = catalogue(pattern, here=here)
    entries = [entry for entry in found if everything or entry.scorable]
    notes = []
    if here and not found:
        notes.append("No weights of these models are on this machine.")
    if len(entries) < len(found):
        without = found[0].name if len(found) == 1 else f"{len(found) - len(entries)} models"
        notes.append(f"Left out: {without}, without stages or classifier; --all lists them as well.")
    if any(entry.stages is None and entry.classifies for entry in entries):
        notes.append(f"{len(entries)} models; parameters and stages are shown where PATTERN leaves at most {COUNTED}.")
    console.show(Report([_table(entries)], notes), layout)


def _table(entries: Sequence[ModelEntry]) -> Table:
    from purity_cli.report import Table, number, text

    columns = [
        text("name", fold=True), text("source"), number("parameters", digits=None), text("input_size", "input"),
        text("stages", "stages"), text("weights here", fold=True, data=False), text("weights_here", shown=False),
        text("classifies", shown=False),
    ]  # fmt: skip
    rows = [
        {
            "name": entry.name,
            "source": entry.source,
            "parameters": entry.parameters,
            "input_size": "x".join(map(str, entry.input_size)) if entry.input_size else None,
            "stages": _stages(entry.stages),
            "weights here": entry.weights or ("no" if entry.classifies else "no classifier"),
            "weights_here": list(entry.weights),
            "classifies": entry.classifies,
        }
        for entry in entries
    ]
    return Table("models", columns, rows)


def _stages(names: Sequence[str] | None) -> str | None:
    """As `--layers` takes them; None where nobody looked."""
    if names is None:
        return None
    return "..".join(dict.fromkeys([*names[:1], *names[-1:]])) or "none"
