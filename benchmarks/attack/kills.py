"""Kills at random instants, and two at once: files whole, numbers those of an undisturbed run.

`make kill-suite` does the same to suites, trainings and caches, by the hundred.
"""

from __future__ import annotations

import signal

from benchmarks.attack import world as whole
from benchmarks.attack.mutate import damaged
from benchmarks.attack.stage import Stage
from benchmarks.attack.world import World, score


def kill_score(stage: Stage, world: World) -> None:
    """Signals at random instants of `score`, into a folder with an earlier result: in the end the right numbers."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth")
    for _ in range(stage.rng.choice([1, 2, 3])):
        number = stage.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        after = stage.rng.uniform(0.05, 1.0) * world.seconds["score"]
        stage.tried.append(f"{number.name} after {after:.2f} s")
        stage.run(*score(), kill=(number, after))
    stage.run(*score(), exits=(0,))
    stage.same(stage.rows(), world.score)


def writers(stage: Stage, world: World) -> None:
    """Two at once in one folder: each ends well or in one sentence, and what lies there then is whole."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth", "suite.yaml", "split")
    name = stage.rng.choice(["score", "other", "bench", "train", "cache"])
    one = {"bench": [*whole.SUITE_RUN], "train": [*whole.TRAIN], "cache": [*whole.CACHE]}.get(name, score())
    two = score("--limit", "6") if name == "other" else one
    with stage.started(*one) as first, stage.started(*two) as second:
        ends = [first(None), second(None)]
    for ran in ends:
        stage.judge(ran, (0, 1))
    codes = {ran.code for ran in ends}
    if 0 not in codes:
        stage.fell("neither of two writers came to its end")
    if name == "score":
        stage.same(stage.rows(), world.score)
    elif name == "other":
        images = {numbers["n_images"] for numbers in stage.rows().values()}
        if images not in ({"9"}, {"6"}):
            stage.fell(f"a result of two writers is of {images} images")
        if images == {"9"}:
            stage.same(stage.rows(), world.score)
    elif name == "bench":
        for job, expected in world.jobs.items():
            stage.same(whole.jobs(stage.folder / "out").get(job, {}), expected)
    elif name == "train":
        if whole.checkpoints(stage.folder / "out") != world.weights:
            stage.fell("weights differ from those of an undisturbed training")
    else:
        stage.run(*score("--cache", "cache"), exits=(0,))
        stage.same(stage.rows(), world.score)


def partial(stage: Stage, world: World) -> None:
    """What an interrupted run left, damaged: the next run's numbers are right all the same."""
    stage.link("net.py", "photos", "w.safetensors")
    stage.run(*score(), kill=(signal.SIGINT, stage.rng.uniform(0.5, 1.0) * world.seconds["score"]))
    left = sorted((stage.folder / "out").glob("*")) if (stage.folder / "out").exists() else []
    files = [path for path in left if path.is_file() and path.stat().st_size]
    if files:
        path = stage.rng.choice(files)
        how, content = damaged(path.read_bytes(), stage.rng)
        path.write_bytes(content)
        stage.tried.append(f"{path.name}: {how}")
    stage.run(*score("-t", "0.5"), exits=(0, 1))
    if stage.rows() and not any(path.name == "purity.csv" for path in files):
        stage.same(stage.rows(), world.score)
