"""A Job becomes a Result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch

from purity_cli import models, stages
from purity_cli.datasets import ImageSource, open_dataset, select
from purity_cli.engine import Engine, NonFinite
from purity_cli.errors import PurityError
from purity_cli.machine import device_name, keep_freed_memory, resolve_device, versions
from purity_cli.pixels import Block, Pixels, normalise
from purity_cli.plan import Job, Preprocessing
from purity_cli.results import PEERS, LayerCounts, Result

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAPER = {
    "imagenet": Preprocessing(resize=224, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "cifar10": Preprocessing(),
}
"""The paper's pixels (SPEC, published settings). Data sets not named here are taken for photographs, as ImageNet's."""

# A batch of this many pixels keeps both cores of a small machine busy and its maps within a few gigabytes.
PIXELS_PER_BATCH = {"cpu": 16 * 224 * 224, "cuda": 256 * 224 * 224}
LARGEST_BATCH = 1024

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """A Job with every name resolved: what `score` runs, and what a dry run shows."""

    job: Job
    network: models.Network
    taps: tuple[stages.Tap, ...]
    source: ImageSource
    selection: Sequence[int]
    preprocessing: Preprocessing
    device: torch.device
    batch_size: int
    label_note: str | None
    """Why there is no accuracy; None where there is."""

    @property
    def deepest(self) -> stages.Tap:
        """The last stage that is tapped, or else the last layer asked for."""
        return max(reversed(self.taps), key=lambda tap: int(tap.stage[1:]) if tap.stage else 0)


def resolve(job: Job, *, download: bool = False, warn: Warn = lambda _: None) -> Plan:
    """Resolve every name of a Job; PurityError for whatever is missing, misspelt or does not fit together."""
    device = resolve_device(job.device, job.precision)
    source = open_dataset(job.dataset, data_dir=job.data_dir, split=job.split, download=download)
    selection = select(source, job.per_class, job.limit)
    network = models.load(job.model, job.weights)
    preprocessing = resolve_preprocessing(job, network.preprocessing)
    if network.preprocessing_note and preprocessing == network.preprocessing:
        warn(network.preprocessing_note)
    size = preprocessing.crop or network.input_size
    taps = stages.resolve(network.module, network.source, network.name, job.layers, size)
    note = label_note(source, network)
    if note:
        warn(f"No accuracy: {note}.")
    return Plan(
        job=job,
        network=network,
        taps=tuple(taps),
        source=source,
        selection=selection,
        preprocessing=preprocessing,
        device=device,
        batch_size=resolve_batch_size(job.batch_size, device, size),
        label_note=note,
    )


def read(plan: Plan, *, workers: int) -> Iterator[Block]:
    """The pixels of a resolved Job, block by block, decoded by `workers` threads."""
    return Pixels(
        plan.source,
        plan.selection,
        plan.preprocessing,
        batch_size=plan.batch_size,
        workers=workers,
        on_bad_image=plan.job.on_bad_image,
        pin=plan.device.type == "cuda",
    ).blocks()


def score(
    plan: Plan,
    *,
    workers: int,
    blocks: Iterable[Block] | None = None,
    peers: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Warn = lambda _: None,
) -> Result:
    """Score a resolved Job: all its layers over all its images, in one pass.

    `workers` threads decode, unless `blocks` are what `read` gave before. `peers` (see that module) are taken of the
    deepest layer. `progress` is called with the images done and the images in all after every block; `warn` takes one
    sentence at a time. Raises PurityError.
    """
    job = plan.job
    keep_freed_memory()
    started, clock = datetime.now(UTC), time.perf_counter()
    engine = Engine(
        plan.network.module,
        [tap.module for tap in plan.taps],
        normalise=partial(normalise, preprocessing=plan.preprocessing),
        thresholds=job.thresholds,
        groups=job.groups,
        device=plan.device,
        precision=job.precision,
        batch_size=plan.batch_size,
        pooled=plan.deepest.module if peers else None,
    )
    skipped: list[tuple[str, str]] = []
    done = 0
    with engine:
        for block in read(plan, workers=workers) if blocks is None else blocks:
            try:
                engine.add(block)
            except NonFinite as error:
                raise _name_image(error, plan) from None
            skipped += block.skipped
            done += len(block.positions) + len(block.skipped)
            progress(done, len(plan.selection))
        try:
            engine.check()
        except NonFinite as error:
            raise _name_image(error, plan) from None
    seconds = time.perf_counter() - clock
    if not engine.purity:
        raise PurityError(f"None of the {len(plan.selection)} images of {plan.source.name} could be read.")
    if skipped:
        path, reason = skipped[0]
        warn(f"{len(skipped)} of {done} images could not be read and were left out, the first {path} ({reason}).")
    if engine.batch_size < plan.batch_size:
        warn(f"Out of memory at a batch of {plan.batch_size}: the rest ran at {engine.batch_size}.")
    found = engine.spectrum.compute() if engine.spectrum else {}
    measured = {PEERS[name]: float(found[PEERS[name]]) for name in peers}
    for name in (name for name, value in measured.items() if math.isnan(value)):
        warn(f"{name} of {plan.deepest.module} is unknown: too few images or channels that vary.")
    return _result(plan, engine, measured, skipped, started, seconds)


def _result(
    plan: Plan,
    engine: Engine,
    peers: Mapping[str, float],
    skipped: list[tuple[str, str]],
    started: datetime,
    seconds: float,
) -> Result:
    n_images, labelled, hits1, hits5 = engine.tally.tolist()
    known = labelled > 0 and plan.label_note is None
    network, source = plan.network, plan.source
    classes = network.num_classes or 0
    return Result(
        job=plan.job,
        thresholds=plan.job.thresholds,
        layers=tuple(
            LayerCounts(
                tap.module,
                tap.stage,
                *engine.shapes[tap.module],
                engine.counts(tap.module).numpy(),
                peers if tap == plan.deepest else {},
            )
            for tap in plan.taps
        ),
        n_images=n_images,
        top1=100 * hits1 / labelled if known else None,
        top5=100 * hits5 / labelled if known and classes > 5 else None,
        model=network.name,
        source=network.source,
        weights=network.weights,
        dataset=source.name,
        preprocessing=plan.preprocessing.describe(),
        provenance={
            **versions(),
            "device": device_name(plan.device),
            "precision": plan.job.precision,
            "batch_size": engine.batch_size,
            "model": network.name,
            "source": network.source,
            "weights": network.weights,
            "weights_sha256": network.weights_sha256,
            "parameters": sum(parameter.numel() for parameter in network.module.parameters()),
            "preprocessing": plan.preprocessing.model_dump(mode="json"),
            "dataset": source.name,
            "dataset_fingerprint": source.fingerprint,
            "labels": plan.label_note or "used",
            "images_selected": len(plan.selection),
            "images_scored": n_images,
            "images_skipped": [{"path": path, "reason": reason} for path, reason in skipped],
            "seconds": round(seconds, 3),
            "images_per_second": round(n_images / seconds, 2),
            "started": started.isoformat(timespec="seconds"),
        },
    )


def resolve_preprocessing(job: Job, declared: Preprocessing) -> Preprocessing:
    """What the weights declare, or the paper's, with the job's single overrides."""
    base = PAPER.get(job.dataset, PAPER["imagenet"]) if job.preprocess == "paper" else declared
    named = {name: getattr(job, name) for name in ("resize", "crop", "interpolation", "mean", "std")}
    changes = {name: None if value == "none" else value for name, value in named.items() if value is not None}
    chosen = base.model_copy(update=changes)
    if isinstance(chosen.resize, int) and chosen.crop and max(chosen.crop) > chosen.resize:
        raise PurityError(
            f"A crop of {max(chosen.crop)} does not fit in pictures resized to {chosen.resize}: give --crop as well."
        )
    return chosen


def resolve_batch_size(asked: int | str, device: torch.device, size: tuple[int, int]) -> int:
    """The number asked for, or the power of two that suits pictures of `size` (h, w) on this kind of device."""
    if isinstance(asked, int):
        return asked
    fit = max(1, PIXELS_PER_BATCH[device.type] // (size[0] * size[1]))
    return min(LARGEST_BATCH, 1 << (fit.bit_length() - 1))


def label_note(source: ImageSource, network: models.Network) -> str | None:
    """Why the labels cannot be compared with the network's classes; None where they can."""
    if source.labels is None:
        return source.label_note or f"{source.name} carries no labels"
    classes = len(source.class_names or ()) or max(source.labels) + 1
    if network.num_classes != classes:
        return f"{source.name} has {classes} classes and {network.name} {network.num_classes}"
    return None


def _name_image(error: NonFinite, plan: Plan) -> NonFinite:
    return NonFinite(error.where, error.position, plan.source.paths[plan.selection[error.position]])
