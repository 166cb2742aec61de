"""Where one attack happens: a folder, and purity run in it by forking a process that has imported everything."""

from __future__ import annotations

import csv
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

SIGNALS = {signal.SIGINT, signal.SIGTERM}
HANG = 60.0
"""Seconds; the longest command here takes three on two busy cores."""

LEFT_OUT = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PURITY_CACHE",
    "XDG_CACHE_HOME",
)  # fmt: skip
FORBIDDEN = re.compile(
    r"Traceback \(most recent call last\)|Exception ignored in|Error: unexpected (\w+)", re.MULTILINE
)

Rows = dict[tuple[str, str], dict[str, str]]
"""Of a purity.csv: by layer and threshold."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    arguments: tuple[str, ...]
    code: int | None
    """None where it hung, negative where a signal ended it."""
    out: str
    err: str
    seconds: float


class Stage:
    """One attack's folder. `run` starts purity in it, and notes what is wrong of any command; kinds note the rest."""

    def __init__(self, folder: Path, world: Path, rng: Random) -> None:
        self.folder, self.world, self.rng = folder, world, rng
        self.fallen: list[str] = []
        self.tried: list[str] = []
        self._number = 0

    def fell(self, what: str) -> None:
        self.fallen.append(what)

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str | None] | None = None,
        stdout: str = "file",
        stderr: str = "file",
        kill: tuple[int, float] | None = None,
        exits: Sequence[int] = (0, 1, 2, 3, 4),
    ) -> Ran:
        """Run purity to its end, or to a signal after some seconds; what is said must be right unless it was killed."""
        with self.started(*arguments, env=env, stdout=stdout, stderr=stderr) as wait:
            ran = wait(kill)
        self.judge(ran, (*exits, *((130, -kill[0]) if kill else ())))
        return ran

    @contextmanager
    def started(
        self,
        *arguments: str,
        env: Mapping[str, str | None] | None = None,
        stdout: str = "file",
        stderr: str = "file",
    ) -> Iterator[Callable[[tuple[int, float] | None], Ran]]:
        """Start purity; a function that waits for its end, or sends a signal first."""
        self._number += 1
        self.tried.append("purity " + " ".join(arguments))
        names = [str(self.folder / f".{name}{self._number}") for name in ("out", "err")]
        sys.stdout.flush()
        began = time.monotonic()
        # A signal that comes before purity could see it would be the attack's own.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child = os.fork()
        if child == 0:
            _become(self.folder, arguments, env or {}, (names[0], stdout), (names[1], stderr))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        handle = os.pidfd_open(child)
        over: list[int] = []

        def ended(seconds: float) -> bool:
            if not over and select.select([handle], [], [], max(0.0, seconds))[0]:
                over.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return bool(over)

        def wait(kill: tuple[int, float] | None) -> Ran:
            if kill and not ended(kill[1] - (time.monotonic() - began)):
                os.kill(child, kill[0])
            code = over[0] if ended(HANG - (time.monotonic() - began)) else None
            out, err = (Path(name).read_text(errors="replace") if Path(name).exists() else "" for name in names)
            return Ran(arguments, code, out, err, time.monotonic() - began)

        try:
            yield wait
        finally:
            if not ended(0):
                os.killpg(child, signal.SIGKILL)
                ended(HANG)
            os.close(handle)

    def judge(self, ran: Ran, exits: Sequence[int]) -> None:
        """Note what is wrong of any command."""
        errors = [line for line in ran.err.splitlines() if line.startswith("Error: ")]
        found = FORBIDDEN.search(ran.err + ran.out)
        if ran.code is None:
            self.fell("hangs")
        elif found:
            last = next((line for line in reversed(ran.err.splitlines()) if line.strip()), "")
            self.fell(f"{found[0].replace('Error: ', '')}: {last[:200]}")
        elif ran.code not in exits:
            self.fell(f"exit code {ran.code} ({(ran.err.strip().splitlines() or [''])[-1][:160]})")
        elif ran.code in (1, 2) and len(errors) != 1 and os.path.exists(self.folder / f".err{self._number}"):
            self.fell(f"exit code {ran.code} with {len(errors)} lines of Error:")

    def rows(self, folder: str = "out") -> Rows:
        """A result's numbers; empty where there are none."""
        return rows(self.folder / folder)

    def same(self, found: Rows, expected: Rows, what: str = "numbers differ from an undisturbed run's") -> None:
        if not found:
            self.fell("exit code 0 without a result")
        elif found != expected:
            key = next(key for key in {**expected, **found} if found.get(key) != expected.get(key))
            one, other = (numbers.get(key, {}) for numbers in (found, expected))
            name = next((name for name in {**one, **other} if one.get(name) != other.get(name)), "")
            self.fell(f"{what}: {name} of {key[0]} at {key[1]} is {one.get(name)}, not {other.get(name)}")

    def record(self, folder: str = "out") -> dict[str, Any]:
        path = self.folder / folder / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def link(self, *names: str) -> None:
        """Have files and folders of the world here, as links: nothing that is run writes into them."""
        for name in names:
            (self.folder / name).symlink_to(self.world / name)


def rows(folder: Path) -> Rows:
    path = folder / "purity.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    kept = ("purity", "activations", "n_images", "top1", "live", "standard_error", "epoch")
    return {(line["layer"], line["threshold"]): {k: line[k] for k in kept if k in line} for line in lines}


def counts(found: Rows) -> Rows:
    """The firings alone, which add over images."""
    return {key: {"activations": numbers["activations"]} for key, numbers in found.items()}


def _become(
    folder: Path, arguments: Sequence[str], env: Mapping[str, str | None], *outputs: tuple[str, str]
) -> NoReturn:
    """In a fresh fork: be purity with these arguments, and end with its exit code."""
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.setsid()
        os.chdir(folder)
        for name in LEFT_OUT:
            os.environ.pop(name, None)
        os.environ |= {"NO_COLOR": "1", "PURITY_CACHE": str(folder / "cache")}
        for name, value in env.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # Closing comes last, for the next file that is opened takes the number.
        for number, (name, how) in enumerate(outputs, 1):
            sink = _sink(name, how)
            os.dup2(sink, number)
            os.close(sink)
        for number, (_, how) in enumerate(outputs, 1):
            if how == "closed":
                os.close(number)
        encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
        for name, number in (("stdout", 1), ("stderr", 2)):
            closed = outputs[number - 1][1] == "closed"
            setattr(sys, name, None if closed else open(number, "w", encoding=encoding, closefd=False))  # noqa: SIM115
        sys.argv = ["purity", *arguments]
        from purity_cli.__main__ import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def _sink(name: str, how: str) -> int:
    if how == "closed":
        return os.open(os.devnull, os.O_WRONLY)
    if how == "full":
        return os.open("/dev/full", os.O_WRONLY)
    if how == "broken":
        reading, writing = os.pipe()
        os.close(reading)
        return writing
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
