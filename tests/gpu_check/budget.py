"""How long a part may take, and how long its pieces took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

AT_LEAST = 0.2
"""Seconds of work between two events: below, the clock and the launches are what is measured."""


class OutOfTime(BaseException):
    """A part's time is over. No Exception, since a suite of jobs goes on after those."""


class Budget:
    """Counts down `seconds`."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._start = clock()

    @property
    def spent(self) -> float:
        return self._clock() - self._start

    def check(self) -> None:
        """Raise OutOfTime when it is over."""
        if self.spent >= self.seconds:
            raise OutOfTime


@dataclass(frozen=True)
class Contender:
    """Work to be timed: `step`, over and over, inside what `around` sets up, which is not timed."""

    step: Callable[[], object]
    around: Callable[[], AbstractContextManager[object]] = nullcontext


def seconds_per_step(contender: Contender, device: torch.device, steps: int) -> float:
    """Mean of `steps` steps; on a GPU between two events, so that the device's time counts and not the launches'."""
    with contender.around():
        if device.type != "cuda":
            start = time.perf_counter()
            for _ in range(steps):
                contender.step()
            return (time.perf_counter() - start) / steps
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(steps):
            contender.step()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000 / steps


def enough_steps(contender: Contender, device: torch.device, at_least: float) -> int:
    """How many steps fill `at_least` seconds; the first ones, in which libraries load and kernels are chosen, apart."""
    for _ in range(2):
        once = seconds_per_step(contender, device, 1)
    return max(1, round(at_least / max(once, 1e-6)))


def in_turn(
    contenders: Mapping[str, Contender],
    device: torch.device,
    budget: Budget,
    *,
    rounds: int,
    at_least: float = AT_LEAST,
) -> dict[str, float]:
    """Median seconds per step of each: every round runs all of them, since clocks and heat drift. OutOfTime."""
    steps = {}
    for name, contender in contenders.items():
        budget.check()
        steps[name] = enough_steps(contender, device, at_least)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            budget.check()
            times[name].append(seconds_per_step(contender, device, steps[name]))
    return {name: statistics.median(values) for name, values in times.items()}
