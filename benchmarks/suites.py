"""Four processes on one suite of twelve jobs, one killed on the way, beside one that does one job after another:
`make benchmark-suites ARGS='[IMAGES] [PROCESSES] [SIDE]'`, some five minutes on two free cores.

IMAGES of SIDE x SIDE are those of a job, enough that a job takes long beside the start of a process, some five
seconds. On a machine with other work the seconds on the clock say little; those of the processors do, for they are what
sharing costs.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from purity_cli import store
from purity_cli.locks import Holder
from purity_cli.suite import Task, read, status

T = TypeVar("T")
JOBS = 12


class Took(NamedTuple):
    clock: float
    processors: float


def start(folder: Path, output: str, log: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PURITY_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    command = [sys.executable, "-m", "purity_cli", "bench", "suite.yaml", "-o", output, "--workers", "1"]
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)


def timed(run: Callable[[], T]) -> tuple[T, Took]:
    def now() -> Took:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Took(time.monotonic(), used.ru_utime + used.ru_stime)

    before = now()
    value = run()
    return value, Took(*(after - first for after, first in zip(now(), before, strict=True)))


def alone(folder: Path) -> None:
    assert start(folder, "alone", folder / "alone.txt").wait() == 0, (folder / "alone.txt").read_text()


def together(folder: Path, processes: int, tasks: list[Task]) -> list[str]:
    """The jobs that were scored to their end, by whichever process."""
    logs = [folder / f"log{number}.txt" for number in range(processes)]
    running = [start(folder, "together", log) for log in logs]
    victim, lost = running[-1], ""
    while not lost:
        time.sleep(1)
        assert all(process.poll() is None for process in running), "ended before the kill: give more IMAGES"
        for one in status.standings(tasks, folder / "together"):
            if one.holder and one.holder.pid == victim.pid and age(one.holder) > 3:
                lost = one.task.name
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    print(f"killed process {processes} in the middle of {lost}", flush=True)
    for process, log in zip(running[:-1], logs, strict=False):
        assert process.wait() == 0, log.read_text()
    scored = [re.findall(r"^\[\d+/\d+\] (\S+): [\d,]+ images", log.read_text(), re.MULTILINE) for log in logs]
    print(f"jobs by process: {', '.join(str(len(by)) for by in scored)}", flush=True)
    return [name for by in scored for name in by]


def age(holder: Holder) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(holder.since)).total_seconds()


def main(images: int = 500, processes: int = 4, side: int = 32) -> None:
    load = os.getloadavg()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = "".join(f"  - {{model: resnet18_cifar, limit: {images + number}}}\n" for number in range(JOBS))
        defaults = f"{{weights: none, batch_size: 4, resize: {side}, crop: {side}}}"
        (folder / "suite.yaml").write_text(f"defaults: {defaults}\nmodels:\n{jobs}")
        tasks = read(folder / "suite.yaml").tasks()
        _, one = timed(lambda: alone(folder))
        print(f"one process: {one.clock:.0f} s, {one.processors:.0f} s of processor", flush=True)
        scored, many = timed(lambda: together(folder, processes, tasks))
        print(f"{processes} processes: {many.clock:.0f} s, {many.processors:.0f} s of processor", flush=True)
        assert sorted(scored) == sorted(task.name for task in tasks), "a job was scored twice, or not at all"
        for task in tasks:
            a, b = (store.read(folder / output / task.name) for output in ("alone", "together"))
            assert all(np.array_equal(x.counts, y.counts) for x, y in zip(a.layers, b.layers, strict=True)), task.name
    share = min(cores, processes)
    print(f"each of {JOBS} jobs was scored once, to the counts of one process")
    print(
        f"{cores} cores, load {load[0]:.1f} before and {os.getloadavg()[0]:.1f} after: the clock took "
        f"{many.clock / one.clock * share:.2f} x 1/{share} of one after another; the processors "
        f"{many.processors / one.processors:.2f} x as long, with the start of {processes} processes and what was lost"
    )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
