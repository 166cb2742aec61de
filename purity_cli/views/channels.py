"""The channels of each layer by name: how often each fires, which are dead, and how few make half of all firings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from purity_cli.errors import PurityError
from purity_cli.report import Column, Report, Row, Table, number, text
from purity_cli.results import Layer, Result
from purity_cli.stats import RATE, purity_at_rate
from purity_cli.views import cells
from purity_cli.views.layers import rate_title

LISTED = 10
"""Channels of a layer that one cell names."""
COLUMNS = (
    "model", "weights", "dataset", "stage", "reading", "layer", "channel", "threshold", "firings", "rate",
    "firings_rate", "share", "dead",
)  # fmt: skip


def channels(results: Sequence[Result], threshold: float, rate: float = RATE, *, dead: bool = False) -> Report:
    """A row per layer for people, and one per channel for programs, and for people where there is one layer.

    With `dead`, only the channels that fire on no image at the threshold.
    """
    called = cells.names(results)
    every, summary = list[Row](), list[Row]()
    for name, result in zip(called, results, strict=True):
        for layer in (one for one in result.layers if one.counts is not None):
            own = of_layer(result, layer, threshold, rate)
            every += [{"name": name, **row} for row in own if row["dead"] or not dead]
            summary.append({"name": name, **_summary(layer, own)})
    if not summary:
        raise PurityError("A network without a classifier has no firings, and so no channels to list.")
    several = text("name", "model", shown=len(results) > 1, data=False)
    at_rate = number("firings_rate", f"firings at {100 * rate:g}%", 1)
    columns = [
        number("channel", digits=None), number("firings", digits=None), at_rate, number("share", digits=4),
        number("dead", digits=None, shown=False),
    ]  # fmt: skip
    known = {column.key: column for column in columns}
    tidy = [known.get(key, Column(key, shown=False)) for key in COLUMNS]
    per_layer = [
        several, text("label", "layer", fold=True), *(number(key, digits=None) for key in ("c", "live", "dead")),
        number("half", "make half", None), number("N", digits=None), text("strongest", fold=True),
        text("dead_channels", "dead channels", fold=True),
    ]  # fmt: skip
    notes = [cells.summary(result, threshold) for result in results]
    notes.append(
        f"A dead channel fires on no image at the threshold {threshold:g}; it still has values. `purity channels "
        "--ablate` measures what setting it to zero changes. make half: so few channels make half of all firings."
    )
    missing = [row["label"] for row in summary if row["no_rate"]]
    if missing:
        notes.append(f"{rate_title(rate)}: no stored threshold gives this firing rate in {', '.join(missing)}.")
    people = dead or len(summary) == 1
    listed = [several, text("label", "layer", data=False, shown=len(summary) > 1), *tidy]
    return Report(
        [
            Table("layers", per_layer, summary, aim="page" if dead else "people"),
            Table("channels", listed, every, aim="all" if people else "data"),
        ],
        notes,
    )


def of_layer(result: Result, layer: Layer, threshold: float, rate: float = RATE) -> list[Row]:
    """A row per channel, the one that fires most first; `firings_rate` is None where no threshold gives the rate.

    Firings at the rate are interpolated linearly between the stored thresholds around t_r.
    """
    totals = layer.counts.sum(0)
    fired = totals[cells.index(result, threshold)]
    t_r = purity_at_rate(layer.counts, result.images, result.thresholds, rate).threshold
    at_rate = None
    if np.isfinite(t_r):
        at_rate = [float(np.interp(t_r, result.thresholds, totals[:, k])) for k in range(layer.channels)]
    n = int(fired.sum())
    about = {
        "model": result.model, "weights": result.weights, "dataset": result.dataset, "stage": layer.stage,
        "reading": cells.reading_of(layer), "layer": layer.module, "label": layer.name, "threshold": threshold,
        "rate": rate,
    }  # fmt: skip
    return [
        {
            **about, "channel": int(k), "firings": int(fired[k]), "firings_rate": at_rate[k] if at_rate else None,
            "share": int(fired[k]) / n if n else float("nan"), "dead": bool(fired[k] == 0),
        }
        for k in np.argsort(-fired, kind="stable")
    ]  # fmt: skip


def _summary(layer: Layer, own: Sequence[Row]) -> dict[str, Any]:
    firings = np.array([row["firings"] for row in own])
    n, dead = int(firings.sum()), sorted(row["channel"] for row in own if row["dead"])
    strongest = [f"{row['channel']} ({row['share']:.1%})" for row in own[:3] if not row["dead"]]
    more = f" and {len(dead) - LISTED} more" if dead[LISTED:] else ""
    return {
        "label": layer.name, "c": layer.channels, "live": layer.channels - len(dead), "dead": len(dead), "N": n,
        "half": int(np.searchsorted(firings.cumsum(), n / 2) + 1) if n else None, "strongest": ", ".join(strongest),
        "dead_channels": ", ".join(map(str, dead[:LISTED])) + more,
        "no_rate": own[0]["firings_rate"] is None,
    }  # fmt: skip


def ablation(rows: Sequence[Row], images: int, threshold: float) -> Report:
    """What setting channels to zero changed, from the rows of `cam.ablate`."""
    columns = [
        text("layer", fold=True), number("zeroed", "channels set to 0", None),
        number("changed", "predictions changed", None),
        number("top1_before", "top-1 before", 2), number("top1", "top-1 after", 2),
        number("mean", "mean |change| of a logit", 4), number("largest", "largest", 4),
        number("spread", "spread of the logits", 3),
    ]  # fmt: skip
    notes = [f"Measured on {images:,} images; the spread is the standard deviation of all logits."]
    if any(row["changed"] for row in rows):
        notes.append(
            f"The network uses these channels, although they may never fire at the threshold {threshold:g}: a map "
            "that is never broad still has values. A lower --threshold names fewer channels."
        )
    return Report([Table("ablation", columns, rows)], notes)
