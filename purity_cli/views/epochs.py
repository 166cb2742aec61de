"""Purity over training in the layout of the paper's Table 3, and which checkpoint it would have chosen.

What a result's provenance says of its checkpoint: `epoch`, `checkpoint` (its file's name), and `recorded`, what its
training wrote beside it (`test_top1`, and `test_fingerprint` and `test_images` of the images that it is of).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from purity_cli.errors import PurityError
from purity_cli.report import Column, Report, Row, Table, number, text
from purity_cli.results import Result
from purity_cli.stats import RATE
from purity_cli.views import cells
from purity_cli.views.layers import low, rate_title, tidy, trust

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


@dataclass(frozen=True)
class Published:
    """Values of a publication beside a training: `top1` and `purity` by epoch, and the notes that belong to them."""

    values: Mapping[int, Mapping[str, float]]
    notes: Sequence[str] = ()


def epochs(
    results: Sequence[Result],
    threshold: float,
    rate: float = RATE,
    *,
    patience: int = PATIENCE,
    published: Published | None = None,
) -> Report:
    """A row per checkpoint, the choices, what they cost, and published values where there are any."""
    results = in_order(results)
    called = [f"epoch {_epoch(result)}" for result in results]
    every = rows(results, threshold, rate, called)
    last = cells.deepest(results[0])
    one = trajectory(results, every)
    found = choices(one, patience)
    data = [Column("epoch"), Column("checkpoint"), *tidy(cells.measures(results), rate)]
    rule = [
        text("rule", fold=True), number("epoch", "keeps epoch", None), number("seen", "looks until", None),
        number("accuracy", digits=2), number("regret", digits=2),
    ]  # fmt: skip
    return Report(
        [
            Table("epochs", data, [row for row in every if row["layer"]], aim="data"),
            _layout(results, every, rate, published.values if published else {}),
            Table("choices", rule, [asdict(choice) for choice in found]),
        ],
        [
            *_notes(results), *(published.notes if published else ()),
            *(remark for result in results for remark in cells.remarks(result)), *words(one, found),
            *trust(results, every, threshold, rate, called),
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
    """Measured, or else as the training recorded it; None where neither exists."""
    recorded: float | None = result.provenance.get("recorded", {}).get("test_top1")
    return recorded if result.top1 is None else result.top1


def disagrees(result: Result) -> bool:
    """Whether the training recorded another accuracy, by more than half a point, on these very images."""
    recorded, here = result.provenance.get("recorded", {}), result.provenance
    same = recorded.get("test_fingerprint") == here.get("dataset_fingerprint")
    whole = recorded.get("test_images") == here.get("images_scored")
    if recorded.get("test_top1") is None or result.top1 is None or not (same and whole):
        return False
    return bool(abs(recorded["test_top1"] - result.top1) > 0.5)


def rows(
    results: Sequence[Result], threshold: float, rate: float = RATE, called: Sequence[str] | None = None
) -> list[Row]:
    """`cells.every_row` of results in order, with `epoch` and `checkpoint`; top1 is the checkpoint's accuracy."""
    about = [{"epoch": _epoch(one), "checkpoint": _file(one), "top1": accuracy(one)} for one in results]
    return [{**row, **about[row["result"]]} for row in cells.every_row(results, threshold, rate, called)]


def trajectory(results: Sequence[Result], every: Sequence[Row]) -> Trajectory:
    """Purity of the deepest layer and accuracy over the epochs."""
    values = [row.get("purity") for row in every if row.get("deepest")]
    return Trajectory(
        epochs=[_epoch(result) for result in results],
        layer=cells.deepest(results[0]).name,
        purity=[math.nan if value is None else value for value in values],
        accuracy=[math.nan if value is None else value for value in map(accuracy, results)],
        images=results[0].n_images,
    )


