"""Many networks by a pattern: which they are, and what scoring them will take, without loading one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from purity_cli import models
from purity_cli.cache import size_text
from purity_cli.datasets import FAMILIES
from purity_cli.errors import PurityError
from purity_cli.machine import device_name, resolve_device
from purity_cli.plan import Job, Size
from purity_cli.report import Report, Row, Table, duration, number, text
from purity_cli.run.resolving import resolve_preprocessing
from purity_cli.suite import Suite, SuiteEntry, Task, costs, status
from purity_cli.suite.outlook import Sources, images_of, pixels_wanted

PASSES = 2
"""The backward pass to the maps takes what the forward pass takes, for the weights need no gradient."""
NAMED = 8
"""Models of those left out for one reason that a sentence names."""

Progress = Callable[[int, int], None]
Left = Mapping[str, Sequence[str]]
"""Models that patterns mean and that are left out, by the reason."""


def expanded(suite: Suite, workers: int, progress: Progress = lambda done, total: None) -> tuple[Suite, Left]:
    """The suite with the models that its patterns mean in their place, and those that are left out, and why.

    With `below_gmacs` these are CNNs alone: networks whose stages can be read and that have no self-attention. A
    network that nobody has looked at yet takes a second or so.
    """
    meant = {place: _meant(suite, entry) for place, entry in enumerate(suite.models) if entry.pattern}
    sizes = {named for found in meant.values() for one in found for named in one.looks}
    known = costs.looks(sorted(sizes), workers, progress)
    chosen: list[SuiteEntry] = []
    left: dict[str, list[str]] = {}
    for place, entry in enumerate(suite.models):
        if place not in meant:
            chosen.append(entry)
        for one in meant.get(place, ()):
            why = one.lacks or _too_much([known[named] for named in one.looks], entry.below_gmacs)
            if why:
                left.setdefault(why, []).append(one.name)
            else:
                chosen.append(one.entry)
    if not chosen:
        raise PurityError(f"The patterns of the suite {suite.name} leave no model: {'; '.join(sentences(left))}")
    return suite.model_copy(update={"models": tuple(chosen)}), left


@dataclass(frozen=True)
class _Meant:
    """One model that a pattern means."""

    name: str
    entry: SuiteEntry
    looks: Sequence[costs.Named] = ()
    """The network at every size at which the suite runs it."""
    lacks: str | None = None


def _meant(suite: Suite, pattern: SuiteEntry) -> list[_Meant]:
    found = []
    shared = pattern.model_dump(exclude_unset=True, exclude={"model", "pretrained", "below_gmacs"})
    for name in models.named(pattern.model, pretrained=pattern.pretrained):
        entry = SuiteEntry(**shared, model=name)
        preview = models.preview(name, pattern.weights)
        if preview.headless:
            found.append(_Meant(name, entry, lacks="no classifier"))
            continue
        jobs = [
            suite.job_of(suite.defaults, dataset, settings, entry)
            for dataset in suite.datasets
            for settings in suite.settings
            if pattern.below_gmacs
        ]
        try:
            sizes = {resolve_preprocessing(job, preview.preprocessing).crop or preview.input_size for job in jobs}
        except PurityError as error:  # timm pads where a crop is larger than what it is of
            found.append(_Meant(name, entry, lacks=f"its pixels ({error})"))
            continue
        found.append(_Meant(name, entry, [(costs.network(name), *size) for size in sorted(sizes)]))
    return found


def _too_much(found: Sequence[costs.Look], limit: float | None) -> str | None:
    """Why a network is left out, by what was found at every size."""
    for one in found:
        if one.lacks:
            return one.lacks
        if limit is not None and (one.gmacs or 0) >= limit:
            return f"{limit:g} GMACs or more"
    return None


def sentences(left: Left) -> Iterator[str]:
    """How many models are left out for what, and the first of them."""
    for why, names in sorted(left.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield f"{len(names):,} for {why}: {', '.join(names[:NAMED])}{more}."


def report(suite: Suite, folder: Path, root: Path | None) -> Report:
    """What a suite would take: a row per job, and the sums. Nothing is loaded, scored or downloaded.

    `root` is the cache of pixels, None for none.
    """
    tasks = suite.tasks()
    done = status.finished(tasks, folder)
    sources, amounts, expects = Sources(), dict[tuple[object, ...], int](), False
    speed, device = _speed(tasks[0].job)
    rows, pixels = list[dict[str, Any]](), dict[tuple[object, ...], int]()
    for task in tasks:
        job = task.job
        data = images_of(job)
        if data not in amounts:
            amounts[data] = sources.amount(job)[0]
            expects |= not amounts[data]
            amounts[data] = amounts[data] or _expected(job)
        images = 0 if task.name in done else amounts[data]
        preview = models.preview(job.model, job.weights)
        size = resolve_preprocessing(job, preview.preprocessing).crop or preview.input_size
        look = _look(task, size)
        pixels[pixels_wanted(job)] = amounts[data] * size[0] * size[1] * 3
        operations = PASSES * 2e9 * (look.gmacs or 0) * images
        rows.append(
            {
                "job": task.name, "model": job.model, "weights": "here" if preview.weights_here else "missing",
                "images": images or None, "size": f"{size[0]}x{size[1]}", "gmacs": look.gmacs,
                "parameters": look.parameters, "hours": operations / speed / 3600 if operations else None,
                "note": "finished" if task.name in done else (f"{task.absent} is not there" if task.absent else None),
                "operations": operations,
            }
        )  # fmt: skip
    columns = [
        text("model", fold=True), text("weights"), number("images", digits=None), text("size"),
        number("gmacs", "GMACs", 2), number("parameters", digits=None, drop=1), number("hours", digits=2),
        text("note", fold=True),
    ]  # fmt: skip
    notes = []
    if expects:
        notes.append("The images are not there: their number is that of the classes of the data set by per_class.")
    return Report(
        [Table("forecast", columns, rows)], notes, lead=_lead(rows, sum(pixels.values()), speed, device, root)
    )


def _lead(rows: Sequence[Row], pixels: int, speed: float, device: str, root: Path | None) -> str:
    missing = [row for row in rows if row["weights"] == "missing"]
    to_load = 4 * sum(row["parameters"] or 0 for row in missing)
    images, operations = sum(row["images"] or 0 for row in rows), sum(row["operations"] for row in rows)
    cached = f", and decoded pixels {size_text(pixels)} in {root}" if root else ""
    return (
        f"{len(rows):,} networks, {images:,} images in all, {operations / 1e15:,.3g} PFLOP for the forward "
        f"and the backward pass: {duration(operations / speed)} on one {device}, as fast as a plain convolution runs "
        f"here ({speed / 1e9:,.0f} GFLOP/s), and {duration(operations / 1e12)} at one TFLOP/s; many thin layers take "
        f"longer. {len(missing):,} sets of weights are missing, which take "
        f"{size_text(to_load)}{cached}. Nothing was scored."
    )


def _look(task: Task, size: Size) -> costs.Look:
    if ".py" in task.job.model:  # a user's code runs once, when its job does
        return costs.Look(None, None, None)
    named = (costs.network(task.job.model), *size)
    return costs.looks([named])[named]


def _expected(job: Job) -> int:
    """How many images a named data set has by what is known of it; 0 where that does not say."""
    family = FAMILIES.get(job.dataset)
    if family is None or family.classes is None or job.per_class is None:
        return job.limit or 0
    return min(family.classes * job.per_class, job.limit or family.classes * job.per_class)


def _speed(job: Job) -> tuple[float, str]:
    """FLOP/s of a convolution as ResNets have it on the job's device, and what that is called."""
    device = resolve_device(job.device, job.precision)
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False).to(device)
    maps = torch.zeros(16, 128, 28, 28, device=device)
    with torch.inference_mode():
        layer(maps)
        _wait(device)
        began, runs = time.perf_counter(), 0
        while runs < 3 or time.perf_counter() - began < 0.2:
            layer(maps)
            _wait(device)
            runs += 1
    return runs * 2 * 9 * 128 * 128 * maps[:, 0].numel() / (time.perf_counter() - began), device_name(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
