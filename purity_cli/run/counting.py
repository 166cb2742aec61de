"""One process's share of a job: blocks go through the engine, and what they gave is saved now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from purity_cli.engine import Engine, NonFinite
from purity_cli.machine import device_name, versions
from purity_cli.pixels import Block, normalise
from purity_cli.run.interrupts import PATIENCE, Interrupts
from purity_cli.run.parts import Checkpoint, Part
from purity_cli.run.ranks import Ranks
from purity_cli.run.resolving import Plan, Warn

Progress = Callable[[int, int], None]

# Rounding differs between them, so that a job is not finished with others than it was begun with.
ROUNDING = ("purity", "torch", "torchvision", "pillow")


class Share:
    """This process's share of a job.

    `part` is what it has so far; that of rank 0 begins with what earlier runs left in `folder`. `peers` holds the
    other measures of the deepest layer, where they were asked for.
    """

    def __init__(self, plan: Plan, folder: Path | None, every: float, ranks: Ranks) -> None:
        self.plan, self.ranks = plan, ranks
        with_what = {name: version for name, version in versions().items() if name in ROUNDING}
        device = "cpu" if plan.device.type == "cpu" else device_name(plan.device)
        inputs = {**plan.inputs, "batch_size": plan.batch_size, "device": device, **with_what}
        self.checkpoint = Checkpoint(folder, inputs, rank=ranks.rank, every=every)
        self.part = Part(batch_size=plan.batch_size, started=datetime.now(UTC).isoformat(timespec="seconds"))
        self.peers: dict[str, float] = {}
        self._before: Part | None = None
        """What was whole some time ago: an interruption does not wait for a block that takes long."""
        self._taken = -math.inf

    def restore(self, warn: Warn) -> Part:
        """Begin with what earlier runs left, on rank 0; what there was, without its counts."""
        if self.ranks.first:
            self.part = self.checkpoint.restore(self.part, warn)
        return self.part.heading()

    def count(self, blocks: Iterable[Block], before: Part, peers: Sequence[str], progress: Progress) -> Part:
        """Score these blocks, at first at the batch size that `before` came to; what there is, without its counts.

        Whatever ends this early, what was done by then is saved if it is whole. Raises NonFinite, naming the image.
        """
        plan, job = self.plan, self.plan.job
        engine = Engine(
            plan.network.module,
            [tap.module for tap in plan.taps],
            normalise=partial(normalise, preprocessing=plan.preprocessing),
            thresholds=job.thresholds,
            groups=job.groups,
            device=plan.device,
            precision=job.precision,
            batch_size=before.batch_size,
            pooled=plan.deepest.module if peers else None,
        )
        done: dict[int, tuple[tuple[str, str], ...]] = {}
        base, clock, whole = self.part, time.monotonic(), True
        images = self._images(before)

        def now() -> Part:
            """As of the last block; NonFinite where that would keep an image that must not count."""
            engine.check()
            skipped = {number: images for number, images in done.items() if images}
            part = base + Part.of(engine, done, skipped)
            return replace(part, seconds=base.seconds + time.monotonic() - clock)

        with Interrupts(self._save_before) as interrupts, engine:
            try:
                for block in blocks:
                    self.ranks.check()
                    whole = False
                    engine.add(block)
                    done[block.number] = block.skipped
                    whole = True
                    images += self.ranks.size * (len(block.positions) + len(block.skipped))
                    progress(min(images, len(plan.selection)), len(plan.selection))
                    interrupts.check()
                    if self.checkpoint.due():
                        self.checkpoint.save(now())
                        self._before, self._taken = None, time.monotonic()  # never over what is newer
                    # On a GPU this would wait for the device, and blocks are short there.
                    elif plan.device.type == "cpu" and time.monotonic() - self._taken > PATIENCE:
                        self._before, self._taken = now().copy(), time.monotonic()
                self.part = now()
            except NonFinite as error:
                image = plan.source.paths[plan.selection[error.position]]
                raise NonFinite(error.where, error.position, image) from None
            except BaseException:
                if not whole:
                    self._save_before()
                elif done:
                    with suppress(NonFinite):
                        self.checkpoint.save(now())
                raise
        if engine.spectrum is not None:
            self.peers = {name: float(value) for name, value in engine.spectrum.compute().items()}
        return self.part.heading()

    def _save_before(self) -> bool:
        if self._before is not None:
            self.checkpoint.save(self._before)
        return self._before is not None

    def _images(self, part: Part) -> int:
        size, last = self.plan.batch_size, len(self.plan.selection)
        return sum(min(size, last - number * size) for number in part.blocks)
