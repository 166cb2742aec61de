"""Stored results, found and matched: of two runs, and of the last two nights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from purity_cli import store
from purity_cli.errors import PurityError
from purity_cli.results import Result

IDENTITY = ("model", "source", "weights", "dataset", "preprocessing")
"""What two results share that are of the same thing."""


@dataclass(frozen=True)
class Found:
    """A result and where it was found."""

    folder: Path
    result: Result


Pair = tuple[Found | None, Found | None]


def find(folder: Path) -> list[Found]:
    """The result in a folder, or those in all folders inside it; PurityError where there are none."""
    if not folder.exists():
        raise PurityError(f"{folder} is not there: give a folder that `purity score` or `purity bench` has written.")
    if folder.name == store.STATES or (folder / store.STATES).exists():
        return [Found(folder, store.read(folder))]
    found = [Found(path.parent, store.read(path.parent)) for path in sorted(folder.rglob(store.STATES))]
    if not found:
        raise PurityError(
            f"{folder} holds no results: give a folder that `purity score` or `purity bench` has written."
        )
    return found


def match(old: Sequence[Found], new: Sequence[Found]) -> list[Pair]:
    """Results of the same thing side by side, in the order of the new ones, then those that are gone.

    Several of one thing (other images, another precision) are told apart by their Job; PurityError where that is the
    same, too.
    """
    pairs: list[Pair] = []
    before, after = _by_identity(old), _by_identity(new)
    for identity, these in after.items():
        those = before.pop(identity, {})
        pairs += [(those.pop(key), these.pop(key)) for key in list(these) if key in those]
        if len(those) == len(these) == 1:
            pairs.append((those.popitem()[1], these.popitem()[1]))
        pairs += [*((None, found) for found in these.values()), *((found, None) for found in those.values())]
    return pairs + [(found, None) for those in before.values() for found in those.values()]


def nights(folder: Path) -> tuple[Path | None, Path]:
    """The newest night in a folder of nights (`2024-05-31`), and before it the newest earlier one that has results."""
    dated = sorted((path for path in _folders(folder) if _is_date(path.name)), key=lambda path: path.name)
    if not dated:
        raise PurityError(f"{folder} holds no nights: folders of results that are named by date, as 2024-05-31.")
    *earlier, newest = dated
    return next((night for night in reversed(earlier) if any(night.rglob(store.STATES))), None), newest


def _folders(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()


def _is_date(name: str) -> bool:
    with suppress(ValueError):
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", name) and date.fromisoformat(name))
    return False


def _by_identity(found: Iterable[Found]) -> dict[tuple[str, ...], dict[str, Found]]:
    groups: dict[tuple[str, ...], dict[str, Found]] = {}
    for one in found:
        group = groups.setdefault(tuple(getattr(one.result, name) for name in IDENTITY), {})
        other = group.setdefault(one.result.job.key(), one)
        if other is not one:
            raise PurityError(f"{other.folder} and {one.folder} are results of the same job: give one of them.")
    return groups