def _layout(
    results: Sequence[Result], every: Sequence[Row], rate: float, published: Mapping[int, Mapping[str, float]]
) -> Table:
    """A row per checkpoint: accuracy and purity of the deepest layer, the other rows, and what stands beside them."""
    last = cells.deepest(results[0]).name
    others = [row["label"] for row in every if row["result"] == 0 and row["label"] != last]
    measures = cells.measures(results)
    lines: list[dict[str, Any]] = []
    marks: dict[tuple[int, str], str] = {}
    for place, result in enumerate(results):
        own = {row["label"]: row for row in every if row["result"] == place}
        one, theirs = own[last], published.get(_epoch(result), {})
        lines.append(
            {
                **{name: own[name].get("purity") for name in others}, **{name: one.get(name) for name in measures},
                **{name: one.get(name) for name in ("epoch", "top1", "purity", "se", "purity_rate", "live")},
                "N": one.get("activations"), "paper_top1": theirs.get("top1"), "paper": theirs.get("purity"),
            }
        )  # fmt: skip
        keys = {"purity": (one, "purity"), "purity_rate": (one, "purity_rate")}
        keys |= {name: (own[name], "purity") for name in others if own[name]["layer"]}
        marks |= {(place, name): "starved" for name, (row, key) in keys.items() if low(row, key)}
    columns = [
        number("epoch", digits=None), number("top1", "accuracy", 2), number("purity"), number("se", drop=1),
        number("purity_rate", rate_title(rate)), *map(number, others), *map(number, measures),
        number("N", digits=None, drop=1), number("live", digits=None, drop=1),
        *([number("paper_top1", "paper accuracy", 2), number("paper", "paper purity")] if published else []),
    ]  # fmt: skip
    return Table("layout", columns, lines, marks=marks, aim="people")


def _notes(results: Sequence[Result]) -> list[str]:
    """Where the accuracies come from, and where they are missing or not those recorded."""
    notes = []
    missing = [_file(result) for result in results if accuracy(result) is None]
    why = results[0].provenance.get("labels")
    if missing:
        notes.append(
            f"No regret can be given, because {', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no "
            f"accuracy: {why}, and no JSON beside them has test_top1."
        )
    if any(result.top1 is None and accuracy(result) is not None for result in results):
        notes.append(f"Accuracies are those that the training recorded, because they cannot be measured here: {why}.")
    return notes + [
        f"{_file(result)} has {result.top1:.2f} % here, and its training recorded "
        f"{result.provenance['recorded']['test_top1']:.2f} % on the same images: the pixels may not be those of its "
        "training."
        for result in results
        if disagrees(result)
    ]


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


def choices(one: Trajectory, patience: int) -> list[Choice]:
    """By purity and by accuracy, each over all checkpoints and with `patience`, and the last checkpoint."""
    complete = not any(map(math.isnan, one.accuracy))
    last = len(one.epochs) - 1
    picks: list[tuple[str, int | None, int]] = []
    for name, values in ((f"purity of {one.layer}", one.purity), ("accuracy", one.accuracy)):
        if name != "accuracy" or complete:
            picks.append((f"highest {name}", *keep(values)))
            picks.append((f"{name}, patience {patience}", *keep(values, patience)))
    picks.append(("last checkpoint", last, last))
    found = []
    for rule, place, seen in picks:
        value = math.nan if place is None else one.accuracy[place]
        found.append(
            Choice(
                rule=rule,
                epoch=None if place is None else one.epochs[place],
                seen=one.epochs[seen],
                accuracy=None if math.isnan(value) else value,
                regret=max(one.accuracy) - value if complete and place is not None else None,
            )
        )
    return found


def words(one: Trajectory, found: Sequence[Choice]) -> list[str]:
    """What a training shows and how far that can be trusted, in sentences."""
    sentences = [_verdict(choice, one.images) for choice in found if f"purity of {one.layer}" in choice.rule]
    sentences += [_agreement(one, "epoch", one.epochs), _agreement(one, "accuracy", one.accuracy)]
    if not any(map(math.isnan, one.accuracy)):
        best = max(one.accuracy)
        error = 100 * math.sqrt(best / 100 * (1 - best / 100) / one.images)
        sentences.append(
            f"One image is {100 / one.images:.2g} points, and {best:.2f} % of {one.images:,} images has a "
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


def _agreement(one: Trajectory, name: str, values: Sequence[float]) -> str:
    """Kendall's tau of purity with `values`, where both are known."""
    from scipy.stats import kendalltau

    pairs = np.array([one.purity, values], dtype=np.float64)
    x, y = pairs[:, np.isfinite(pairs).all(0)]
    tau = f"Kendall's tau of the purity of {one.layer} with {name}"
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"{tau}: none, because {len(x)} checkpoints have both{' and one is constant' if len(x) > 2 else ''}."
    found = kendalltau(x, y)
    return f"{tau}: {found.statistic:.3f}, two-sided p {found.pvalue:.2g}, n = {len(x)}."
