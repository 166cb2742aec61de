"""The names in a Job -> the network, the modules, the images, the pixels and the device that they stand for."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import torch
from torch import nn

import purity_cli
from purity_cli import datasets, models, stages
from purity_cli.datasets import ImageDataset, open_dataset, select
from purity_cli.errors import PurityError, log
from purity_cli.layouts import FIRST
from purity_cli.machine import resolve_device
from purity_cli.metrics import METRICS, PURITY, read
from purity_cli.models.base import IMAGENET_MEAN, IMAGENET_STD
from purity_cli.pixels import Pixels, size_of
from purity_cli.plan import Job, Preprocessing
from purity_cli.plugins import versions
from purity_cli.run.ranks import Ranks

PAPER = {
    "imagenet": Preprocessing(resize=224, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "cifar10": Preprocessing(),
}
"""The paper's pixels (SPEC, published settings). Data sets not named here are taken for photographs, as ImageNet's."""

# A batch of this many pixels keeps both cores of a small machine busy and its maps within a few gigabytes.
PIXELS_PER_BATCH = {"cpu": 16 * 224 * 224, "cuda": 256 * 224 * 224}
LARGEST_BATCH = 1024

ROUNDING = ("torch", "torchvision", "pillow")
"""Another version of these may round otherwise, as may this tool's."""


@dataclass(frozen=True)
class Resolved:
    """A Job with every name resolved: what `score` runs, and what a dry run shows."""

    job: Job
    network: models.Network
    taps: tuple[stages.Tap, ...]
    source: ImageDataset
    selection: Sequence[int]
    preprocessing: Preprocessing
    device: torch.device
    batch_size: int
    label_note: str | None
    """Why there is no accuracy; None where there is."""
    classifies: bool = True
    """Whether the network predicts classes; where it does not, there is no measure that needs gradients."""
    identity: dict[str, Any] = field(default_factory=dict)
    """All that decides the numbers, as JSON: see `identify`."""

    @property
    def precision(self) -> str:
        """In which it computes."""
        return self.job.precision

    @property
    def metrics(self) -> list[str]:
        """The names of the measures that are taken."""
        asked = [PURITY.name, *(read(text)[0].name for text in self.job.metrics)]
        return asked if self.classifies else [name for name in asked if not METRICS[name].gradient]

    def images(self, block_size: int) -> Pixels:
        """The job's images in blocks of so many, as results of before are compared with them."""
        return Pixels(self.source, self.selection, self.preprocessing, batch_size=block_size, workers=1)


def resolve(
    job: Job,
    *,
    download: bool = False,
    module: nn.Module | None = None,
    source: ImageDataset | None = None,
    ranks: Ranks | None = None,
) -> Resolved:
    """Resolve every name of a Job; PurityError for whatever is missing, misspelt or does not fit together.

    `module` is the Job's model where that lives in memory, and `source` its data set where it is open already.
    """
    device = (ranks or Ranks()).device(resolve_device(job.device, job.precision))
    # Before the images, which can take long to list: what is wrong with the weights is said at once.
    headless = any(not read(text)[0].gradient for text in job.metrics)
    network = models.load(job.model if module is None else module, job.weights, headless=headless)
    source = source or open_dataset(job.dataset, data_dir=job.data_dir, split=job.split, download=download)
    selection = select(source, job.per_class, job.limit)
    preprocessing = resolve_preprocessing(job, network.preprocessing)
    guess = network.preprocessing_note if preprocessing == network.preprocessing else None
    size = size_of(source, selection, preprocessing) or network.input_size
    batch_size = resolve_batch_size(job.batch_size, device, size)
    network = models.validate(network, size, batch_size=batch_size)
    taps = stages.resolve(network.module, network.source, network.name, job.layers, size)
    source, no_labels, notes = datasets.match_labels(
        source, network.name, network.num_classes, known_classes(network, job)
    )
    classifies = bool(network.num_classes)
    resolved = Resolved(
        job=job,
        network=network,
        taps=tuple(taps),
        source=source,
        selection=selection,
        preprocessing=preprocessing,
        device=device,
        batch_size=network.largest_batch or batch_size,
        label_note=no_labels if classifies else f"{network.name} predicts no class",
        classifies=classifies,
    )
    if not resolved.metrics:
        way_out = f"{network.without_logits}; or " if network.without_logits else ""
        raise PurityError(
            f"{network.name} predicts no class, and purity is of the predicted class: {way_out}ask for measures that "
            "need none, e.g. --metrics rankme."
        )
    _warn(resolved, guess, notes)
    return replace(resolved, identity=identify(resolved))


