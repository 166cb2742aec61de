"""What every view says of a result, said once: its name, its cells, their average, the deepest, what they are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from purity_cli.errors import PurityError
from purity_cli.files import epochs_of, expanded
from purity_cli.naming import ACTIVATION, READINGS, label
from purity_cli.plan import Job, table_thresholds
from purity_cli.results import Layer, Result
from purity_cli.stats import ENOUGH, jackknife_of_mean

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = "Average"
COLUMNS = (
    "model", "source", "weights", "dataset", "n_images", "stage", "reading", "layer", "channels", "height", "width",
    "threshold", "purity", "se", "purity_jk", "activations", "live", "average", "top1", "top5", "preprocessing",
)  # fmt: skip
"""Of a tidy row, for programs; behind them stand the other measures, each under its name."""


class Cell(NamedTuple):
    """One layer, or one average, at one threshold; None of a network without a classifier."""

    purity: float | None
    """F; NaN where nothing fired."""
    se: float | None
    """Its jackknife standard error."""
    corrected: float | None
    """F with its bias removed."""
    activations: int | None = None
    """N; None for an average."""
    live: int | None = None


NONE = Cell(None, None, None)


def is_number(value: float | None) -> bool:
    """Whether there is such a value, and something fired."""
    return value is not None and not math.isnan(value)


def index(result: Result, threshold: float) -> int:
    """The place of a threshold in a result's grid; PurityError where the counts do not have it."""
    for place, known in enumerate(result.thresholds):
        if abs(known - threshold) < 1e-9:
            return place
    known_ = ", ".join(f"{t:g}" for t in result.thresholds)
    raise PurityError(f"There are no counts of {result.model} at the threshold {threshold:g}, only at {known_}.")


def cell(result: Result, layer: Layer, threshold: float) -> Cell:
    """What a layer of a result has at a threshold."""
    return _cells(result, [layer], [index(result, threshold)])[0]


def curve(result: Result, layer: Layer) -> list[Cell]:
    """What a layer of a result has at every threshold."""
    return _cells(result, [layer], range(len(result.thresholds)))


def average(result: Result, reading: str, threshold: float) -> Cell | None:
    """The mean of F over the rows that are stages of one reading: NaN where any is; None where there are none."""
    layers = stages_of(result).get(reading)
    if not layers:
        return None
    return _cells(result, layers, [index(result, threshold)])[0]._replace(activations=None, live=None)


def averages(result: Result, threshold: float) -> dict[str, Cell]:
    """The average of each reading, by its label: `Average`, `conv:Average`."""
    found = {reading: average(result, reading, threshold) for reading in stages_of(result)}
    return {label(reading, AVERAGE): value for reading, value in found.items() if value}


def _cells(result: Result, layers: Sequence[Layer], places: Sequence[int]) -> list[Cell]:
    """The mean of the layers at some thresholds; with N and the live channels where it is of one layer."""
    counts = [layer.counts[:, list(places)] for layer in layers if layer.counts is not None]
    if len(counts) < len(layers):
        return [NONE for _ in places]
    values = [column.tolist() for column in jackknife_of_mean(counts, result.images)]
    totals = counts[0].sum(0)
    amounts = zip(totals.sum(1).tolist(), (totals > 0).sum(1).tolist(), strict=True)
    one = len(layers) == 1
    return [Cell(*value, *(amount if one else ())) for *value, amount in zip(*values, amounts, strict=True)]


def reading_of(layer: Layer) -> str | None:
    """`activation` for a stage of which nothing else is said, as in results of before; None for no stage."""
    return None if layer.stage is None else layer.reading or ACTIVATION


def depth(stage: str | None) -> int:
    """The number of a stage; 0 for none."""
    return int(stage[1:]) if stage else 0


def stages_of(result: Result) -> dict[str, list[Layer]]:
    """The rows that are stages, by their reading."""
    found = {reading: [layer for layer in result.layers if reading_of(layer) == reading] for reading in READINGS}
    return {reading: layers for reading, layers in found.items() if layers}


def deepest(result: Result) -> Layer:
    """The last stage in its activation reading, else in the reading that was asked for last, else the last row."""
    staged = [layer for layer in result.layers if layer.stage]
    if not staged:
        return result.layers[-1]
    of = stages_of(result)
    return deepest_of(of[ACTIVATION] if ACTIVATION in of else of[reading_of(staged[-1]) or ""])


def deepest_of(layers: Sequence[Layer]) -> Layer:
    """The last stage of some."""
    return max(reversed(layers), key=lambda layer: depth(layer.stage))


def epoch_of(job: Job, result: Result | None = None) -> int | None:
    """The epoch of a checkpoint: as scored, else from the JSON beside it, else from its name; None for none."""
    known = result.provenance.get("epoch") if result else None
    if known is None and Path(job.weights).suffix:
        try:
            about = json.loads(expanded(job.weights).with_suffix(".json").read_text("utf-8"))
            known = about.get("epoch")
        except (OSError, ValueError, AttributeError):
            known = None
        if not isinstance(known, int):
            named, doubt = epochs_of([Path(job.weights).stem])
            known = named[0] if named and not doubt else None
    return known


def bare(job: Job) -> str:
    """A Job's model without its source or its file."""
    return job.model.rpartition(":")[2]


