"""Stored results, as the commands that view them take them: the one place where folders of results are found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from purity_cli.errors import PurityError

if TYPE_CHECKING:
    from purity_cli.results import Result
    from purity_cli.views.diff import Found

FAILED = "failed.json"
"""What `purity bench` leaves of a job that failed."""
WAY_OUT = "give a folder that `purity score` or `purity bench` has written"


def read(folders: Iterable[Path], note: Callable[[str], None] | None = None) -> list[Result]:
    """The result in each folder, or those in all folders inside it; PurityError where there is none, or one twice.

    Of several folders, as a pattern names them, those without results are left out, and named by `note`.
    """
    from purity_cli.cli import progress
    from purity_cli.views.cells import identity

    folders = list(folders)
    found: list[Found] = []
    empty: list[Path] = []
    for folder in folders:
        inside = _inside(folder) if len(folders) > 1 else find(folder)
        found += inside
        empty += [] if inside else [folder]
    if empty and not found:
        find(empty[0])  # says what is wrong with it
    if empty:
        (note or progress.note)(f"No results in {', '.join(map(str, empty))}: left out.")
    unique = {one.folder.resolve(): one for one in found}
    seen: dict[tuple[str, ...], Path] = {}
    for one in unique.values():
        other = seen.setdefault(tuple(identity(one.result).values()), one.folder)
        if other is not one.folder:
            result = one.result
            raise PurityError(
                f"{other} and {one.folder} both hold {result.model} with weights {result.weights} on "
                f"{result.dataset}: give one of them."
            )
    return [one.result for one in unique.values()]


def or_default(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """The folders given, else that of `purity score` without options; PurityError where that is not there."""
    if folders:
        return folders
    from purity_cli.plan import Job

    job = Job()
    folder = Path("results", f"{job.model}_{job.dataset}")
    if not folder.exists():
        raise PurityError(f"No results are named, and {folder} is not there: run `purity score` first, or {WAY_OUT}.")
    return (folder,)


def find(folder: Path) -> list[Found]:
    """The result in a folder, or those in all folders inside it; PurityError where there are none."""
    if not folder.exists():
        raise PurityError(f"{folder} is not there: {WAY_OUT}.")
    found = _inside(folder)
    if not found:
        raise PurityError(f"{folder} holds no results: {WAY_OUT}.")
    return found


def _inside(folder: Path) -> list[Found]:
    from purity_cli import store
    from purity_cli.views.diff import Found

    if folder.name == store.STATES or (folder / store.STATES).exists():
        return [Found(folder, store.read(folder))]
    return [Found(path.parent, store.read(path.parent)) for path in sorted(folder.rglob(store.STATES))]


def nights(folder: Path) -> tuple[Path | None, Path]:
    """The newest night in a folder of nights (`2024-05-31`), and before it the newest earlier one that has results."""
    from purity_cli.store import STATES

    folders = (path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
    dated = sorted((path for path in folders if _is_date(path.name)), key=lambda path: path.name)
    if not dated:
        raise PurityError(f"{folder} holds no nights: folders of results that are named by date, as 2024-05-31.")
    *earlier, newest = dated
    return next((night for night in reversed(earlier) if any(night.rglob(STATES))), None), newest


def _is_date(name: str) -> bool:
    with suppress(ValueError):
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", name) and date.fromisoformat(name))
    return False


def failures(folder: Path) -> Iterator[str]:
    """A sentence on each job of a suite that failed."""
    for path in sorted(folder.rglob(FAILED)):
        try:
            record = json.loads(path.read_text())
            yield f"{record['job']['model']} on {record['job']['dataset']} failed: {record['error']}"
        except (OSError, ValueError, KeyError, TypeError):
            yield f"{path.parent.name} failed."


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
