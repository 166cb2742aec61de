"""What is measured with what: the real thing, and a tiny one by which the script itself is tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from purity_cli.errors import PurityError, did_you_mean

TABLE1 = ("vgg13_bn", "vgg16_bn", "vgg19_bn", "resnet34", "resnet50", "resnet101")
TABLE2 = ("alexnet", "vgg16", "densenet121", "timm:legacy_senet154")
"""Less ResNet50, which Table 1 has. timm's SENet154 is pretrainedmodels', which need not be installed for it."""

PRECISIONS = ("bf16", "tf32", "fp16", "fp32")
"""In the order in which they are measured: the slowest last, where time may run out."""

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Settings:
    """One run of the script."""

    device: torch.device
    out: Path
    scratch: Path
    """For pictures and caches; 50,000 images take 8 GB there."""
    shared: Path
    """Where real weights, real images and golden values are, if at all."""
    workers: int
    table1: tuple[str, ...] = TABLE1
    table2: tuple[str, ...] = TABLE2
    networks: tuple[str, ...] = TABLE1 + TABLE2
    precisions: tuple[str, ...] = PRECISIONS
    formats: tuple[str, ...] = tuple(FORMATS)
    seconds: float = 480.0
    """Per part."""
    side: int = 224
    """Of the pictures that networks see."""
    compared: int = 64
    """Images on which the device is compared with the CPU."""
    wide: int = 1024
    """Images on which its precisions are compared with each other."""
    real: int = 1000
    """Images for networks with real weights."""
    batches: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Among which the best one is searched."""
    huge: int = 4096
    """A batch that cannot fit."""
    images: int = 50_000
    """Of the end-to-end part."""
    pictures: int = 1000
    """Different ones among these."""
    rounds: int = 5
    at_least: float = 0.2
    """Seconds of one timing."""
    main: str = "resnet50"
    """The network of the parts that take only one."""
    compiler: str = "inductor"
    scale: int = 1
    """By which the ceilings' problems are smaller."""

    @property
    def sample(self) -> Path:
        return self.shared / "data" / "imagenet-sample"


def tiny(settings: Settings) -> Settings:
    """Everything once, on next to nothing: figures of it say nothing but that the script runs."""
    return replace(
        settings,
        table1=("tiny_vgg_10",),
        table2=("resnet18",),
        networks=("tiny_vgg_10", "resnet18"),
        side=32,
        compared=6,
        wide=6,
        real=6,
        batches=(2, 4),
        huge=4,
        images=12,
        pictures=4,
        rounds=1,
        at_least=0.0,
        main="tiny_vgg_10",
        compiler="eager",
        scale=64,
    )


def possible(device: torch.device) -> tuple[str, ...]:
    """The precisions that a device computes in."""
    return PRECISIONS if device.type == "cuda" else ("bf16", "fp32")


def chosen(what: str, asked: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """Those of `known` that a comma-separated text names, in its order; all without one. PurityError for others."""
    if not asked:
        return tuple(known)
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in known:
            raise PurityError(f"No {what} {name!r}: there are {', '.join(known)}.{did_you_mean(name, known)}")
    return tuple(dict.fromkeys(names))
