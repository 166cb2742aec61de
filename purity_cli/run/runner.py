"""One process's share of a job: blocks go through the engine, and what they gave is saved now and then."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial, reduce
from itertools import chain, islice
from pathlib import Path
from threading import Lock

import numpy as np

from purity_cli import taps
from purity_cli.engine import Engine, NonFinite
from purity_cli.errors import PurityError
from purity_cli.machine import device_name
from purity_cli.models import check_independent, failed
from purity_cli.pixels import Block, normalise
from purity_cli.run.ranks import Ranks
from purity_cli.run.resolving import Resolved
from purity_cli.states import States
from purity_cli.store import Unfinished

Progress = Callable[[int, int], object]


class JobRunner:
    """This process's share of a job; `states` is what it has so far, on rank 0 with what earlier runs left."""

    def __init__(self, job: Resolved, folder: Path | None, every: float, ranks: Ranks) -> None:
        self.job, self.ranks = job, ranks
        # These round otherwise, and a job is finished with what it was begun with; a finished result goes by any.
        device = "cpu" if job.device.type == "cpu" else device_name(job.device)
        identity = {**job.identity, "images to a pass": job.batch_size, "processor": device}
        self.unfinished = Unfinished(folder, identity, job.images(job.batch_size), rank=ranks.rank, every=every)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self.states = self._base = States(batch_size=job.batch_size, block_size=job.batch_size, started=started)
        self._engine: Engine | None = None
        self._done: dict[int, Block] = {}
        """The blocks that count, without their pixels."""
        self._counted = 0
        """How many images these have."""
        self._began = 0.0
        self._saving = Lock()

    def restore(self) -> States:
        """Begin with what earlier runs left, on rank 0; what there was, without its arrays."""
        if self.ranks.first:
            self.states = self.unfinished.restore(self.states)
        return self.states.heading()

    def count(
        self, blocks: Iterable[Block], before: States, progress: Progress, after_block: Callable[[], None]
    ) -> States:
        """Score these blocks, at first at the batch size that `before` came to; what there is, without its arrays.

        Raises NonFinite, naming the image, and whatever `after_block` does.
        """
        job, total = self.job, len(self.job.selection)
        images = sum(min(job.batch_size, total - number * job.batch_size) for number in before.blocks)
        self._base, self._began = self.states, time.monotonic()
        self._engine = engine = self._make_engine(before.batch_size)
        waiting = iter(blocks)
        try:
            first = list(islice(waiting, 1))
            for block in first:
                self._check_independent(block)
            with engine:
                for block in chain(first, waiting):
                    self.ranks.check()
                    engine.add(block)
                    self._done[block.number] = replace(block, pixels=block.pixels[:0])
                    self._counted += len(block.positions)
                    images += self.ranks.size * (len(block.positions) + len(block.skipped))
                    progress(min(images, total), total)
                    after_block()
                    if self.unfinished.due():
                        self.save()
            self.states = self._now()
        except NonFinite as error:
            image = job.source.paths[job.selection[error.position]]
            raise NonFinite(error.where, error.position, image) from None
        except Exception as error:
            if not isinstance(error, PurityError) and _in_taps(error):
                raise failed(job.network, error) from error
            raise
        return self.states.heading()

    def _check_independent(self, block: Block) -> None:
        """The trial's images are noise: what a network does with real ones shows in the first block of them."""
        job = self.job
        images = normalise(block.pixels.to(job.device), job.preprocessing)
        check_independent(job.network, images.contiguous(memory_format=job.network.memory_format))

    def _make_engine(self, batch_size: int) -> Engine:
        job = self.job
        return Engine(
            job.network.module,
            {tap.module: tap.layout for tap in job.taps},
            normalise=partial(normalise, preprocessing=job.preprocessing),
            thresholds=job.job.thresholds,
            groups=job.job.groups,
            device=job.device,
            precision=job.precision,
            batch_size=batch_size,
            metrics=job.metrics,
            memory_format=job.network.memory_format,
        )

    def save(self) -> bool:
        """Save what is whole; whether anything is saved. Also called from another thread while the main one computes.

        Nothing is saved of a block that is counted in part, nor where counting goes on while the states are copied.
        """
        with self._saving, suppress(NonFinite):
            if self._done and self._is_whole():
                self.unfinished.save(self._now(), self._is_whole)
        return self.unfinished.blocks > 0

    def _is_whole(self) -> bool:
        return self._engine is not None and self._engine.begun == self._counted

    def _now(self) -> States:
        """As of the last block; NonFinite where that would keep an image that must not count."""
        assert self._engine is not None
        self._engine.check()
        skipped = {number: block.skipped for number, block in self._done.items() if block.skipped}
        stamp = self.unfinished.images.stamp
        images = {number: (stamp(number), block.digest) for number, block in self._done.items()}
        states = self._base + States.of(self._engine, self._done, skipped, images, self.job.batch_size)
        return replace(states, seconds=self._base.seconds + time.monotonic() - self._began)

    def total(self, headings: Sequence[States]) -> States:
        """Everybody's states in one; the times are those of rank 0."""
        total = reduce(States.__add__, headings)
        if self.ranks.size == 1:
            return self.states
        mine = {name: (array.shape, array.dtype.str) for name, array in self.states.arrays.items()}
        # A process without a block has no arrays; it adds zeros.
        known = {name: kind for theirs in self.ranks.together(lambda: mine) for name, kind in theirs.items()}
        arrays = {name: self.states.arrays.get(name, np.zeros(*kind)) for name, kind in sorted(known.items())}
        summed = self.ranks.total({**arrays, "tally": self.states.tally}, self.job.device)
        tally = summed.pop("tally")
        return replace(total, arrays=summed, tally=tally, seconds=headings[0].seconds, started=headings[0].started)


def _in_taps(error: Exception) -> bool:
    """Whether it was raised while the network ran."""
    return any(frame.filename == taps.__file__ for frame in traceback.extract_tb(error.__traceback__))
