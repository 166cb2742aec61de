"""Purity over training in the layout of the paper's Table 3, what it would have chosen, and the paper's values.

What a result's provenance says of its checkpoint: `epoch`, `checkpoint` (its file's name), and `recorded`, what its
training wrote beside it (`test_top1`, and `test_fingerprint` and `test_images` of the images that it is of).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from purity_cli.correlations import correlate
from purity_cli.errors import PurityError
from purity_cli.report import Column, Report, Table, number, text
from purity_cli.results import Result
from purity_cli.views import cells
from purity_cli.views.comparison import ABOUT, LAST, NAMES, ReferenceValue, reference
from purity_cli.views.layers import tidy, worth, worths

if TYPE_CHECKING:
    import pandas as pd

PATIENCE = 3


@dataclass(frozen=True)
class Trajectory:
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


def epochs(results: Sequence[Result], threshold: float, *, patience: int = PATIENCE) -> Report:
    """A row per checkpoint, the choices, what they cost, and the paper's values where it has this network."""
    results = in_order(results)
    line = course(results, threshold)
    found = choices(line, patience)
    last = cells.deepest(results[0])
    data = [Column("epoch"), Column("checkpoint"), *tidy(cells.measures(results))]
    return Report(
        [
            Table("epochs", data, rows(results, threshold), aim="data"),
            _layout(results, threshold),
            Table(
                "choices",
                [
                    text("rule", fold=True), number("epoch", "keeps epoch", None), number("seen", "looks until", None),
                    number("accuracy", digits=2), number("regret", digits=2),
                ],
                [asdict(choice) for choice in found],
            ),
        ],
        [
            *_notes(results), *words(line, found),
            *worths(results, threshold, [f"epoch {_epoch(result)}" for result in results]),
            f"Purity is that of {last.name}. At epoch {_epoch(results[0])}: {cells.summary(results[0], threshold)} "
            f"Layers: {cells.modules(results[0])}.",
        ],
    )  # fmt: skip


def in_order(results: Sequence[Result]) -> list[Result]:
    """By their epochs; PurityError for one without, for two of one epoch, for other networks and for other layers."""
    unknown = next((result for result in results if cells.epoch_of(result.job, result) is None), None)
    if unknown:
        raise PurityError(f"{unknown.model} with weights {unknown.weights} is of no known epoch: leave it out.")
    found = sorted(results, key=_epoch)
    for one, other in pairwise(found):
        if one.model != other.model or [row.name for row in one.layers] != [row.name for row in other.layers]:
            raise PurityError(
                f"{one.model} and {other.model} are not of one network and its layers: give one training."
            )
        if _epoch(one) == _epoch(other):
            raise PurityError(f"{one.weights} and {other.weights} are both of epoch {_epoch(one)}: give one training.")
    return found


def _epoch(result: Result) -> int:
    return cells.epoch_of(result.job, result) or 0


def _file(result: Result) -> str:
    """The name of its checkpoint."""
    return str(result.provenance.get("checkpoint", result.weights))


def accuracy(result: Result) -> float | None:
    """Measured, or else as the training recorded it; None where neither knows."""
    recorded: float | None = result.provenance.get("recorded", {}).get("test_top1")
    return recorded if result.top1 is None else result.top1


def disagrees(result: Result) -> bool:
    """Whether the training recorded another accuracy, by more than half a point, on these very images."""
    recorded, seen = result.provenance.get("recorded", {}), result.provenance
    same = recorded.get("test_fingerprint") == seen.get("dataset_fingerprint")
    whole = recorded.get("test_images") == seen.get("images_scored")
    if recorded.get("test_top1") is None or result.top1 is None or not (same and whole):
        return False
    return bool(abs(recorded["test_top1"] - result.top1) > 0.5)


def rows(results: Sequence[Result], threshold: float) -> list[dict[str, Any]]:
    """The tidy rows at one threshold behind `epoch` and `checkpoint`; top1 is the checkpoint's accuracy."""
    found = []
    for row in cells.rows(results, threshold):
        result = results[row["result"]]
        found.append({"epoch": _epoch(result), "checkpoint": _file(result), **row, "top1": accuracy(result)})
    return found


def frame(results: Sequence[Result], threshold: float) -> pd.DataFrame:
    """`rows` for figures: NaN for None, too."""
    import pandas as pd

    return pd.DataFrame(rows(in_order(results), threshold)).astype({"top1": float, "purity": float, "se": float})


