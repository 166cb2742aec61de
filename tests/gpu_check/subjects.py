"""Networks, pictures and engines: what the parts measure."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from purity_cli import models, run, stages
from purity_cli.engine import HALF, Engine
from purity_cli.errors import PurityError
from purity_cli.machine import float32_of
from purity_cli.pixels import Block, normalise
from purity_cli.plan import DEFAULT_GRID, Job, Preprocessing
from purity_cli.purity import MapStatistics, map_statistics
from purity_cli.run.resolving import Resolved
from tests.gpu_check.settings import FORMATS, Settings

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A network, the modules that are tapped, by stage where they are one, and pictures for it."""

    name: str
    weights: str
    net: nn.Module
    layers: dict[str, str]
    """Module -> stage, or the module again."""
    preprocessing: Preprocessing
    block: Block

    @property
    def images(self) -> int:
        return len(self.block.positions)

    def first(self, n: int) -> Subject:
        """The same with the first n pictures."""
        return replace(self, block=part_of(self.block, slice(0, n)))


def of_plan(plan: Resolved, workers: int) -> Subject:
    """What a resolved Job is about, its pictures decoded."""
    blocks = list(run.pixels_of(plan, workers=workers).blocks())
    return Subject(
        name=plan.network.name,
        weights=plan.network.weights,
        net=plan.network.module,
        layers={tap.module: tap.stage or tap.module for tap in plan.taps},
        preprocessing=plan.preprocessing,
        block=Block(
            number=0,
            pixels=torch.cat([block.pixels for block in blocks]).contiguous(memory_format=torch.channels_last),
            positions=torch.cat([block.positions for block in blocks]),
            labels=torch.cat([block.labels for block in blocks]),
            skipped=(),
        ),
    )


def random_job(name: str, dataset: str, settings: Settings, **more: object) -> Job:
    """A Job with random weights on pictures of `settings.side`."""
    side = settings.side
    given = {"preprocess": "paper", "resize": side, "crop": side, "layers": ("C1..last",), **more}
    return Job.of(model=name, weights="none", dataset=dataset, **given)


def real_jobs(settings: Settings) -> list[Job]:
    """Networks with real weights on real pictures, as far as these are at hand; all on the CPU as yet."""
    shared, n = settings.shared, settings.real
    jobs = [Job.of(model="tiny_vgg_10", dataset="digits", device="cpu", limit=n)]
    if settings.sample.is_dir():
        dataset = f"folder:{settings.sample}"
        jobs.append(Job.of(model="efficientnet_lite0", dataset=dataset, device="cpu", limit=n))
    model, weights = shared / "models/cifar_resnet.py", shared / "weights/resnet20-cifar10.safetensors"
    images = shared / "data/cifar10-jpeg.tar.xz"
    if all(path.is_file() for path in (model, weights, images)):
        jobs.append(
            Job.of(
                model=f"{model}:resnet20", weights=str(weights), dataset=str(images), device="cpu",
                layers=("layer1", "layer2", "layer3"), per_class=max(1, n // 10), mean=IMAGENET.mean, std=IMAGENET.std,
                resize="none", crop="none",
            )
        )  # fmt: skip
    return jobs


def pictures(folder: Path, settings: Settings) -> Path:
    """A folder of `settings.pictures` JPEGs in class folders: the sample if it is at hand, else made ones of
    ImageNet's usual size, smooth enough to compress like photographs."""
    if settings.sample.is_dir():
        return settings.sample
    rng, made = np.random.default_rng(0), folder / "pictures"
    for i in range(settings.pictures):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        path = made / f"n{i:08}" / f"n{i:08}_0.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return made


def repeated(pictures: Path, folder: Path, n: int) -> Path:
    """A folder of `n` images: links to the pictures, as often as needed, in their class folders."""
    files = sorted(path.resolve() for path in pictures.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    for i in range(n):
        file = files[i % len(files)]
        link = folder / file.parent.name / f"{file.stem}_{i // len(files):04}.JPEG"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, link)
    return folder


def noise(n: int, side: int, device: torch.device) -> Block:
    """`n` pictures of noise that are on the device already."""
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, device=device)
    return Block(
        number=0,
        pixels=pixels.contiguous(memory_format=torch.channels_last),
        positions=torch.arange(n, device=device),
        labels=torch.full((n,), -1, device=device),
        skipped=(),
    )


def part_of(block: Block, places: slice) -> Block:
    return replace(block, pixels=block.pixels[places], positions=block.positions[places], labels=block.labels[places])


def split(block: Block, size: int) -> Iterator[Block]:
    """The block in pieces of `size` images."""
    for start in range(0, len(block.positions), size):
        yield part_of(block, slice(start, start + size))


def stages_of(network: models.Network, side: int) -> list[str]:
    """Its modules C1..last."""
    taps = stages.resolve(network.module, network.source, network.name, ["C1..last"], (side, side))
    return [tap.module for tap in taps]


def make_engine(
    net: nn.Module,
    layers: Sequence[str],
    device: torch.device,
    *,
    precision: str,
    batch_size: int,
    preprocessing: Preprocessing = IMAGENET,
    memory_format: str = "channels_last",
    groups: int = 20,
    statistics: Callable[[Tensor], MapStatistics] = map_statistics,
) -> Engine:
    return Engine(
        net,
        layers,
        normalise=partial(normalise, preprocessing=preprocessing),
        thresholds=DEFAULT_GRID,
        groups=groups,
        device=device,
        precision=precision,
        batch_size=batch_size,
        memory_format=FORMATS[memory_format],
        statistics=statistics,
    )


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """The engine's settings for a precision, for work without an engine."""
    with (
        float32_of(precision),
        torch.autocast(device.type, HALF.get(precision, torch.bfloat16), enabled=precision in HALF),
    ):
        yield


def attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """What `work` gives, or why it gave nothing: whatever fails in one row, the others must be measured."""
    try:
        return work(), None
    except torch.OutOfMemoryError:
        return None, "out of memory"
    except Exception as error:
        if not isinstance(error, PurityError):
            traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {lines[0][:160]}"
