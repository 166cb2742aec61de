"""Stored results, as the commands that view them take them: the one place where folders of results are found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click

from purity_cli.cli import options
from purity_cli.errors import PurityError, log

if TYPE_CHECKING:
    from purity_cli.results import Result
    from purity_cli.views.diff import StoredResult

ENDINGS, LARGEST = (".png", ".jpg", ".jpeg"), 2 << 20
"""Endings of the figures that a page takes, and the bytes of the largest."""
WAY_OUT = "give a folder that `purity score` or `purity bench` has written"


def find(folder: Path) -> list[StoredResult]:
    """The result in a folder, or those in all folders inside it; PurityError where there are none."""
    if not folder.exists():
        raise PurityError(f"{folder} is not there: {WAY_OUT}.")
    found = _inside(folder)
    if not found:
        raise PurityError(f"{folder} holds no results: {WAY_OUT}.")
    return found


def _inside(folder: Path) -> list[StoredResult]:
    from purity_cli import store
    from purity_cli.views.diff import StoredResult

    if folder.name == store.STATES or (folder / store.STATES).exists():
        return [StoredResult(folder, store.read(folder))]
    return [StoredResult(path.parent, store.read(path.parent)) for path in sorted(folder.rglob(store.STATES))]


def _all(folders: Iterable[Path]) -> list[StoredResult]:
    """What is found in the folders, each once; of several folders, as a pattern names them, empty ones are left out."""
    folders = list(folders)
    found = {folder: _inside(folder) if len(folders) > 1 else find(folder) for folder in folders}
    empty = [folder for folder in folders if not found[folder]]
    if empty and len(empty) == len(folders):
        find(empty[0])  # says what is wrong with it
    if empty:
        log.info(f"No results in {', '.join(map(str, empty))}: left out.")
    return list({one.folder.resolve(): one for inside in found.values() for one in inside}.values())


def read(folders: Iterable[Path]) -> list[Result]:
    """The result in each folder, or those in all folders inside it; PurityError where there is none, or one twice."""
    from purity_cli.views.cells import identity

    unique = _all(folders)
    places: dict[tuple[str, ...], Path] = {}
    for one in unique:
        other = places.setdefault(tuple(identity(one.result).values()), one.folder)
        if other is not one.folder:
            result = one.result
            raise PurityError(
                f"{other} and {one.folder} both hold {result.model} with weights {result.weights} on "
                f"{result.dataset}: give one of them."
            )
    return [one.result for one in unique]


def newest(folders: Iterable[Path]) -> list[StoredResult]:
    """As `read`, with their folders; of the same thing scored twice the result that was begun last."""
    from purity_cli.views.cells import identity

    unique = _all(folders)
    by_start = sorted(unique, key=lambda one: str(one.result.provenance.get("started", "")))
    latest = {tuple(identity(one.result).values()): one.folder for one in by_start}.values()
    older = [str(one.folder) for one in unique if one.folder not in latest]
    if older:
        log.info(f"Older results of the same: {', '.join(older)}: left out.")
    return [one for one in unique if one.folder in latest]


def or_default(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """The folders given, else that of `purity score` without options; PurityError where that is not there."""
    if folders:
        return folders
    from purity_cli.plan import Job

    job = Job()
    return (_there(Path("results", f"{job.model}_{job.dataset}")),)


def expanded(folders: Iterable[Path]) -> list[Path]:
    """Folders, and those that a pattern names; without any, `results`. PurityError where nothing is there."""
    from glob import glob

    found: list[Path] = []
    for folder in folders:
        inside = [] if folder.exists() else [Path(name) for name in sorted(glob(str(folder), recursive=True))]
        found += inside or [folder]
    return found or [_there(Path("results"))]


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise PurityError(f"No results are named, and {folder} is not there: run `purity score` first, or {WAY_OUT}.")
    return folder


def pictures(found: Iterable[StoredResult]) -> dict[int, list[tuple[str, bytes]]]:
    """The Grad-CAM panels in the folders of results, by the results' places, with what they show."""
    shown: dict[int, list[tuple[str, bytes]]] = {}
    for place, one in enumerate(found):
        for path in sorted(one.folder.glob("cam*")) if one.folder.is_dir() else ():
            if path.suffix.lower() in ENDINGS and path.stat().st_size <= LARGEST:
                shown.setdefault(place, []).append((f"Grad-CAM: {path.name}", path.read_bytes()))
            else:
                log.info(f"{path} is left out: a page takes {', '.join(ENDINGS)} of up to {LARGEST >> 20} MB.")
    return shown


def nights(folder: Path) -> tuple[Path | None, Path]:
    """The newest night in a folder of nights (`2024-05-31`), and before it the newest earlier one that has results."""
    from purity_cli.store import STATES

    dated = [path for path in sorted(folder.glob("*-*-*")) if path.is_dir() and _is_date(path.name)]
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
    from purity_cli.store import FAILED

    for path in sorted(folder.rglob(FAILED)):
        try:
            record = json.loads(path.read_text())
            yield f"{record['job']['model']} on {record['job']['dataset']} failed: {record['error']}"
        except (OSError, ValueError, KeyError, TypeError):
            yield f"{path.parent.name} failed."


def refuse_job_options() -> None:
    """A usage error where an option that decides counts stands beside --from: stored counts stay what they are.

    --layers is allowed, because it can leave out some of them.
    """
    for name in (*options.JOB_OPTIONS, "models", "download", "workers", "output"):
        if name != "layers" and options.is_given(name):
            command = click.get_current_context().command
            option = next(parameter for parameter in command.params if parameter.name == name)
            raise click.UsageError(f"--from reads stored counts, which {option.opts[0]} cannot change: leave out one.")
