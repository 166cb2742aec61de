"""Which of a suite's jobs are this process's, where no locks can tell: `--shard`, and what a Slurm array says of it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from purity_cli.errors import PurityError


class Shard(NamedTuple):
    """One of `of` shares of a suite's jobs, from 1."""

    number: int
    of: int

    def has(self, place: int) -> bool:
        """Whether the job at this place of the suite, from 0, is of this share: of every `of` jobs, one."""
        return place % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard(1, 1)


def parse(text: str) -> Shard:
    """`3/8`; PurityError for anything else."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    shard = Shard(*map(int, found.groups())) if found else WHOLE
    if not found or not 1 <= shard.number <= shard.of:
        raise PurityError(f"--shard {text} is none: write I/N with I from 1 to N, as 3/8 for the third of eight.")
    return shard


def of_this_task() -> Shard | None:
    """The share of this task of a Slurm array, whose numbers may begin anywhere; None outside of one.

    PurityError where its numbers have gaps, so that no place among the tasks follows from one.
    """
    place = _number("SLURM_ARRAY_TASK_ID")
    count = _number("SLURM_ARRAY_TASK_COUNT")
    if place is None or count is None:
        return None
    least, step = _number("SLURM_ARRAY_TASK_MIN") or 0, _number("SLURM_ARRAY_TASK_STEP") or 1
    most = _number("SLURM_ARRAY_TASK_MAX")
    before, off = divmod(place - least, step)
    if off or not 0 <= before < count or (most is not None and most != least + step * (count - 1)):
        raise PurityError(
            f"This is task {place} of a Slurm array of {count} whose numbers are not evenly spaced: give --shard I/N, "
            "or submit the array without gaps, as --array=1-8."
        )
    return Shard(before + 1, count)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    return int(text) if text.isascii() and text.isdecimal() else None
