"""Purity over training: a suite of one job over the weights of every checkpoint, in their order."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purity_cli import models
from purity_cli.errors import PurityError, gathered, log
from purity_cli.files import epochs_of, expanded, natural
from purity_cli.models.checkpoints import SUFFIXES
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.suite import Task, bench

RECORDED = ("test_top1", "test_fingerprint", "test_images")
"""What a training says of its accuracy, in the JSON beside a checkpoint and in the recipe there."""


@dataclass(frozen=True)
class CheckpointFile:
    """A weight file, its epoch, and what the JSON beside it says (empty where there is none)."""

    path: Path
    epoch: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def provenance(self) -> dict[str, Any]:
        """What its result is to say of it: the epoch, the file, and what its training found of its accuracy."""
        recipe = self.about.get("recipe", {})
        recorded = {name: place[name] for name in RECORDED for place in (self.about, recipe) if name in place}
        found = {"epoch": self.epoch, "checkpoint": self.path.name}
        return {**found, "recorded": recorded} if recorded else found


def find(given: Sequence[str]) -> list[Path]:
    """The files and patterns given -> files, each once, in the order given; PurityError where there is none.

    Of what a pattern matches, weight files count: the JSON beside them is read with them.
    """
    files: list[Path] = []
    for text in given:
        path = expanded(text)
        if path.is_dir():
            raise PurityError(f"{text} is a folder: give the weight files in it, e.g. '{text}/*.safetensors'.")
        there = [Path(match) for match in sorted(glob.glob(str(path), recursive=True), key=natural)]
        matches = [path] if path.exists() else [match for match in there if match.suffix in SUFFIXES]
        if not matches:
            raise PurityError(f"There is no checkpoint {text}: give weight files, or a pattern such as 'run/*.pth'.")
        files += matches
    return list(dict.fromkeys(files))


def number(paths: Sequence[Path]) -> list[CheckpointFile]:
    """Checkpoints in the order of their epochs: from the JSON beside them, else from their names, else as given.

    PurityError where two JSONs name the same epoch, or different networks.
    """
    abouts = [_about(path) for path in paths]
    epochs: list[int] = [about["epoch"] for about in abouts if about]
    if len(epochs) < len(paths):
        told, doubt = epochs_of([path.stem for path in paths])
        doubt = doubt if told else "Neither JSON files nor file names say the epochs: they are numbered as given."
        epochs = told or list(range(1, len(paths) + 1))
        if doubt:
            log.warning(doubt)
    found = [CheckpointFile(*each) for each in zip(paths, epochs, abouts, strict=True)]
    seen: dict[int, CheckpointFile] = {}
    for one in found:
        twin = seen.setdefault(one.epoch, one)
        if twin is not one:
            raise PurityError(f"{twin.path} and {one.path} are both of epoch {one.epoch}: give those of one training.")
    named = {about["model"]: path for path, about in zip(paths, abouts, strict=True) if about.get("model")}
    if len(named) > 1:
        (first, here), (second, there), *_ = named.items()
        raise PurityError(f"{here} is of {first} and {there} of {second}: give checkpoints of one network.")
    return sorted(found, key=lambda one: one.epoch)


def _about(path: Path) -> dict[str, Any]:
    """The JSON that `purity train` writes beside a checkpoint; empty where there is none of that kind."""
    beside = path.with_suffix(".json")
    try:
        about = json.loads(beside.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise PurityError(f"{beside} cannot be read as JSON: mend or remove it.") from None
    return about if isinstance(about, dict) and isinstance(about.get("epoch"), int) else {}


@dataclass(frozen=True)
class _Suite:
    """One Job over the weights of every checkpoint: what a Bench runs. Results lie in `epoch010` and so on."""

    checkpoints: Sequence[CheckpointFile]
    job: Job
    threshold: float

    def tasks(self) -> list[Task]:
        """A Task for each checkpoint; PurityError, naming it, where one does not fit the network."""
        tasks = []
        for one in self.checkpoints:
            job = self.job.model_copy(update={"weights": str(one.path)})
            models.load(job.model, job.weights, headless=bool(job.metrics))  # lest the last one fail after hours
            tasks.append(Task(f"epoch{one.epoch:03}", job, about=one.provenance()))
        return tasks


def score(
    checkpoints: Sequence[CheckpointFile],
    job: Job,
    folder: Path,
    *,
    threshold: float = 0.5,
    **options: Any,
) -> list[Result]:
    """Score `job` with the weights of every checkpoint, each into its folder in `folder`.

    What is finished there is kept, and what is unfinished is continued; `options` are those of `bench.Bench`.
    PurityError names the checkpoint that failed, once the others are done.
    """
    suite = _Suite(checkpoints, job, threshold)
    with gathered(len(checkpoints)):
        runs = bench.Bench(suite, folder, name="purity epochs", **options).run()
    for one, outcome in zip(checkpoints, runs, strict=True):
        if outcome.result is None:
            raise PurityError(f"{one.path}: {outcome.error}")
    return [run.result for run in runs if run.result]
