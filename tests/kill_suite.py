"""A suite killed again and again ends as if it had not been: `python -m tests.kill_suite [KILLS]`, some twenty minutes.

Runs a suite undisturbed, then the same suite with SIGKILL at random instants (from a fixed seed), each followed by a
start, until KILLS have struck, and once more to its end. All files but the lock must then be equal, times aside.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

import purity_cli

SUITE = """
defaults: {weights: none, batch_size: 4, metrics: "rankme,alpha-req,saturation"}
models: [tiny_vgg_10, {model: tiny_vgg, limit: 300}, {model: resnet18_cifar, limit: 60}]
"""
# Checkpoints after every block, so that most kills strike between or in the middle of two.
PROGRAM = """
import sys
from pathlib import Path
from purity_cli.suite.bench import Bench
from purity_cli.suite import read
outcomes = Bench(read(Path("suite.yaml")), Path("results"), workers=2, cache=Path("cache"), every=0.0).run()
sys.exit("; ".join(outcome.error for outcome in outcomes if outcome.error) or None)
"""
TIMES = ("seconds", "images_per_second", "started")


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(folder.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=folder, env=environment, start_new_session=True)


def contents(folder: Path) -> dict[str, Any]:
    """Every file under `results`, times taken out."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "results").rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            continue
        if path.suffix == ".safetensors":
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
        elif path.name != ".lock":
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


def main(kills: int = 20, seed: int = 0) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        # A copy, so that nothing changes under a run of half an hour.
        shutil.copytree(Path(purity_cli.__file__).parent, Path(place, "purity_cli"))
        calm, wild = Path(place, "calm"), Path(place, "wild")
        for folder in (calm, wild):
            folder.mkdir()
            (folder / "suite.yaml").write_text(SUITE)
        began = time.monotonic()
        assert start(calm).wait() == 0
        took = time.monotonic() - began
        expected = contents(calm)
        print(f"undisturbed: {took:.0f} s, {len(expected)} files", flush=True)
        struck, unfinished = 0, 0
        while struck < kills:
            process = start(wild)
            try:
                code = process.wait(timeout=rng.uniform(0.2, 1.0) * took)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                struck += 1
                partial = len(list((wild / "results").glob("*/partial-*.safetensors")))
                unfinished += partial
                finished = len(list((wild / "results").glob("*/states.safetensors")))
                print(f"kill {struck}: {finished} jobs finished, {partial} unfinished", flush=True)
                continue
            assert code == 0, code
            assert contents(wild) == expected, "finished between two kills, and differs"
            took = max(5.0, 0.9 * took)  # the machine has become faster
            print("finished between two kills, equal; all over again", flush=True)
            for path in (wild / "results").glob("*/*"):
                path.unlink()
        assert start(wild).wait() == 0
        found = contents(wild)
        assert sorted(found) == sorted(expected), set(found) ^ set(expected)
        for name, content in expected.items():
            assert found[name] == content, f"{name} differs"
        print(f"{kills} kills, {unfinished} of them within a job: all {len(expected)} files are equal")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
