"""One process's share of a job: blocks go through the engine, and what they gave is saved now and then."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial, reduce
from pathlib import Path

import numpy as np

from purity_cli import taps
from purity_cli.engine import Engine, NonFinite
from purity_cli.errors import PurityError
from purity_cli.machine import device_name
from purity_cli.models import failed
from purity_cli.pixels import Block, normalise
from purity_cli.run.interrupts import PATIENCE, Interrupts
from purity_cli.run.ranks import Ranks
from purity_cli.run.resolving import Resolved
from purity_cli.states import States
from purity_cli.store import Unfinished

Progress = Callable[[int, int], None]


class JobRunner:
    """This process's share of a job; `states` is what it has so far, on rank 0 with what earlier runs left."""

    def __init__(self, job: Resolved, folder: Path | None, every: float, ranks: Ranks) -> None:
        self.job, self.ranks = job, ranks
        # These round otherwise, and a job is finished with what it was begun with; a finished result goes by any.
        device = "cpu" if job.device.type == "cpu" else device_name(job.device)
        identity = {**job.identity, "images to a pass": job.batch_size, "processor": device}
        self.unfinished = Unfinished(folder, identity, job.blocks(), rank=ranks.rank, every=every)
        self.states = States(batch_size=job.batch_size, started=datetime.now(UTC).isoformat(timespec="seconds"))
        self._before: States | None = None
        """What was whole some time ago: an interruption does not wait for a block that takes long."""
        self._next = -math.inf
        """When that is to be taken again."""

    def restore(self) -> States:
        """Begin with what earlier runs left, on rank 0; what there was, without its arrays."""
        if self.ranks.first:
            self.states = self.unfinished.restore(self.states)
        return self.states.heading()

    def count(self, blocks: Iterable[Block], before: States, progress: Progress) -> States:
        """Score these blocks, at first at the batch size that `before` came to; what there is, without its arrays.

        Whatever ends this early, what was done by then is saved if it is whole. Raises NonFinite, naming the image.
        """
        job = self.job
        engine = Engine(
            job.network.module,
            {tap.module: tap.layout for tap in job.taps},
            normalise=partial(normalise, preprocessing=job.preprocessing),
            thresholds=job.job.thresholds,
            groups=job.job.groups,
            device=job.device,
            precision=job.precision,
            batch_size=before.batch_size,
            metrics=job.metrics,
            memory_format=job.network.memory_format,
        )
        done: dict[int, tuple[tuple[str, str], ...]] = {}
        base, clock, whole = self.states, time.monotonic(), True
        images = self._images(before)

        def now() -> States:
            """As of the last block; NonFinite where that would keep an image that must not count."""
            engine.check()
            skipped = {number: images for number, images in done.items() if images}
            states = base + States.of(engine, done, skipped)
            return replace(states, seconds=base.seconds + time.monotonic() - clock)

        with Interrupts(self._save_before) as interrupts, engine:
            try:
                for block in blocks:
                    self.ranks.check()
                    whole = False
                    engine.add(block)
                    done[block.number] = block.skipped
                    whole = True
                    images += self.ranks.size * (len(block.positions) + len(block.skipped))
                    progress(min(images, len(job.selection)), len(job.selection))
                    interrupts.check()
                    if self.unfinished.due():
                        self.unfinished.save(now())
                        self._before = None  # never over what is newer
                    # On a GPU this would wait for the device, and blocks are short there.
                    elif job.device.type == "cpu" and time.monotonic() > self._next:
                        self._take_before(now)
                self.states = now()
            except NonFinite as error:
                image = job.source.paths[job.selection[error.position]]
                raise NonFinite(error.where, error.position, image) from None
            except BaseException as error:
                if not whole:
                    self._save_before()
                elif done:
                    with suppress(NonFinite):
                        self.unfinished.save(now())
                if isinstance(error, Exception) and not isinstance(error, PurityError) and _in_taps(error):
                    raise failed(job.network, error) from error
                raise
        return self.states.heading()

    def _take_before(self, now: Callable[[], States]) -> None:
        began = time.monotonic()
        self._before = now().copy()
        took = time.monotonic() - began
        # Second moments can be large: no more than a hundredth of the time goes into copies.
        self._next = began + max(PATIENCE, 100 * took)

    def _save_before(self) -> bool:
        # What was saved since then must not give way to what there was then.
        if self._before is not None and len(self._before.blocks) > self.unfinished.blocks:
            self.unfinished.save(self._before)
        return self.unfinished.blocks > 0

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

    def _images(self, states: States) -> int:
        size, last = self.job.batch_size, len(self.job.selection)
        return sum(min(size, last - number * size) for number in states.blocks)


def _in_taps(error: Exception) -> bool:
    """Whether it was raised while the network ran."""
    return any(frame.filename == taps.__file__ for frame in traceback.extract_tb(error.__traceback__))
