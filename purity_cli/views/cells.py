"""The one table behind every view: a row per result, layer and threshold, and the names that results are called by.

Rows are plain dicts, because two things must stay apart that a DataFrame would make one: None is a value that does not
exist (a network without a classifier has no purity), NaN is one that is undefined (nothing fired).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purity_cli.errors import PurityError
from purity_cli.files import epochs_of, expanded
from purity_cli.naming import ACTIVATION, READINGS, label
from purity_cli.plan import Job, table_thresholds
from purity_cli.results import Layer, Result
from purity_cli.stats import ENOUGH, RATE, jackknife_of_mean, purity_at_rate_of_mean

if TYPE_CHECKING:
    import pandas as pd

    from purity_cli.report import Row

Thresholds = float | Sequence[float] | None
"""One threshold, some, or all that tables show."""
AVERAGE = "Average"
COLUMNS = (
    "model", "source", "weights", "dataset", "n_images", "stage", "reading", "layer", "channels", "height", "width",
    "threshold", "purity", "se", "purity_jk", "activations", "live", "average", "top1", "top5", "preprocessing",
)  # fmt: skip
"""Of a row, for programs; the other measures stand behind them, each under its name, and then `RATE_COLUMNS`."""
RATE_COLUMNS = ("purity_rate", "purity_rate_se", "rate", "rate_threshold")


def is_number(value: float | None) -> bool:
    """Whether there is a value, and it is defined."""
    return value is not None and not math.isnan(value)


def index(result: Result, threshold: float) -> int:
    """The place of a threshold in a result's grid; PurityError where the counts do not have it."""
    for place, stored in enumerate(result.thresholds):
        if abs(stored - threshold) < 1e-9:
            return place
    grid = ", ".join(f"{t:g}" for t in result.thresholds)
    raise PurityError(f"There are no counts of {result.model} at the threshold {threshold:g}, only at {grid}.")


def _places(result: Result, thresholds: Thresholds) -> list[int]:
    if isinstance(thresholds, float | int):
        return [index(result, thresholds)]
    return sorted({index(result, threshold) for threshold in thresholds or table_thresholds(result.thresholds)})


def rows(results: Sequence[Result], thresholds: Thresholds = None, rate: float = RATE) -> list[Row]:
    """The rows of every layer, at one threshold, some or all: `COLUMNS`, `RATE_COLUMNS` and the other measures.

    Beside them stand `result` (its place), `name`, `label`, `deepest`, `starved` (N < 5 c), `rate_starved` (the same at
    the rate) and `rate_reason` (why F at the rate is NaN). A layer without purity has one row, without a threshold.
    """
    return [row for row in every_row(results, thresholds, rate) if row["layer"] is not None]


def every_row(
    results: Sequence[Result],
    thresholds: Thresholds = None,
    rate: float = RATE,
    called: Sequence[str] | None = None,
) -> list[Row]:
    """As `rows`, and behind the layers of each result the averages of its readings, whose `layer` is None.

    `called` are the names of the results, instead of `names(results)`.
    """
    found: list[Row] = []
    for place, (name, result) in enumerate(zip(called or names(results), results, strict=True)):
        places = _places(result, thresholds)
        whole: dict[str, Any] = {
            "model": result.model, "source": result.source, "weights": result.weights, "dataset": result.dataset,
            "n_images": result.n_images, "top1": result.top1, "top5": result.top5,
            "preprocessing": result.preprocessing, "result": place, "name": name,
        }  # fmt: skip
        staged = stages_of(result)
        means = {reading: _values(result, layers, places, rate) for reading, layers in staged.items()}
        last = deepest(result)
        for layer in result.layers:
            about = {
                **whole, "stage": layer.stage, "reading": reading_of(layer), "layer": layer.module,
                "channels": layer.channels, "height": layer.height, "width": layer.width, "label": layer.name,
                "deepest": layer is last, **layer.measures,
            }  # fmt: skip
            mean = means.get(about["reading"] or "") or [{}] * len(places)
            values = _values(result, [layer], places, rate)
            found += [about | one | {"average": all_.get("purity")} for one, all_ in zip(values, mean, strict=False)]
            found += [] if values else [about]
        for reading, values in means.items():
            about = {**whole, "stage": None, "reading": reading, "layer": None, "label": label(reading, AVERAGE)}
            found += [about | one for one in values]
    return found


def _values(result: Result, layers: Sequence[Layer], places: Sequence[int], rate: float) -> list[dict[str, Any]]:
    """The purity of a layer, or the mean of several, at some thresholds; nothing of a network without a classifier."""
    counts = [layer.counts for layer in layers if layer.counts is not None]
    if len(counts) < len(layers):
        return []
    at_rate = purity_at_rate_of_mean(counts, result.images, result.thresholds, rate)
    shared = {
        "purity_rate": at_rate.purity, "purity_rate_se": at_rate.se, "rate": rate, "rate_threshold": at_rate.threshold,
        "rate_reason": at_rate.reason, "rate_starved": rate * result.n_images < ENOUGH,
    }  # fmt: skip
    measured = jackknife_of_mean([one[:, places] for one in counts], result.images)
    fired = [one[:, places].sum((0, 2)).tolist() for one in counts]
    live = (counts[0][:, places].sum(0) > 0).sum(1).tolist()
    least = [ENOUGH * layer.channels for layer in layers]
    found = []
    for i, (purity, se, corrected) in enumerate(zip(*(column.tolist() for column in measured), strict=True)):
        low = any(amounts[i] < enough for amounts, enough in zip(fired, least, strict=True))
        amounts = {"activations": fired[0][i], "live": live[i]} if len(layers) == 1 else {}
        values = {"threshold": result.thresholds[places[i]], "purity": purity, "se": se, "purity_jk": corrected}
        found.append({**shared, **values, **amounts, "starved": low})
    return found


