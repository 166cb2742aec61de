"""Which checkpoint would purity keep, and what would that cost? Choices without labels, and their regret."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from purity_cli.correlate.correlations import correlate


@dataclass(frozen=True)
class Course:
    """One value per checkpoint, in the order of `epochs`: purity of `layer` (NaN where nothing fired) and accuracy in
    per cent (NaN where unknown) of `images` images."""

    epochs: Sequence[int]
    layer: str
    purity: Sequence[float]
    accuracy: Sequence[float]
    images: int


@dataclass(frozen=True)
class Choice:
    """A rule, the epoch that it keeps, and the last epoch that it looked at.

    `regret` is by how many points the accuracy kept falls short of the best of all checkpoints; None where any accuracy
    is unknown. `epoch` is None where there is nothing to go by.
    """

    rule: str
    epoch: int | None
    seen: int
    accuracy: float | None
    regret: float | None


def keep(values: Sequence[float], patience: int | None = None) -> tuple[int | None, int]:
    """The place of the highest value, the first of equals, and the last place looked at; NaN is no value.

    With `patience`, looking ends after so many places in a row without a higher value than before.
    """
    best, waited = None, 0
    for place, value in enumerate(values):
        if not math.isnan(value) and (best is None or value > values[best]):
            best, waited = place, 0
        elif best is not None:
            waited += 1
        if patience is not None and waited >= patience:
            return best, place
    return best, len(values) - 1


def choices(course: Course, patience: int) -> list[Choice]:
    """By purity and by accuracy, each over all checkpoints and with `patience`, and the last checkpoint."""
    known = not any(map(math.isnan, course.accuracy))
    picks = []
    for name, values in ((f"purity of {course.layer}", course.purity), ("accuracy", course.accuracy)):
        if name == "accuracy" and not known:
            continue
        picks.append((f"highest {name}", *keep(values)))
        picks.append((f"{name}, patience {patience}", *keep(values, patience)))
    last = len(course.epochs) - 1
    picks.append(("last checkpoint", last, last))
    return [
        Choice(
            rule=rule,
            epoch=None if place is None else course.epochs[place],
            seen=course.epochs[seen],
            accuracy=None if place is None or math.isnan(course.accuracy[place]) else course.accuracy[place],
            regret=None if place is None or not known else max(course.accuracy) - course.accuracy[place],
        )
        for rule, place, seen in picks
    ]


def words(course: Course, found: Sequence[Choice]) -> list[str]:
    """What the course says and how far it can be trusted, in sentences."""
    sentences = [_verdict(choice, course.images) for choice in found if f"purity of {course.layer}" in choice.rule]
    sentences += [_agreement(course, "epoch", course.epochs), _agreement(course, "accuracy", course.accuracy)]
    if not any(map(math.isnan, course.accuracy)):
        best = max(course.accuracy)
        error = 100 * math.sqrt(best / 100 * (1 - best / 100) / course.images)
        sentences.append(
            f"One image is {100 / course.images:.2g} points, and {best:.2f} % of {course.images:,} images has a "
            f"standard error of {error:.2g} points. Choosing by accuracy has no regret by construction: it saw the "
            "labels."
        )
    return sentences


def _verdict(choice: Choice, images: int) -> str:
    if choice.epoch is None:
        return f"By {choice.rule} no checkpoint can be kept: nothing fired."
    kept = f"By {choice.rule}, epoch {choice.epoch} is kept"
    if choice.regret is None:
        return f"{kept}."
    return (
        f"{kept}: {choice.accuracy:.2f} %, a regret of {choice.regret:.2f} points "
        f"({choice.regret * images / 100:.0f} of {images:,} images)."
    )


def _agreement(course: Course, name: str, values: Sequence[float]) -> str:
    """Kendall's tau of purity with `values`, where both are known."""
    pairs = np.array([course.purity, values], dtype=np.float64)
    x, y = pairs[:, np.isfinite(pairs).all(0)]
    said = f"Kendall's tau of the purity of {course.layer} with {name}"
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"{said}: none, for {len(x)} checkpoints have both{' and one is constant' if len(x) > 2 else ''}."
    tau = correlate(x, y)["kendall"]
    return f"{said}: {tau.value:.3f}, two-sided p {tau.p:.2g}, n = {len(x)}."
