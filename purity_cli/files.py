"""Paths and text files as users bring them: `~`, names that are no UTF-8, and what other systems put into text; and
what JSON has no word for.
"""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from purity_cli.errors import PurityError

# The longer ones first: the mark of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""How a file begins that says itself how it is written."""

# Whole words: not the end of `step` or `sweep`; in `bestEpoch10` a capital begins one. Whole numbers: not 1 of 1.5.
BEFORE = re.compile(r"(?:(?<![A-Za-z])(?i:ep|epochs?)|(?<=[a-z])E(?:p|pochs?))[=:_. -]*(\d+)(?!\d|\.\d)")
AFTER = re.compile(r"(?<![\d.])(\d+)[_. -]*(?:ep|epochs?)(?![A-Za-z])", re.IGNORECASE)
NUMBER = re.compile(r"([A-Za-z]*)[^A-Za-z\d]*(\d+(?:\.\d+)?)")
# What a checkpoint's number is of, where nothing says what it is of.
CHECKPOINTS = {
    "", "e", "checkpoint", "checkpoints", "ckpt", "model", "weights", "net", "network", "state", "save", "saved",
}  # fmt: skip


def expanded(path: str | Path) -> Path:
    """The path with the user's home for `~`; as it is where nobody knows that home, which pathlib raises for."""
    return Path(os.path.expanduser(path))


def shown(text: str) -> str:
    """A path or name that can be printed and written: bytes in it that are no UTF-8 become `\\xff`.

    >>> shown("caf\\udce9")
    'caf\\\\xe9'
    """
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, as no path has it
        return text.encode("utf-8", "backslashreplace").decode()


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts `shard-2` before `shard-10`.

    >>> sorted(["shard-10", "shard-2"], key=natural)
    ['shard-2', 'shard-10']
    """
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def read_text(path: Path) -> str:
    """What a text file says, without byte order mark, with `\\n` at the end of every line and no empty lines at its
    end. UTF-8, or what its mark says. OSError where it cannot be read, PurityError where it is no such text.
    """
    return to_text(path.read_bytes(), path.name)


def to_text(data: bytes, name: str) -> str:
    """As `read_text`, of bytes that are at hand; `name` is for the message."""
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    encoding = MARKS.get(mark, "utf-8")
    try:
        text = data[len(mark) :].decode(encoding) if encoding == "utf-8" else data.decode(encoding)
    except UnicodeDecodeError as error:
        raise PurityError(
            f"{shown(name)} is no text in UTF-8 (at byte {error.start}): save it again as UTF-8."
        ) from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return "".join(f"{line}\n" for line in lines)


def finite(value: Any) -> Any:
    """JSON knows no NaN: null stands for it."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
