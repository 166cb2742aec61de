"""Results -> one tidy DataFrame -> CSV, Markdown, JSON, and text for the console."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from purity_cli import metrics
from purity_cli.errors import PurityError
from purity_cli.results import Result
from purity_cli.stats import jackknife

COLUMNS = (
    "model", "source", "weights", "dataset", "n_images", "stage", "layer", "channels", "height", "width", "threshold",
    "purity", "se", "purity_jk", "activations", "live", "top1", "top5", "preprocessing",
)  # fmt: skip
ENOUGH = 5
"""Activations per channel below which F is markedly biased low."""


def frame(results: Iterable[Result]) -> pd.DataFrame:
    """One row per result, layer and threshold, with `COLUMNS`.

    `purity`, `se` and `purity_jk` (F, its jackknife standard error, F with its bias removed) are NaN where nothing
    fired; `activations` is N, `live` the number of channels that fired; `top1` and `top5` are per cent, `stage` is
    None for a layer that is none. Behind them stands a column for every peer that any of the layers has, NaN elsewhere.
    """
    results = list(results)
    peers = list(dict.fromkeys(name for result in results for layer in result.layers for name in layer.measures))
    rows: list[tuple[Any, ...]] = []
    for result in results:
        names = (result.model, result.source, result.weights, result.dataset, result.n_images)
        for layer in result.layers:
            place = (layer.stage, layer.module, layer.channels, layer.height, layer.width)
            if layer.counts is None:  # a network that predicts no class
                fired = live = [None] * len(result.thresholds)
                values = [[math.nan] * 3] * len(result.thresholds)
            else:
                totals = layer.counts.sum(0)
                fired, live = totals.sum(1).tolist(), (totals > 0).sum(1).tolist()
                values = np.stack(jackknife(layer.counts, result.n_images), 1).tolist()
            last = (
                result.top1,
                result.top5,
                result.preprocessing,
                *(layer.measures.get(name, math.nan) for name in peers),
            )
            rows += [
                (*names, *place, threshold, *value, count, alive, *last)
                for threshold, value, count, alive in zip(result.thresholds, values, fired, live, strict=True)
            ]
    kinds: dict[str, Any] = {"top1": float, "top5": float, "stage": object}
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *peers]).astype(kinds)
    whole = "Int64" if frame["activations"].isna().any() else "int64"
    return frame.astype({"activations": whole, "live": whole})


def at(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The rows at one threshold; PurityError where the counts do not have it."""
    found = rows[np.isclose(rows["threshold"], threshold, rtol=0, atol=1e-9)]
    if found.empty:
        known = ", ".join(f"{t:g}" for t in sorted(set(rows["threshold"])))
        raise PurityError(f"There are no counts at the threshold {threshold:g}, only at {known}.")
    return found


def peers_of(rows: pd.DataFrame) -> list[str]:
    """The columns of other measures than purity."""
    return [name for name in rows.columns if name in metrics.columns()]


