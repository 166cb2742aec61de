"""Scoring blocks that are read in a way of a test's or a benchmark's own, instead of those of `run.pixels_of`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence

import pytest

from purity_cli import run
from purity_cli.pixels import Block
from purity_cli.results import Result


class _Given:
    def __init__(self, blocks: Iterable[Block], count: int) -> None:
        self.given, self.count = blocks, count

    def __len__(self) -> int:
        return self.count

    def blocks(self, numbers: Sequence[int]) -> Generator[Block]:
        yield from self.given


def score(job: run.Resolved, blocks: Iterable[Block]) -> Result:
    """`run.score` over these blocks, which must be all of the job's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "pixels_of", lambda job, **options: _Given(blocks, -(-len(job.selection) // job.batch_size)))
        return run.score(job, workers=1)
