"""What decides a number: the frozen `Job`, its preprocessing, and its key.

A Job holds everything that can change a count and nothing else, so that equal keys mean equal counts.
How fast, where to and how loudly (workers, output folder, format) are not part of it, nor is the threshold at which
a table is read: counts are kept at a whole grid of thresholds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from purity_cli import metrics as measures
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

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """The settings, with pydantic's complaint turned into one sentence."""
        try:
            return cls(**settings)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"][:1]))
            sentence = complaint(error, cls.model_fields)
            raise PurityError(f"{place}: {sentence}" if place else sentence) from None


class Preprocessing(Frozen):
    """From a decoded RGB image to the network's input.

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
        if ":" not in text:
            return check_thresholds([float(part) for part in text.split(",")])
        start, stop, step = (float(part) for part in text.split(":"))
        return check_thresholds([start + i * step for i in range(math.floor((stop - start) / step + 1e-6) + 1)])
    except (ValueError, ZeroDivisionError):
        raise PurityError(
            f"Cannot read thresholds {text!r}: write them as start:stop:step, e.g. 0.1:0.9:0.1."
        ) from None


def check_thresholds(values: Any) -> tuple[float, ...]:
    """Sorted, without repeats, each in [0, 1): M lies in [0, 1] and a channel fires where M > t."""
    grid = tuple(sorted({round(float(v), 6) for v in values}))
    wrong = [f"{v:g}" for v in grid if not 0.0 <= v < 1.0]
    if wrong or not grid:
        raise PurityError(
            f"A threshold must lie in [0, 1), not {wrong[0] if wrong else 'an empty grid'}: a channel's mean-to-peak "
            "ratio never exceeds 1."
        )
    return grid


def check_rate(value: Any) -> float:
    """A share of all pairs of image and channel, in (0, 1)."""
    rate = float(value)
    if not 0 < rate < 1:
        raise PurityError(f"A rate must lie between 0 and 1, not {value}: 0.01 means that 1 % fires.")
    return rate


DEFAULT_GRID = parse_thresholds("0.05:0.95:0.05")
"""The thresholds that tables and curves show where no others were asked for."""
STORED_GRID = check_thresholds([*DEFAULT_GRID, *parse_thresholds("0.2:0.7:0.0125"), 0.975, 0.99])
"""The thresholds at which counts are kept: fine where 1 % to 5 % of all pairs fire (benchmarks/grid.py)."""


def table_thresholds(thresholds: Sequence[float]) -> list[float]:
    """Those of a result's thresholds that tables show: all but what is stored for rates alone."""
    hidden = {*STORED_GRID} - {*DEFAULT_GRID}
    return [threshold for threshold in thresholds if threshold not in hidden]


def parse_size(value: Any) -> Any:
    """`224`, `240x320` (height x width) or `none`, as an option and YAML write them."""
    if not isinstance(value, str) or value == "none":
        return value
    parts = value.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise PurityError(f"{value!r} is no size: write 224, 240x320 (height x width) or none.")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _square(value: Any) -> Any:
    size = parse_size(value)
    return (size, size) if isinstance(size, int) else size