def starved(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose F is biased low because N is below `ENOUGH` x c."""
    return rows[(rows["activations"] < ENOUGH * rows["channels"]).fillna(False)]


def to_csv(rows: pd.DataFrame) -> str:
    """CSV that pandas reads back to the last digit; `NaN` where nothing fired, empty where there is no such thing."""
    optional = ("stage", "top1", "top5", *peers_of(rows))
    absent = {name: rows[name].astype(object).where(rows[name].notna(), "") for name in optional}
    for name in ("purity", "se", "purity_jk", "activations", "live"):
        absent[name] = rows[name].astype(object).where(rows["activations"].notna(), "")
    return rows.assign(**absent).to_csv(index=False, na_rep="NaN", lineterminator="\n")


def to_json(rows: pd.DataFrame) -> str:
    """A list with an object per row; null for NaN."""
    records = rows.astype(object).to_dict("records")
    clean = [
        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in record.items()}
        for record in records
    ]
    return json.dumps(clean, indent=2, allow_nan=False) + "\n"


def layout(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's: a row per stage, then Average and top1, a column per model (rows at one threshold).

    Average is NaN where a stage's F is. A layer that is no stage stands under its path; a cell that a model does not
    have is empty (None).
    """
    columns = {}
    for name, model in by_model(rows):
        column: dict[str, float | None] = dict(zip(labels(model), model["purity"], strict=True))
        column["Average"] = float(np.mean(model["purity"]))
        top1 = model["top1"].iloc[0]
        column["top1"] = None if math.isnan(top1) else float(top1)
        columns[name] = column
    order = dict.fromkeys([label for _, model in by_model(rows) for label in labels(model)])
    return pd.DataFrame(columns, index=[*order, "Average", "top1"], dtype=object)


def to_markdown(results: Sequence[Result], threshold: float) -> str:
    """The paper's table, then what must stand beside its values, then what they were computed from."""
    rows = at(frame(results), threshold)
    paper = layout(rows)
    paper.index.name = "stage"
    shown = paper.apply(
        lambda row: [cell(value, 2 if row.name == "top1" else 3) for value in row], axis=1, result_type="broadcast"
    )
    parts = [shown.to_markdown(disable_numparse=True), details(rows).to_markdown(index=False, disable_numparse=True)]
    parts += [footnote(result, threshold) for result in results]
    return "\n\n".join(parts) + "\n"


def details(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per layer as text: F with its standard error, and what makes it hard to trust (rows at one threshold)."""
    several = rows["model"].nunique() > 1
    low = set(starved(rows).index)
    table = pd.DataFrame(
        {
            "model": rows["model"],
            "stage": rows["stage"].fillna(""),
            "layer": rows["layer"],
            "c x h x w": [
                f"{c} x {h} x {w}" for c, h, w in zip(rows["channels"], rows["height"], rows["width"], strict=True)
            ],
            **{
                shown: [cell(None if pd.isna(n) else v) for v, n in zip(rows[name], rows["activations"], strict=True)]
                for shown, name in (("F", "purity"), ("se", "se"), ("F jk", "purity_jk"))
            },
            "N": [
                "" if pd.isna(n) else f"{n:,}{' (< 5 c)' if i in low else ''}" for i, n in rows["activations"].items()
            ],
            "live": [
                "" if pd.isna(live) else f"{live} of {c}"
                for live, c in zip(rows["live"], rows["channels"], strict=True)
            ],
            **{name: [cell(None if math.isnan(value) else value) for value in rows[name]] for name in peers_of(rows)},
        }
    )
    return table if several else table.drop(columns="model")


def summary(result: Result, threshold: float | None = None) -> str:
    """One line: the model, its images, its accuracy, the pixels, the threshold if there is one."""
    accuracy = "no accuracy" if result.top1 is None else f"top-1 {result.top1:.2f} %"
    at_threshold = "" if threshold is None else f"threshold {threshold:g}; "
    return (
        f"{result.model} ({result.source}, weights {result.weights}) on {result.n_images:,} images of "
        f"{result.dataset}: {accuracy}; {at_threshold}{result.preprocessing}"
    )


def footnote(result: Result, threshold: float) -> str:
    """`summary`, then the modules behind the stages, then what was left out."""
    modules = ", ".join(
        f"{layer.stage} = `{layer.module}`" if layer.stage else f"`{layer.module}`" for layer in result.layers
    )
    skipped = result.provenance.get("images_skipped") or ()
    left_out = f" {len(skipped)} unreadable images were left out." if skipped else ""
    return f"{summary(result, threshold)}. Layers: {modules}.{left_out}"


def by_model(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each result's rows under the shortest name that tells it from the others."""
    keys = ["model", "source", "weights", "dataset", "preprocessing"]
    parts = [(dict(zip(keys, key, strict=True)), part) for key, part in rows.groupby(keys, sort=False)]
    varying = ["model"]
    for name in keys[1:]:
        distinct = len({tuple(key[k] for k in varying) for key, _ in parts})
        if distinct < len({tuple(key[k] for k in (*varying, name)) for key, _ in parts}):
            varying.append(name)
    return [(" ".join(str(key[name]) for name in varying), part) for key, part in parts]


def labels(model: pd.DataFrame) -> list[str]:
    """What the rows' layers are called: their stage, else their path."""
    return [
        stage if isinstance(stage, str) else layer for stage, layer in zip(model["stage"], model["layer"], strict=True)
    ]


def cell(value: Any, digits: int = 3) -> str:
    """`0.123`; `NaN` where nothing fired, nothing where there is no such cell."""
    if value is None:
        return ""
    return "NaN" if math.isnan(value) else f"{value:.{digits}f}"
