"""Run the attack: prints what was tried and what fell, and exits with 1 where anything did."""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.attack.kinds import KINDS
from benchmarks.attack.planted import PLANTED
from benchmarks.attack.stage import Stage
from benchmarks.attack.world import World, build

SHOWN = 4
"""Examples of each way to fall."""


def warm() -> None:
    """Import what commands import, so that a fork has it; nothing is computed, for threads do not survive a fork."""
    import matplotlib.pyplot
    import pandas
    import rich.progress
    import rich.table
    import scipy.stats
    import timm
    import torchvision

    import purity_cli.cache
    import purity_cli.models
    import purity_cli.run
    from purity_cli.cli import COMMANDS, cli

    for name in COMMANDS:
        cli.get_command(None, name)  # type: ignore[arg-type]
    for source in purity_cli.models.LIBRARIES.values():
        source.names()
    assert all((pandas, rich, scipy, timm, torchvision, matplotlib))


def chosen(n: int, only: list[str]) -> Iterator[tuple[str, int]]:
    """(kind, number) of every input: kinds in turn, each by its share."""
    kinds = {name: kind for name, kind in KINDS.items() if not only or name in only}
    total, given = sum(kind.share for kind in kinds.values()), Counter[str]()
    for i in range(1, n + 1):
        name = max(kinds, key=lambda name: kinds[name].share * i / total - given[name])
        yield name, given[name]
        given[name] += 1


def one(kind: str, number: int, seed: int, place: Path, world: World) -> None:
    """One input, in this process; its verdict is left in its folder."""
    folder = place / f"{kind}-{number}"
    folder.mkdir()
    stage = Stage(folder, world.folder, Random(f"{seed}/{kind}/{number}"))
    try:
        KINDS[kind].attack(stage, world)
    except Exception as error:
        import traceback

        traceback.print_exc()
        stage.fell(f"the attack itself failed: {type(error).__name__}: {error}")
    verdict = {"kind": kind, "number": number, "tried": stage.tried, "fallen": stage.fallen}
    Path(f"{folder}.json").write_text(json.dumps(verdict))


def all_of(
    inputs: list[tuple[str, int]], seed: int, place: Path, world: World, workers: int
) -> Iterator[dict[str, Any]]:
    """The verdicts, as they come, of `workers` processes at once."""
    running: dict[int, tuple[int, str, int]] = {}
    waiting = iter(inputs)
    while True:
        while len(running) < workers and (following := next(waiting, None)):
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                try:
                    one(*following, seed, place, world)
                finally:
                    os._exit(0)
            running[os.pidfd_open(child)] = (child, *following)
        if not running:
            return
        for handle in select.select(list(running), [], [])[0]:
            child, kind, number = running.pop(handle)
            os.waitpid(child, 0)
            os.close(handle)
            path = place / f"{kind}-{number}.json"
            lost = {"kind": kind, "number": number, "tried": [], "fallen": ["the attack itself died"]}
            verdict = json.loads(path.read_text()) if path.exists() else lost
            if not verdict["fallen"]:
                shutil.rmtree(place / f"{kind}-{number}", ignore_errors=True)
            yield verdict


def alike(text: str) -> str:
    """A way to fall without its particulars, for grouping."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[\d.]+|/\S+", "#", text)[:120]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=1000, help="inputs [1000]")
    parser.add_argument("--only", default="", metavar="KIND,...", help=f"of {', '.join(KINDS)}; KIND:N is one input")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="[cores]")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the folders of what fell here")
    parser.add_argument("--plant", choices=PLANTED, metavar="FAULT", help=f"a fault to be found: {', '.join(PLANTED)}")
    given = parser.parse_args()
    only = [name for name in given.only.split(",") if name]
    unknown = [name for name in only if name.partition(":")[0] not in KINDS]
    if unknown:
        parser.error(f"there is no kind {unknown[0]}")
    exact = [(name.partition(":")[0], int(name.partition(":")[2])) for name in only if ":" in name]
    inputs = exact or list(chosen(given.n, only))
    began = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    warm()
    place = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        (place / "world").mkdir()
        world = build(place / "world")
        if given.plant:
            PLANTED[given.plant].plant()
        verdicts = list(all_of(inputs, given.seed, place, world, given.workers))
        code = told(verdicts, given.seed, time.monotonic() - began)
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            for verdict in verdicts:
                name = f"{verdict['kind']}-{verdict['number']}"
                if verdict["fallen"]:
                    shutil.rmtree(given.keep / name, ignore_errors=True)
                    shutil.copytree(place / name, given.keep / name, symlinks=True)
    finally:
        for path in place.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(place, ignore_errors=True)
    return code


def told(verdicts: list[dict[str, Any]], seed: int, seconds: float) -> int:
    """Print what was tried and what fell; the exit code."""
    tried = Counter(verdict["kind"] for verdict in verdicts)
    fell = Counter(verdict["kind"] for verdict in verdicts if verdict["fallen"])
    for kind, count in tried.items():
        print(f"{kind:14} {count:5} tried {fell[kind]:5} fell")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for verdict in verdicts:
        for text in dict.fromkeys(map(alike, verdict["fallen"])):
            groups.setdefault((verdict["kind"], text), []).append(verdict)
    for (kind, text), found in sorted(groups.items(), key=lambda group: -len(group[1])):
        print(f"\n{kind}: {len(found)} x {text}")
        for verdict in found[:SHOWN]:
            example = next(t for t in verdict["fallen"] if alike(t) == text)
            print(ascii(f"--seed {seed} --only {kind}:{verdict['number']}: {'; '.join(verdict['tried'])[:400]}"))
            print(ascii(f"  {example[:300]}"))
    total = sum(fell.values())
    print(f"\n{len(verdicts)} inputs in {seconds:.0f} s, {total} fell (seed {seed})")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
