"""Epochs from the names of checkpoints, and names in the order of the numbers in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Whole words: not the end of `step` or `sweep`; in `bestEpoch10` a capital begins one. Whole numbers: not 1 of 1.5.
BEFORE = re.compile(r"(?:(?<![A-Za-z])(?i:ep|epochs?)|(?<=[a-z])E(?:p|pochs?))[=:_. -]*(\d+)(?!\d|\.\d)")
AFTER = re.compile(r"(?<![\d.])(\d+)[_. -]*(?:ep|epochs?)(?![A-Za-z])", re.IGNORECASE)
NUMBER = re.compile(r"([A-Za-z]*)[^A-Za-z\d]*(\d+(?:\.\d+)?)")
# What a checkpoint's number is of, where nothing says what it is of.
CHECKPOINTS = {
    "",
    "e",
    "checkpoint",
    "checkpoints",
    "ckpt",
    "model",
    "weights",
    "net",
    "network",
    "state",
    "save",
    "saved",
}


def epochs_of(stems: Sequence[str]) -> tuple[list[int] | None, str | None]:
    """The epochs that file names without suffix tell, in their order, and what is doubtful about that.

    They are the numbers behind the word `ep`, `epoch` or `epochs`, else before it, else the only whole numbers in which
    the names differ. None where there are none, or not one each.

    >>> epochs_of(["sweep_20_epoch2", "sweep_20_epoch10"])
    ([2, 10], None)
    >>> epochs_of(["step=1000-epoch=2", "step=5000-epoch=10"])
    ([2, 10], None)
    """
    for marked in (BEFORE, AFTER):
        rows = [[(match[1], "") for match in marked.finditer(stem)] for stem in stems]
        if all(rows):
            found = _column(rows, alone=True)
            return found and found[0], None
    found = _column([[(match[2], match[1].lower()) for match in NUMBER.finditer(stem)] for stem in stems])
    if found is None:
        return None, None
    epochs, word = found
    if word in CHECKPOINTS:
        return epochs, None
    return epochs, f"No name says the epoch: it is taken for the number behind {word!r}."


def _column(rows: Sequence[Sequence[tuple[str, str]]], alone: bool = False) -> tuple[list[int], str] | None:
    """The numbers, and the word before them, of the only place in which the rows differ; `alone`, of a single row's
    last. None where two are equal."""
    if not rows or not all(rows) or len({len(row) for row in rows}) > 1:
        return None
    columns = [column for column in zip(*rows, strict=True) if len({float(number) for number, _ in column}) > 1]
    if alone and len(rows) == 1:
        columns = [(rows[0][-1],)]
    if len(columns) != 1 or not all(number.isdecimal() for number, _ in columns[0]):
        return None
    numbers = [int(number) for number, _ in columns[0]]
    return (numbers, columns[0][0][1]) if len(set(numbers)) == len(numbers) else None


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts the numbers in names as numbers.

    >>> sorted(["run10", "run9"], key=natural)
    ['run9', 'run10']
    """
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