def _colour(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        red, green, blue = (float(part) for part in value.split(","))
    except ValueError:
        raise PurityError(f"{value!r} is no colour: write three numbers, e.g. 0.485,0.456,0.406.") from None
    return red, green, blue


def _count(value: Any) -> Any:
    if isinstance(value, str) and value != "auto" and not (value.isdecimal() and int(value) > 0):
        raise PurityError(f"{value!r} is no batch size: write a positive number or auto.")
    return value


def _checked(check: Callable[[Any], Any]) -> BeforeValidator:
    """`check` as pydantic takes it, which turns a ValueError into its own error."""

    def validate(value: Any) -> Any:
        try:
            return check(value)
        except (PurityError, TypeError) as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(validate)


Grid = Annotated[
    tuple[float, ...],
    _checked(lambda value: parse_thresholds(value) if isinstance(value, str) else check_thresholds(value)),
]
Colour = Annotated[tuple[float, float, float] | None, _checked(_colour)]
Specs = Annotated[
    tuple[str, ...],
    _checked(lambda value: [*filter(None, map(str.strip, value.split(",")))] if isinstance(value, str) else value),
    Field(min_length=1),
]

WANTED = {
    "tuple_type": "a list",
    "model_type": "a name, or settings as in {model: resnet50, limit: 10}",
    "string_type": "text (in quotes where it looks like a number or a date)",
}
"""By pydantic's name of what it found wrong."""


def complaint(error: ValidationError, settings: Iterable[str]) -> str:
    """The first thing that pydantic found wrong, in a sentence without its place; `settings` are those there are."""
    first = error.errors()[0]
    given = repr(first["input"])[:60]
    if first["type"] == "extra_forbidden":
        return f"there is no such setting.{did_you_mean(str(first['loc'][-1]), settings)}"
    if first["type"] == "missing":
        return "it has to be given."
    if first["type"] in WANTED:
        return f"it must be {WANTED[first['type']]}, not {given}."
    cause = first.get("ctx", {}).get("error")
    text = str(cause) if isinstance(cause, ValueError) else f"{first['msg']} (got {given})"
    return text if text.endswith((".", "?")) else f"{text}."


class Job(Frozen):
    """One network over one set of images: everything that decides a number.

    Names are kept as the user wrote them; what they resolved to (weight file, modules, preprocessing, images)
    stands in the result's provenance.
    """

    model: Text = "resnet10_cifar"
    weights: Text = "default"
    dataset: Text = "cifar10-sample"
    data_dir: Text | None = None
    split: Text | None = None
    layers: Specs = ("C1..last",)
    preprocess: Literal["weights", "paper"] = "weights"
    resize: Annotated[Positive | Size | Literal["none"] | None, _checked(parse_size)] = None
    crop: Annotated[Size | Literal["none"] | None, _checked(_square)] = None
    interpolation: Interpolation | None = None
    mean: Colour = None
    std: Colour = None
    per_class: Positive | None = None
    limit: Positive | None = None
    batch_size: Annotated[Positive | Literal["auto"], _checked(_count)] = "auto"
    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    on_bad_image: Literal["skip", "fail"] = "skip"
    thresholds: Grid = STORED_GRID
    groups: Annotated[int, Field(ge=2)] = 20
    metrics: Annotated[tuple[str, ...], _checked(measures.parse)] = ()

    RESOLVED: ClassVar[frozenset[str]] = frozenset(
        {
            "model", "weights", "dataset", "data_dir", "split", "layers", "preprocess", "resize", "crop",
            "interpolation", "mean", "std", "per_class", "limit",
        }
    )  # fmt: skip
    """Fields that are names of something else, which then decides the numbers in their stead."""

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, given: Any) -> Any:
        for name in cls.model_fields if isinstance(given, dict) else ():
            if cls.model_fields[name].annotation is not bool and isinstance(given.get(name), bool):
                raise ValueError(
                    f"{name} cannot be {str(given[name]).lower()}, which is also what YAML makes of yes and no: write "
                    "a value of it, in quotes if it is such a word."
                )
        return given

    @model_validator(mode="after")
    def _pixels_are_scaled(self) -> Self:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive in every channel.")
        for name, most in (("mean", 1), ("std", 10)):
            values = getattr(self, name)
            if values is not None and max(values) > most:
                scaled = ",".join(f"{value / 255:.3g}" for value in values)
                raise ValueError(
                    f"{name} is on a scale of 0 to 1, not 0 to 255: divide it by 255, as in {name} {scaled}."
                )
        return self

    def key(self) -> str:
        """SHA-256 over what was asked for, so that two jobs share a key only where they must share every number."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def direct(self) -> dict[str, Any]:
        """The fields that decide numbers as they are, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.RESOLVED))
