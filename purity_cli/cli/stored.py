"""Stored results, as the commands that view them take them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from purity_cli.errors import PurityError

if TYPE_CHECKING:
    from purity_cli.results import Result


def read(folders: Iterable[Path], *, by_name: bool = True) -> list[Result]:
    """The result in each folder, or in each folder inside it; PurityError where there is none, or one twice.

    Two results are one where they go by the same names, or without `by_name` where their weights and images are the
    same as well: trainings that differ in their seed give files of the same names.
    """
    from purity_cli import store

    results: list[Result] = []
    seen: dict[tuple[str, ...], Path] = {}
    for folder in dict.fromkeys(place for given in folders for place in _inside(given)):
        result = store.read(folder)
        # What tells results apart in tables and figures.
        name: tuple[str, ...] = (result.model, result.source, result.weights, result.dataset, result.preprocessing)
        if not by_name:
            name += tuple(str(result.provenance.get(key)) for key in ("weights_sha256", "dataset_fingerprint"))
        if name in seen:
            raise PurityError(
                f"{seen[name]} and {folder} both hold {result.model} with weights {result.weights} on "
                f"{result.dataset}: give one of them."
            )
        seen[name] = folder
        results.append(result)
    return results


def _inside(folder: Path) -> list[Path]:
    from purity_cli.store import STATES

    if folder.name == STATES or (folder / STATES).exists():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{STATES}")) or [folder]


def refuse_job_options() -> None:
    """A usage error where an option that decides counts stands beside --from: they are what they are.

    Not for --layers, which can still leave some out.
    """
    import click

    from purity_cli.cli import options

    context = click.get_current_context()
    for name in (*options.job_settings(), "models", "download", "workers", "output"):
        if name != "layers" and options.said(name):
            option = next(parameter for parameter in context.command.get_params(context) if parameter.name == name)
            raise click.UsageError(f"--from reads stored counts, which {option.opts[0]} cannot change: leave out one.")
