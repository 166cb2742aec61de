"""What libraries declare about a network's input, as `Preprocessing`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from purity_cli.plan import Preprocessing, Size

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def from_torchvision(preset: Any) -> Preprocessing:
    """torchvision's `ImageClassification` preset: short side, centre crop, normalise."""
    height, width = (*preset.crop_size, *preset.crop_size)[:2]
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=(height, width),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def from_timm(cfg: Mapping[str, Any]) -> tuple[Preprocessing, str | None]:
    """timm's `pretrained_cfg` by its own `resolve_data_config`, as `timm.data.create_transform` applies it.

    The second value says in words where timm's transform cannot be followed exactly.
    """
    import timm.data

    data = timm.data.resolve_data_config(pretrained_cfg=dict(cfg))  # type: ignore[attr-defined]
    size: Size = tuple(data["input_size"][-2:])
    scaled = (math.floor(size[0] / data["crop_pct"]), math.floor(size[1] / data["crop_pct"]))
    resize: int | Size = scaled[0]
    note = None
    if data["crop_mode"] == "squash":
        resize = scaled
    elif data["crop_mode"] == "border":
        note = "timm pads these pictures to a square; here the short side is resized and the centre cropped instead."
    elif size[0] != size[1]:
        resize = scaled
        note = f"timm resizes to cover {scaled[0]}x{scaled[1]}; here pictures are resized to it exactly instead."
    preprocessing = Preprocessing(
        resize=resize,
        crop=size,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    return preprocessing, note


def from_pretrainedmodels(settings: Mapping[str, Any]) -> Preprocessing:
    """pretrainedmodels' settings, as its `TransformImage` and its ImageNet evaluation apply them.

    It normalises after reordering to BGR and on whichever scale `input_range` says; `Preprocessing` normalises RGB on
    0..1, hence the reversed order and the division.
    """
    size = max(settings["input_size"])
    bgr = settings["input_space"] == "BGR"
    order = -1 if bgr else 1
    scale = max(settings["input_range"])
    return Preprocessing(
        resize=math.floor(size / settings.get("scale", 0.875)),
        crop=(size, size),
        mean=tuple(value / scale for value in settings["mean"][::order]),
        std=tuple(value / scale for value in settings["std"][::order]),
        bgr=bgr,
    )
