"""Purity over training: checkpoints in their order, all scored on the same images, which are decoded once."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purity_cli import models, run
from purity_cli.epochs.numbering import epochs_of, natural
from purity_cli.errors import PurityError
from purity_cli.models.checkpoints import SUFFIXES
from purity_cli.plan import Job
from purity_cli.results import Result


@dataclass(frozen=True)
class Checkpoint:
    """A weight file, its epoch, and what the JSON beside it says (empty where there is none)."""

    path: Path
    epoch: int
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One checkpoint's result. `accuracy` is per cent, measured or else from its JSON; None where neither knows."""

    checkpoint: Checkpoint
    result: Result

    @property
    def accuracy(self) -> float | None:
        recorded = self.checkpoint.about.get("test_top1")
        return self.result.top1 if self.result.top1 is not None else recorded

    @property
    def disagrees(self) -> bool:
        """Whether the training recorded another accuracy, by more than half a point, on these very images."""
        recorded, recipe = self.checkpoint.about.get("test_top1"), self.checkpoint.about.get("recipe", {})
        seen = self.result.provenance
        same = recipe.get("test_fingerprint") == seen.get("dataset_fingerprint")
        whole = recipe.get("test_images") == seen.get("images_scored")
        measured = self.result.top1
        if recorded is None or measured is None or not (same and whole):
            return False
        return bool(abs(recorded - measured) > 0.5)


def find(given: Sequence[str]) -> list[Path]:
    """The files and patterns given -> files, each once, in the order given; PurityError where there is none.

    Of what a pattern matches, weight files count: the JSON beside them is read with them.
    """
    files: list[Path] = []
    for text in given:
        path = Path(text).expanduser()
        if path.is_dir():
            raise PurityError(f"{text} is a folder: give the weight files in it, e.g. '{text}/*.safetensors'.")
        expanded = [Path(match) for match in sorted(glob.glob(str(path), recursive=True), key=natural)]
        matches = [path] if path.exists() else [match for match in expanded if match.suffix in SUFFIXES]
        if not matches:
            raise PurityError(f"There is no checkpoint {text}: give weight files, or a pattern such as 'run/*.pth'.")
        files += matches
    return list(dict.fromkeys(files))


def number(paths: Sequence[Path], warn: Callable[[str], None]) -> list[Checkpoint]:
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
            warn(doubt)
    found = [Checkpoint(*each) for each in zip(paths, epochs, abouts, strict=True)]
    seen: dict[int, Checkpoint] = {}
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


def score(
    checkpoints: Sequence[Checkpoint],
    job: Job,
    *,
    workers: int,
    download: bool = False,
    peers: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Score `job` with the weights of every checkpoint.

    All pixels are decoded once, by `workers` threads, and kept in memory. `progress` is called with the images done at
    all checkpoints and their number in all. PurityError names the checkpoint that does not fit.
    """
    jobs = [job.model_copy(update={"weights": str(one.path)}) for one in checkpoints]
    for each in jobs:
        models.load(each.model, each.weights)  # so that the last one does not fail after hours
    plan = run.resolve(jobs[0], download=download, warn=warn)
    blocks = list(run.read(plan, workers=workers))
    measured = []
    for place, (one, each) in enumerate(zip(checkpoints, jobs, strict=True)):
        if place:
            plan = run.resolve(each, source=plan.source)
        before, total = place * len(plan.selection), len(jobs) * len(plan.selection)
        try:
            result = run.score(
                plan,
                workers=workers,
                blocks=blocks,
                peers=peers,
                progress=lambda done, _, before=before, total=total: progress(before + done, total),  # type: ignore[misc]
                warn=warn if place == 0 else lambda _: None,
            )
        except PurityError as error:
            raise PurityError(f"{one.path}: {error}") from None
        result.provenance["epoch"] = one.epoch
        measured.append(Measured(one, result))
    return measured