def identity(of: Result | Job) -> dict[str, str]:
    """What tells a result, or a job without one, from others: the shorter first."""
    job, result = (of, None) if isinstance(of, Job) else (of.job, of)
    epoch = epoch_of(job, result)
    found: dict[str, Any] = {
        "model": result.model if result else bare(job),
        "source": result.source if result else job.model.rpartition(":")[0],
        "epoch": None if epoch is None else f"epoch {epoch}",
        "weights": result.weights if result else job.weights,
        "dataset": result.dataset if result else job.dataset,
        "precision": result.provenance.get("precision", job.precision) if result else job.precision,
        "pixels": result.preprocessing if result else job.preprocess,
        "asked": job.model,
    }
    others = (name for name in Job.model_fields if name not in found)
    found |= {name: f"{name} {getattr(job, name)}" for name in others}
    found["file"] = f"weights {job.weights}"
    if result:
        content = (result.provenance.get(name) for name in ("weights_sha256", "network_sha256", "dataset_fingerprint"))
        found["content"] = " ".join(str(value)[:8] for value in content if value)
    return {name: "" if value is None else str(value) for name, value in found.items()}


def names(things: Sequence[Result | Job]) -> list[str]:
    """The shortest names that tell results, and jobs without one, apart; the same names whichever command asks."""
    known = [identity(thing) for thing in things]
    chosen: list[tuple[str, ...]] = []
    for one in known:
        alike = [other for other in known if other["model"] == one["model"]]
        fields: tuple[str, ...] = ("model",)
        for name in dict.fromkeys(name for other in alike for name in other):
            told = len({tuple(other.get(f) for f in fields) for other in alike})
            if len({tuple(other.get(f) for f in (*fields, name)) for other in alike}) > told:
                fields += (name,)
        chosen.append(fields)
    found = [_name(one, fields) for one, fields in zip(known, chosen, strict=True)]
    seen: dict[str, int] = {}
    for i, name in enumerate(found):
        seen[name] = seen.get(name, 0) + 1
        found[i] = name if seen[name] == 1 else f"{name} #{seen[name]}"
    return found


def _name(of: Mapping[str, str], fields: Sequence[str]) -> str:
    model = of["asked"] if "asked" in fields else of["model"]
    if "source" in fields and "asked" not in fields and of["source"]:
        model = f"{of['source']}:{model}"
    return " ".join([model, *(of.get(name, "") for name in fields if name not in ("model", "source", "asked"))]).strip()


def rows(results: Sequence[Result], threshold: float | None = None) -> list[dict[str, Any]]:
    """A tidy row per result, layer and threshold of tables, or at one threshold: `COLUMNS` and the other measures.

    Beside them stand `result` (its place), `name`, `label`, `deepest` and `starved`. None is what there is not: of a
    network without a classifier, a layer has one row, without a threshold.
    """
    found = []
    for place, (name, result) in enumerate(zip(names(results), results, strict=True)):
        shown = table_thresholds(result.thresholds) if threshold is None else [threshold]
        places = [index(result, one) for one in shown]
        means = {
            reading: [one.purity for one in _cells(result, layers, places)]
            for reading, layers in stages_of(result).items()
        }
        last = deepest(result)
        for layer in result.layers:
            whole = {
                "model": result.model, "source": result.source, "weights": result.weights, "dataset": result.dataset,
                "n_images": result.n_images, "stage": layer.stage, "reading": reading_of(layer), "layer": layer.module,
                "channels": layer.channels, "height": layer.height, "width": layer.width, "top1": result.top1,
                "top5": result.top5, "preprocessing": result.preprocessing, "result": place, "name": name,
                "label": layer.name, "deepest": layer is last, **layer.measures,
            }  # fmt: skip
            if layer.counts is None:
                found.append(whole)
                continue
            of_stages = means.get(reading_of(layer) or "", [None] * len(places))
            for i, one, mean in zip(places, _cells(result, [layer], places), of_stages, strict=True):
                values = {
                    "threshold": result.thresholds[i], "purity": one.purity, "se": one.se, "purity_jk": one.corrected,
                    "activations": one.activations, "live": one.live, "average": mean,
                    "starved": (one.activations or 0) < ENOUGH * layer.channels,
                }  # fmt: skip
                found.append({**whole, **values})
    return found


def frame(results: Sequence[Result], threshold: float | None = None) -> pd.DataFrame:
    """`rows` of all that has purity as a DataFrame, for figures and statistics: NaN for None, too."""
    import pandas as pd

    known = [row for row in rows(results, threshold) if "purity" in row]
    extra = [*measures(results), "result", "name", "label", "deepest", "starved"]
    numbers = {"top1": float, "top5": float, "average": float, "stage": object, "reading": object}
    return pd.DataFrame(known, columns=[*COLUMNS, *extra]).astype({**numbers, "starved": bool, "deepest": bool})


def measures(results: Sequence[Result]) -> list[str]:
    """The columns of other measures than purity."""
    return list(dict.fromkeys(name for result in results for layer in result.layers for name in layer.measures))


def summary(result: Result, threshold: float | None = None) -> str:
    """One line: the model, its images, its accuracy, the pixels, the threshold if there is one."""
    accuracy = "no accuracy" if result.top1 is None else f"top-1 {result.top1:.2f} %"
    at_threshold = "" if threshold is None else f"threshold {threshold:g}; "
    return (
        f"{result.model} ({result.source}, weights {result.weights}) on {result.n_images:,} images of "
        f"{result.dataset}: {accuracy}; {at_threshold}{result.preprocessing}."
    )


def remarks(result: Result) -> Iterator[str]:
    """What was left out of a result, and what its run said of it."""
    skipped = len(result.provenance.get("images_skipped") or ())
    if skipped:
        yield f"{skipped} unreadable image{'s were' if skipped > 1 else ' was'} left out of {result.dataset}."
    yield from result.provenance.get("notes") or ()


def modules(result: Result) -> str:
    """The modules behind the rows: `C3 = layer3, conv:C3 = layer3.1.conv2, fc`."""
    return ", ".join(f"{one.name} = {one.module}" if one.stage else one.module for one in result.layers)
