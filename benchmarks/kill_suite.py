"""Killed again and again, a suite, a training and a cache being filled end as if they had not been:
`make kill-suite ARGS='[KILLS [SEED [WORK ...]]]'`, some minutes for 100.

Each runs once undisturbed, and then again and again with SIGKILL at random instants (from a seed). Now and then it may
come to its end, and once more when its share of the kills has struck: all its files but the lock must then be those of
the undisturbed run, times aside, and nothing else may lie there. Runs are forks of a process that has imported
everything.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from benchmarks.attack.stage import Stage
from benchmarks.attack.world import CLASSES, NET, PIXELS, picture
from purity_cli import locks, store

OWN = """

class Own(Net):
    pretrained_cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)}


def own():
    return Own()
"""
SUITE = """
defaults:
  {dataset: photos/val, mean: [0, 0, 0], std: [1, 1, 1], resize: [32, 32], crop: none, batch_size: 2,
   layers: "conv1,conv2", metrics: "rankme,alpha-req,saturation"}
models: [{model: "net.py:own"}, {model: "net.py:own", per_class: 3}, {model: "net.py:own", layers: conv2}]
"""
WORKS: dict[str, Sequence[str]] = {
    "suite": ("bench", "suite.yaml", "--workers", "1", "--cache", "cache", "-o", "out"),
    "train": ("train", "-m", "net.py:own", "-d", "photos", "--epochs", "6", "--checkpoints", "1,2,4,6", "-b", "4",
              "--workers", "1", "--device", "cpu", "-o", "out"),
    "cache": ("cache", "build", "-m", "net.py:own", "-d", "photos", *PIXELS, "-l", "conv1", "--workers", "1",
              "--cache", "cache"),
}  # fmt: skip
"""What is killed, by name."""
TIMES = ("seconds", "images_per_second", "started")
TO_ITS_END = 0.2
"""How often a run is left alone between two kills."""


def prepare(folder: Path) -> None:
    """What the works need, from a seed."""
    folder.mkdir()
    (folder / "net.py").write_text(NET + OWN)
    (folder / "suite.yaml").write_text(SUITE)
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for name in CLASSES:
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                picture(rng).save(folder / "photos" / split / name / f"{i}.png")


def contents(folder: Path) -> dict[str, Any]:
    """Every file that a work left, times taken out."""
    found: dict[str, Any] = {}
    for path in sorted(path for place in ("out", "cache") for path in (folder / place).rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name == store.STATES:
            with safe_open(path, framework="numpy") as file:
                metadata = {
                    key: json.loads(text)
                    for key, text in file.metadata().items()
                    if not key.startswith(("format", "digest"))
                }
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            metadata["result"]["provenance"] = timeless(metadata["result"]["provenance"])
            metadata["states"] = timeless(metadata["states"])
            # Sums of floating point numbers may differ in their last digits, and what is computed of them.
            metadata = rounded(metadata)
            found[name] = (metadata, {key: (a.dtype.str, a.shape, rounded(a.tolist())) for key, a in arrays.items()})
            assert all(np.isfinite(a).all() for a in arrays.values())
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            found[name] = rounded([[number(cell) for cell in line.split(",")] for line in path.read_text().split("\n")])
        elif path.suffix == ".pt":
            found[name] = repr(torch.load(path, weights_only=True))
        elif path.suffix == ".html":  # it shows images/s and when; its numbers are those of the other files
            found[name] = path.read_bytes().rstrip().endswith(b"</html>")
        elif path.name != locks.LOCK:
            found[name] = path.read_bytes()
    return found


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def rounded(value: Any) -> Any:
    """Floating point numbers to ten digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return f"{value:.10g}" if isinstance(value, float) else value


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMES}


def save_often() -> None:
    """Have a suite keep what it has after every block, so that most kills strike between or in the middle of two."""
    init = store.Unfinished.__init__

    def often(self: store.Unfinished, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **{**named, "every": 0.0})

    store.Unfinished.__init__ = often  # type: ignore[method-assign]


class Killed:
    """One work in its folder, undisturbed once, and then not."""

    def __init__(self, name: str, place: Path, seed: int) -> None:
        self.name, self.command, self.folder = name, WORKS[name], place / name
        self.rng = Random(f"{seed}/{name}")
        prepare(self.folder)
        self.stage = Stage(self.folder, self.folder, self.rng)
        began = time.monotonic()
        assert self.run(None) == 0, f"undisturbed, {name} fails: {self.stage.fallen}"
        self.seconds = time.monotonic() - began
        self.expected = contents(self.folder)
        self.tally = Counter[str]()
        self.clear()

    def clear(self) -> None:
        for place in ("out", "cache"):
            shutil.rmtree(self.folder / place, ignore_errors=True)

    def run(self, after: float | None) -> int | None:
        """The exit code of a run, that of a kill where one struck it after so many seconds."""
        return self.stage.run(*self.command, kill=None if after is None else (signal.SIGKILL, after)).code

    def kill(self, times: int) -> None:
        """Have so many kills strike, and compare; AssertionError where anything differs."""
        struck, fresh = 0, True
        while struck < times:
            after = None if self.rng.random() < TO_ITS_END else self.rng.uniform(0.2, 1.0) * self.seconds
            began = time.monotonic()
            code = self.run(after)
            if code == -signal.SIGKILL:
                struck, fresh = struck + 1, False
                files = [path for place in ("out", "cache") for path in (self.folder / place).rglob("*")]
                left = [path for path in files if path.is_file() and path.name != locks.LOCK]
                self.tally["within" if left else "before anything was written"] += 1
                continue
            assert code == 0, f"{self.name} ends with {code} after {struck} kills: {self.stage.fallen}"
            if fresh:  # a machine that others use as well is not always as fast
                self.seconds = time.monotonic() - began
            self.compare()
            fresh = True
        assert self.run(None) == 0, f"{self.name} fails: {self.stage.fallen}"
        self.compare()
        assert not self.stage.fallen, self.stage.fallen

    def compare(self) -> None:
        found = contents(self.folder)
        assert sorted(found) == sorted(self.expected), f"{self.name}: {set(found) ^ set(self.expected)}"
        for name, content in self.expected.items():
            assert found[name] == content, f"{self.name}: {name} differs: {self._difference(found[name], content)}"
        self.tally["ends, all files equal"] += 1
        self.clear()

    @staticmethod
    def _difference(one: Any, other: Any) -> str:
        if isinstance(one, dict) and isinstance(other, dict):
            return ", ".join(f"{k} is {one.get(k)}, not {v}" for k, v in other.items() if one.get(k) != v)[:500]
        return f"{str(one)[:200]}, not {str(other)[:200]}"


def main(kills: int = 100, seed: int = 0, *names: str) -> None:
    from benchmarks.attack.__main__ import warm

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    warm()
    save_often()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        names = names or tuple(WORKS)
        for k, name in enumerate(names):
            work = Killed(name, Path(place), seed)
            share = kills // len(names) + (k < kills % len(names))
            work.kill(share)
            said = ", ".join(f"{count} {what}" for what, count in sorted(work.tally.items()))
            print(f"{name}: {share} kills: {said}; {len(work.expected)} files", flush=True)
    print(f"{kills} kills in {time.monotonic() - began:.0f} s, and all files equal (seed {seed})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])  # type: ignore[arg-type]