def _warn(job: Resolved, guess: str | None, of_labels: Sequence[str]) -> None:
    network, source = job.network, job.source
    warnings = [guess, *network.notes]
    if not job.classifies:
        taken = ", ".join(job.metrics)
        warnings.append(f"{network.name} predicts no class: there is neither purity nor accuracy, only {taken}.")
    warnings += [*source.notes, *(of_labels if job.classifies else ())]
    warnings.append(datasets.limit_note(source, job.selection, job.job.limit))
    if job.classifies and job.label_note:
        warnings.append(f"No accuracy: {job.label_note}.")
    for sentence in filter(None, warnings):
        log.warning(sentence)


def identify(job: Resolved) -> dict[str, Any]:
    """All that decides a job's numbers, as JSON: two with equal identities give equal numbers on one kind of device.

    That is the settings of the Job, what its names stood for, the network as it was built, the images, and the
    versions of what computes. The images stand in it by their stamps: where these alone differ, `store.kept` compares
    the images themselves. It does not cover code of a network's that computes otherwise only for images unlike the
    trial's, files that such code reads anew in each forward pass, or libraries that bring no module of the network.
    """
    network = job.network
    images = job.images(job.batch_size)
    stamps = "\n".join(images.stamp(number) for number in range(len(images)))
    return {
        **job.job.direct(),
        "model": f"{network.source}:{network.name}",
        "weights": network.weights,
        "network_sha256": network.digest(),
        "dataset": job.source.name,
        "selection": hashlib.sha256(array("q", job.selection).tobytes()).hexdigest(),
        "images": hashlib.sha256(stamps.encode("utf-8", "surrogateescape")).hexdigest(),
        "preprocessing": job.preprocessing.model_dump(mode="json"),
        "layers": [[tap.module, tap.stage, tap.reading, *_other_layout(tap)] for tap in job.taps],
        **_versions(network),
        **{f"plug-in {name}": package for name, package in versions("purity_cli.metrics", job.metrics).items()},
    }


def _versions(network: models.Network) -> dict[str, str]:
    """The versions of what computes: this tool, PyTorch, PIL, and every library that brought the network's modules."""
    brought = {type(module).__module__.partition(".")[0] for module in network.module.modules()}
    found = {"purity": purity_cli.__version__, **{name: metadata.version(name) for name in ROUNDING}}
    for name in sorted(brought - {"torch", "purity_cli", "__main__"}):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _other_layout(tap: stages.Tap) -> list[str]:
    """A tap's layout where it is not channels first, which results of before had alone."""
    return [] if tap.layout == FIRST else [str(tap.layout)]


def resolve_preprocessing(job: Job, declared: Preprocessing) -> Preprocessing:
    """What the weights declare, or the paper's, with the job's single overrides."""
    base = PAPER.get(job.dataset, PAPER["imagenet"]) if job.preprocess == "paper" else declared
    named = {name: getattr(job, name) for name in ("resize", "crop", "interpolation", "mean", "std")}
    changes = {name: None if value == "none" else value for name, value in named.items() if value is not None}
    chosen = base.model_copy(update=changes)
    if isinstance(chosen.resize, int) and chosen.crop and max(chosen.crop) > chosen.resize:
        raise PurityError(
            f"A crop of {max(chosen.crop)} does not fit in images resized to {chosen.resize}: give --crop as well."
        )
    return chosen


def resolve_batch_size(asked: int | str, device: torch.device, size: tuple[int, int]) -> int:
    """The number asked for, or the power of two that suits images of `size` (h, w) on this kind of device."""
    if isinstance(asked, int):
        return asked
    fit = max(1, PIXELS_PER_BATCH[device.type] // (size[0] * size[1]))
    return min(LARGEST_BATCH, 1 << (fit.bit_length() - 1))


def known_classes(network: models.Network, job: Job) -> Sequence[str] | None:
    """What a network's classes are called; None where nobody knows, as with a user's network or weights."""
    if network.source in ("file", "memory") or job.weights == "none" or models.looks_like_file(job.weights):
        return None
    return datasets.class_names("imagenet" if network.num_classes == 1000 else network.weights)