def frame(results: Sequence[Result], thresholds: Thresholds = None, rate: float = RATE) -> pd.DataFrame:
    """`rows` of all layers that have purity as a DataFrame, for figures and statistics: NaN for None, too."""
    import pandas as pd

    found = [row for row in rows(results, thresholds, rate) if "purity" in row]
    extra = [*measures(results), *RATE_COLUMNS, "result", "name", "label", "deepest", "starved", "rate_starved"]
    numbers = {"top1": float, "top5": float, "average": float, "stage": object, "reading": object}
    flags = {"starved": bool, "rate_starved": bool, "deepest": bool}
    return pd.DataFrame(found, columns=[*COLUMNS, *extra]).astype({**numbers, **flags})


def measures(results: Sequence[Result]) -> list[str]:
    """The columns of other measures than purity."""
    return list(dict.fromkeys(name for result in results for layer in result.layers for name in layer.measures))


def reading_of(layer: Layer) -> str | None:
    """`activation` for a stage whose reading is not stored, as in old results; None for a layer that is no stage."""
    return None if layer.stage is None else layer.reading or ACTIVATION


def depth(stage: str | None) -> int:
    """The number of a stage; 0 for none."""
    return int(stage[1:]) if stage else 0


def stages_of(result: Result) -> dict[str, list[Layer]]:
    """The layers that are stages, by their reading."""
    found = {reading: [layer for layer in result.layers if reading_of(layer) == reading] for reading in READINGS}
    return {reading: layers for reading, layers in found.items() if layers}


def deepest(result: Result) -> Layer:
    """The last stage in its activation reading, else in the reading that was asked for last, else the last layer."""
    staged = [layer for layer in result.layers if layer.stage]
    if not staged:
        return result.layers[-1]
    readings = stages_of(result)
    return deepest_of(readings[ACTIVATION if ACTIVATION in readings else reading_of(staged[-1]) or ""])


def deepest_of(layers: Sequence[Layer]) -> Layer:
    """The last stage of some."""
    return max(reversed(layers), key=lambda layer: depth(layer.stage))


def epoch_of(job: Job, result: Result | None = None) -> int | None:
    """The epoch of a checkpoint: as scored, else from the JSON beside it, else from its name; None for none."""
    if result and result.provenance.get("epoch") is not None:
        return int(result.provenance["epoch"])
    path = Path(job.weights)
    if not path.suffix:
        return None
    try:
        epoch = json.loads(expanded(job.weights).with_suffix(".json").read_text("utf-8"))["epoch"]
        return int(epoch)
    except (OSError, ValueError, TypeError, KeyError):
        epochs, doubt = epochs_of([path.stem])
        return epochs[0] if epochs and not doubt else None


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
        digests = (result.provenance.get(name) for name in ("weights_sha256", "network_sha256", "dataset_fingerprint"))
        found["content"] = " ".join(str(value)[:8] for value in digests if value)
    return {name: "" if value is None else str(value) for name, value in found.items()}


def names(things: Sequence[Result | Job]) -> list[str]:
    """The shortest names that tell results, and jobs without one, apart; the same names whichever command asks."""
    identities = [identity(thing) for thing in things]
    found: list[str] = []
    for one in identities:
        alike = [other for other in identities if other["model"] == one["model"]]
        fields: tuple[str, ...] = ("model",)
        for name in dict.fromkeys(name for other in alike for name in other):
            apart = len({tuple(other.get(f) for f in fields) for other in alike})
            if len({tuple(other.get(f) for f in (*fields, name)) for other in alike}) > apart:
                fields += (name,)
        found.append(_name(one, fields))
    counted: dict[str, int] = {}
    for i, name in enumerate(found):
        counted[name] = counted.get(name, 0) + 1
        found[i] = name if counted[name] == 1 else f"{name} #{counted[name]}"
    return found


def _name(of: Mapping[str, str], fields: Sequence[str]) -> str:
    model = of["asked"] if "asked" in fields else of["model"]
    if "source" in fields and "asked" not in fields and of["source"]:
        model = f"{of['source']}:{model}"
    return " ".join([model, *(of.get(name, "") for name in fields if name not in ("model", "source", "asked"))]).strip()


def summary(result: Result, threshold: float | None = None) -> str:
    """One line: the model, its images, its accuracy, the pixels, the threshold if there is one."""
    accuracy = "no accuracy" if result.top1 is None else f"top-1 {result.top1:.2f} %"
    at_threshold = "" if threshold is None else f"threshold {threshold:g}; "
    return (
        f"{result.model} ({result.source}, weights {result.weights}) on {result.n_images:,} images of "
        f"{result.dataset}: {accuracy}; {at_threshold}{result.preprocessing}."
    )


def remarks(result: Result) -> Iterator[str]:
    """What was left out of a result, and the notes of its run."""
    skipped = len(result.provenance.get("images_skipped") or ())
    if skipped:
        yield f"{skipped} unreadable image{'s were' if skipped > 1 else ' was'} left out of {result.dataset}."
    yield from result.provenance.get("notes") or ()


def modules(result: Result) -> str:
    """The modules behind the rows: `C3 = layer3, conv:C3 = layer3.1.conv2, fc`."""
    return ", ".join(f"{one.name} = {one.module}" if one.stage else one.module for one in result.layers)
