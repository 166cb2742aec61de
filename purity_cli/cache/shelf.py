"""All the caches in a folder: what they hold, and their removal."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from purity_cli.cache.rows import ABOUT, KEY_LENGTH, MARKS, decoder, read_about, remove
from purity_cli.errors import PurityError
from purity_cli.plan import Preprocessing

ABANDONED = 60
"""Seconds after which an unfinished folder is a dead process's."""


@dataclass(frozen=True)
class Entry:
    """One cache."""

    key: str
    dataset: str
    """Empty where the cache is damaged."""
    pixels: str
    """Its preprocessing."""
    present: int
    images: int
    bytes: int
    """On disk."""
    used: float
    """Last, in seconds since 1970."""
    usable: bool
    """Whether this installation would use it: False where it is damaged or of another decoder."""

    def named(self, name: str) -> bool:
        """Whether a user means this one by `name`."""
        return bool(name) and (name == self.dataset or self.key.startswith(name))


def entries(root: Path) -> list[Entry]:
    """Every cache in `root`, the one used last first."""
    try:
        folders = root.iterdir() if root.exists() else ()
        found = [_entry(folder) for folder in folders if re.fullmatch(f"[0-9a-f]{{{KEY_LENGTH}}}", folder.name)]
    except OSError as error:
        raise PurityError(f"Cannot look through {root} ({error.strerror}): give --cache another folder.") from None
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def clear(root: Path, chosen: Sequence[Entry]) -> None:
    """Delete these caches, and what killed processes left behind."""
    try:
        for entry in chosen:
            remove(root / entry.key)
        for left in root.glob(f".{'?' * KEY_LENGTH}.*"):
            if left.suffix == ".gone" or time.time() - left.stat().st_mtime > ABANDONED:
                remove(left)
    except OSError as error:
        raise PurityError(f"Cannot delete all of {root} ({error.strerror}): delete it by hand.") from None


def _entry(folder: Path) -> Entry:
    about = read_about(folder)
    space = sum(file.stat().st_blocks * 512 for file in folder.iterdir()) if folder.is_dir() else 0
    if about is None:
        return Entry(folder.name, "", "damaged", 0, 0, space, folder.stat().st_mtime, usable=False)
    identity = about["identity"]
    named = {name: identity[name] for name in ("resize", "crop", "interpolation") if identity[name]}
    return Entry(
        key=folder.name,
        dataset=about["dataset"],
        pixels=Preprocessing.model_validate(named).describe().removesuffix(", not normalised"),
        present=int(np.count_nonzero(np.fromfile(folder / MARKS, np.uint32))),
        images=identity["images"],
        bytes=space,
        used=(folder / ABOUT).stat().st_mtime,
        usable=identity["decoder"] == decoder(),
    )
