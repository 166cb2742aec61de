"""What decides a number: the frozen `Job`, its preprocessing, and its key.

A Job holds everything that can change a count and nothing else, so that equal keys mean equal counts.
How fast, where to and how loudly (workers, output folder, format) are not part of it, nor is the threshold at which
a table is read: counts are kept at a whole grid of thresholds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from purity_cli.errors import PurityError, did_you_mean
from purity_cli.files import shown

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, PlainSerializer(shown, when_used="json")]
"""A name or path; JSON holds no bytes that are no UTF-8."""
Size = tuple[Positive, Positive]
"""(height, width) in pixels."""


class Frozen(BaseModel):
    """Immutable settings; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(Frozen):
    """From a decoded RGB picture to the network's input.

    Pixels are resized and cropped by PIL as uint8, then scaled to 0..1, normalised per channel and, for the old
    Caffe ports, reordered to BGR. `resize` as one number is the short side (aspect ratio kept), as (h, w) the exact
    size; `crop` is central. `None` leaves the step out.
    """

    resize: Positive | Size | None = None
    crop: Size | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False

    def describe(self) -> str:
        """One line for tables and footnotes, e.g. `resize 256 bicubic, crop 224, mean .485 .456 .406, std ...`."""
        size = "x".join(map(str, self.resize)) if isinstance(self.resize, tuple) else self.resize
        steps = [f"resize {size} {self.interpolation}" if size else "no resize"]
        if self.crop:
            steps.append(f"crop {self.crop[0] if self.crop[0] == self.crop[1] else 'x'.join(map(str, self.crop))}")
        if self.mean == (0.0,) * 3 and self.std == (1.0,) * 3:
            steps.append("not normalised")
        else:
            steps += ["mean " + " ".join(f"{v:g}" for v in self.mean), "std " + " ".join(f"{v:g}" for v in self.std)]
        return ", ".join([*steps, "BGR"] if self.bgr else steps)


def parse_thresholds(text: str) -> tuple[float, ...]:
    """`"0.1:0.9:0.1"` (both ends included) or `"0.3,0.5"` as increasing thresholds; PurityError otherwise."""
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            values = [start + i * step for i in range(math.floor((stop - start) / step + 1e-6) + 1)]
        else:
            values = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise PurityError(
            f"Cannot read thresholds {text!r}: write them as start:stop:step, e.g. 0.1:0.9:0.1."
        ) from None
    return check_thresholds(values)


def check_thresholds(values: Any) -> tuple[float, ...]:
    """Sorted, without repeats, each inside (0, 1) or 0: M lies in [0, 1] and a channel fires where M > t."""
    grid = tuple(sorted({round(float(v), 6) for v in values}))
    wrong = [v for v in grid if not 0.0 <= v < 1.0]
    if wrong or not grid:
        shown = f"{wrong[0]:g}" if wrong else "an empty grid"
        raise PurityError(
            f"A threshold must lie in [0, 1), not {shown}: a channel's mean-to-peak ratio never exceeds 1."
        )
    return grid


def _grid(value: Any) -> Any:
    try:
        return parse_thresholds(value) if isinstance(value, str) else check_thresholds(value)
    except (PurityError, TypeError) as error:
        raise ValueError(str(error)) from None


def _specs(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _square(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


DEFAULT_GRID = parse_thresholds("0.05:0.95:0.05")
Grid = Annotated[tuple[float, ...], BeforeValidator(_grid)]


def complaint(error: ValidationError, known: Iterable[str]) -> str:
    """The first thing that pydantic found wrong, in a sentence without its place; `known` are the settings there."""
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return f"there is no such setting.{did_you_mean(str(first['loc'][-1]), known)}"
    cause = first.get("ctx", {}).get("error")
    text = str(cause) if isinstance(cause, ValueError) else f"{first['msg']} (got {first['input']!r})."
    return text if text.endswith(".") else f"{text}."


class Job(Frozen):
    """One network over one set of images: everything that decides a count.

    Names are kept as the user wrote them; what they resolved to (weight file, modules, preprocessing, images)
    stands in the result's provenance.
    """

    model: Text = "tiny_vgg_10"
    weights: Text = "default"
    dataset: Text = "digits"
    data_dir: Text | None = None
    split: Text | None = None
    layers: Annotated[tuple[str, ...], BeforeValidator(_specs), Field(min_length=1)] = ("C1..last",)
    preprocess: Literal["weights", "paper"] = "weights"
    resize: Positive | Size | Literal["none"] | None = None
    crop: Annotated[Size | Literal["none"] | None, BeforeValidator(_square)] = None
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    per_class: Positive | None = None
    limit: Positive | None = None
    batch_size: Positive | Literal["auto"] = "auto"
    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    on_bad_image: Literal["skip", "fail"] = "skip"
    thresholds: Grid = DEFAULT_GRID
    groups: Annotated[int, Field(ge=2)] = 20

    @model_validator(mode="after")
    def _std_is_positive(self) -> Self:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive in every channel.")
        return self

    @classmethod
    def of(cls, **settings: Any) -> Job:
        """A Job, with pydantic's complaint turned into one sentence."""
        try:
            return cls(**settings)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "settings"
            raise PurityError(f"{where}: {complaint(error, cls.model_fields)}") from None

    def key(self) -> str:
        """SHA-256 over every field, so that two jobs share a key only where they must share every count."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