def course(results: Sequence[Result], threshold: float) -> Trajectory:
    """Purity of the deepest layer and accuracy over the epochs."""
    values = [cells.cell(result, cells.deepest(result), threshold).purity for result in results]
    return Trajectory(
        epochs=[_epoch(result) for result in results],
        layer=cells.deepest(results[0]).name,
        purity=[math.nan if value is None else value for value in values],
        accuracy=[math.nan if value is None else value for value in map(accuracy, results)],
        images=results[0].n_images,
    )


def paper(results: Sequence[Result]) -> dict[int, dict[str, float]]:
    """top1 and purity by epoch of the paper's Table 3; empty where it does not have this network and these images."""
    result = results[0]
    known: list[ReferenceValue] = reference("table3") if result.dataset.startswith("cifar10") else []
    found: dict[int, dict[str, float]] = {}
    for one in known:
        if one.model == NAMES.get(result.model, result.model) and one.epoch is not None:
            found.setdefault(one.epoch, {})[one.cell] = one.value
    return found


def _layout(results: Sequence[Result], threshold: float) -> Table:
    """A row per checkpoint: accuracy and purity of the deepest layer, the other rows, and what stands beside them."""
    published, lines = paper(results), []
    marks: dict[tuple[int, str], str] = {}
    last = cells.deepest(results[0])
    others = [layer.name for layer in results[0].layers if layer.name != last.name]
    for place, result in enumerate(results):
        deepest = cells.deepest(result)
        one = cells.cell(result, deepest, threshold)
        theirs = published.get(_epoch(result), {})
        low = worth(result, threshold).starved
        marks |= {(place, "purity" if name == deepest.name else name): "starved" for name in low}
        lines.append(
            {
                "epoch": _epoch(result), "top1": accuracy(result), "purity": one.purity, "se": one.se,
                **{row.name: cells.cell(result, row, threshold).purity for row in result.layers if row.name in others},
                **{label: mean.purity for label, mean in cells.averages(result, threshold).items()},
                **{name: deepest.measures.get(name) for name in cells.measures([result])},
                "N": one.activations, "live": one.live, "paper_top1": theirs.get("top1"), "paper": theirs.get(LAST),
            }
        )  # fmt: skip
    columns = [
        number("epoch", digits=None), number("top1", "accuracy", 2), number("purity"), number("se", drop=1),
        *map(number, others), *map(number, cells.averages(results[0], threshold)),
        *(number(name) for name in cells.measures(results)),
        number("N", digits=None, drop=1), number("live", digits=None, drop=1),
        *([number("paper_top1", "paper accuracy", 2), number("paper", "paper purity")] if published else []),
    ]  # fmt: skip
    return Table("layout", columns, lines, marks=marks, aim="people")


def _notes(results: Sequence[Result]) -> list[str]:
    """Where the accuracies come from, where they are missing or not those recorded, and what the paper's are."""
    said = []
    missing = [_file(result) for result in results if accuracy(result) is None]
    why = results[0].provenance.get("labels")
    if missing:
        said.append(
            f"No regret can be said, for {', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no accuracy: "
            f"{why}, and no JSON beside them has test_top1."
        )
    if any(result.top1 is None and accuracy(result) is not None for result in results):
        said.append(f"Accuracies are those that the training recorded, for they cannot be measured here: {why}.")
    said += [
        f"{_file(result)} has {result.top1:.2f} % here, and its training recorded "
        f"{result.provenance['recorded']['test_top1']:.2f} % on the same images: the pixels may not be those of its "
        "training."
        for result in results
        if disagrees(result)
    ]
    if paper(results):
        said.append(ABOUT["table3"])
        if results[0].dataset != "cifar10":
            said.append(f"The paper's values are of CIFAR-10 as it was published, these of {results[0].dataset}.")
    return said + [remark for result in results for remark in cells.remarks(result)]


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


def choices(course: Trajectory, patience: int) -> list[Choice]:
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


def words(course: Trajectory, found: Sequence[Choice]) -> list[str]:
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


def _agreement(course: Trajectory, name: str, values: Sequence[float]) -> str:
    """Kendall's tau of purity with `values`, where both are known."""
    pairs = np.array([course.purity, values], dtype=np.float64)
    x, y = pairs[:, np.isfinite(pairs).all(0)]
    said = f"Kendall's tau of the purity of {course.layer} with {name}"
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"{said}: none, for {len(x)} checkpoints have both{' and one is constant' if len(x) > 2 else ''}."
    tau = correlate(x, y)["kendall"]
    return f"{said}: {tau.value:.3f}, two-sided p {tau.p:.2g}, n = {len(x)}."
