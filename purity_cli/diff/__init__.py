"""Two sets of results, cell by cell: what moved, what vanished, and in what else the runs differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from purity_cli import tables
from purity_cli.diff.pairs import IDENTITY, Found, Pair, find, match
from purity_cli.errors import PurityError
from purity_cli.results import Result
from purity_cli.stats import jackknife
from purity_cli.suite import compare

CELLS = (
    "job", *IDENTITY, "stage", "layer", "old", "new", "difference", "se", "in_se", "status",
)  # fmt: skip
CHANGES = ("what", "old", "new", "jobs")
UNREMARKABLE = {*IDENTITY, "job", "key", "seconds", "images_per_second", "started", "command"}
"""What a result's provenance holds that differs from run to run, or that something else here shows."""
FAILED = "failed.json"
"""What `purity bench` leaves of a job that failed."""
LONG = 60
ROUNDING = 1e-12
"""0.705 - 0.7 is no more than 0.005."""
MOVED, VANISHED, NEW = "moved", "vanished", "new"


@dataclass(frozen=True)
class Diff:
    """What two sets of results have in common and have not."""

    cells: pd.DataFrame
    """A row per job and layer with `CELLS`: F old and new, their difference, the standard error that it would have if
    the two were of independent images, and how many of these it is. NaN where nothing fired, and where a side has no
    such layer."""
    changes: pd.DataFrame
    """A row with `CHANGES` per difference in provenance or settings, with the jobs in which it is."""
    vanished: tuple[str, ...]
    """Names of jobs that are no longer there."""
    failures: tuple[str, ...]
    """Jobs of the new suite that failed, and why."""
    tolerance: float
    same_images: bool
    """Whether both sides of every cell are of the same images."""

    @property
    def regressed(self) -> bool:
        """Whether a cell moved, or a job or a layer vanished."""
        return bool(self.vanished) or bool(self.cells["status"].isin((MOVED, VANISHED)).any())

    def verdict(self) -> str:
        """What there is to it, in a sentence."""
        status = self.cells["status"]
        moved, compared = int((status == MOVED).sum()), int(status.isin(("", MOVED)).sum())
        lost = self.cells[(status == VANISHED) & ~self.cells["job"].isin(self.vanished)]
        parts = [f"{moved or 'None'} of {_count(compared, 'cell')} moved by more than {self.tolerance:g}"]
        if self.vanished:
            parts.append(f"{_count(len(self.vanished), 'job')} vanished ({', '.join(self.vanished)})")
        if len(lost):
            parts.append(f"{_count(len(lost), 'layer')} vanished ({', '.join(lost['job'] + ' ' + lost['layer'])})")
        return "; ".join(parts) + "."

    def caution(self) -> str:
        """What `se` means here."""
        who = "as both runs saw" if self.same_images else "where both runs saw"
        return (
            f"se is the standard error of the difference between runs on independent images; {who} the same images, it "
            "is too large, and a difference below it can be more than chance."
        )

    def markdown(self) -> str:
        """All of it, for a page."""
        parts = [f"### Purity: {'regression' if self.regressed else 'no regression'}", self.verdict(), *self.failures]
        parts += [_to_markdown(frame) for frame in (self.changes, self.text()) if len(frame)]
        return "\n\n".join([*parts, self.caution()]) + "\n"

    def json(self) -> str:
        """All of it, for programs; null for NaN."""
        found = {
            "regressed": self.regressed,
            "tolerance": self.tolerance,
            "vanished": self.vanished,
            "failures": self.failures,
            "changes": self.changes.to_dict("records"),
            "cells": json.loads(tables.to_json(self.cells)),
        }
        return json.dumps(found, indent=2, allow_nan=False) + "\n"

    def csv(self) -> str:
        """The cells, for programs: `NaN` where nothing fired, an empty stage for a layer that is none."""
        stage = self.cells["stage"].fillna("")
        return self.cells.assign(stage=stage).to_csv(index=False, na_rep="NaN", lineterminator="\n")

    def text(self) -> pd.DataFrame:
        """The cells as shown."""
        cells = self.cells
        numbers = {name: [_number(v) for v in cells[name]] for name in ("old", "new", "se")}
        absent = {"old": cells["status"] == NEW, "new": cells["status"] == VANISHED}
        shown = {name: np.where(absent[name], "", numbers[name]) for name in absent}
        return pd.DataFrame(
            {
                "job": cells["job"],
                "stage": cells["stage"].fillna(""),
                "layer": cells["layer"],
                **shown,
                "difference": ["" if math.isnan(v) else f"{v:+.4f}" for v in cells["difference"]],
                "se": ["" if math.isnan(v) else _number(v) for v in cells["se"]],
                "in se": ["" if math.isnan(v) else f"{v:+.1f}" for v in cells["in_se"]],
                "": cells["status"],
            }
        )


def diff(old: Path, new: Path, *, threshold: float = 0.5, tolerance: float = 0.005) -> Diff:
    """Compare the results in two folders, or in all folders inside them, at one threshold.

    Raises PurityError where one holds no results, has one twice, or no counts at the threshold.
    """
    pairs = match(find(old), find(new))
    names = _names(pairs)
    rows = [row for name, pair in zip(names, pairs, strict=True) for row in _cells(name, pair, threshold, tolerance)]
    cells = pd.DataFrame(rows, columns=list(CELLS)).astype({"stage": object})
    changes: dict[tuple[str, str, str], list[str]] = {}
    both = [(name, a.result, b.result) for name, (a, b) in zip(names, pairs, strict=True) if a and b]
    for name, a, b in both:
        for change in _changes(a, b):
            changes.setdefault(change, []).append(name)
    listed = [(*change, "all" if len(where) == len(both) else ", ".join(where)) for change, where in changes.items()]
    return Diff(
        cells=cells,
        changes=pd.DataFrame(listed, columns=list(CHANGES)),
        vanished=tuple(name for name, (_, b) in zip(names, pairs, strict=True) if b is None),
        failures=tuple(_failures(new)),
        tolerance=tolerance,
        same_images=all(_images(a) == _images(b) for _, a, b in both),
    )


def _names(pairs: Sequence[Pair]) -> list[str]:
    """The shortest names that tell the jobs apart."""
    shown = [b.result if b else a.result for a, b in pairs if (a or b)]  # type: ignore[union-attr]
    return [column.name for column in compare.columns([(result.job, result, None) for result in shown])]


def _cells(name: str, pair: Pair, threshold: float, tolerance: float) -> Iterator[tuple[Any, ...]]:
    old, new = (_purity(found, threshold) if found else {} for found in pair)
    result = (pair[1] or pair[0]).result  # type: ignore[union-attr]
    identity = [getattr(result, field) for field in IDENTITY]
    for layer in dict.fromkeys([*new, *old]):
        stage, a, se_a = old.get(layer, (None, math.nan, math.nan))
        stage, b, se_b = new.get(layer, (stage, math.nan, math.nan))
        if layer not in new:
            status = VANISHED
        elif layer not in old:
            status = NEW
        else:
            one_is_nan = math.isnan(a) != math.isnan(b)
            status = MOVED if one_is_nan or abs(b - a) > tolerance + ROUNDING else ""
        se = math.hypot(se_a, se_b)
        yield (name, *identity, stage, layer, a, b, b - a, se, (b - a) / se if se else math.nan, status)


def _purity(found: Found, threshold: float) -> dict[str, tuple[str | None, float, float]]:
    """Each layer's stage, F and standard error."""
    result = found.result
    t = int(np.argmin(np.abs(np.array(result.thresholds) - threshold)))
    if abs(result.thresholds[t] - threshold) > 1e-9:
        known = ", ".join(f"{value:g}" for value in result.thresholds)
        raise PurityError(f"{found.folder} has no counts at the threshold {threshold:g}, only at {known}.")
    values = {}
    for layer in result.layers:
        if layer.counts is None:
            continue
        purity, se, _ = jackknife(layer.counts[:, t : t + 1], result.n_images)
        values[layer.module] = (layer.stage, float(purity[0]), float(se[0]))
    return values


def _changes(old: Result, new: Result) -> Iterator[tuple[str, str, str]]:
    a, b = _about(old), _about(new)
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            yield name.replace("_", " "), _show(a.get(name)), _show(b.get(name))


def _about(result: Result) -> dict[str, Any]:
    """All that can be said of a run, as JSON."""
    provenance = {name: value for name, value in result.provenance.items() if name not in UNREMARKABLE}
    accuracy = {"top1": result.top1, "top5": result.top5}
    shown = {name: None if value is None else f"{value:.2f} %" for name, value in accuracy.items()}
    return {**result.job.model_dump(mode="json", exclude=set(IDENTITY)), **provenance, **shown}


def _images(result: Result) -> tuple[Any, ...]:
    """What is the same where the images are."""
    names = ("dataset_fingerprint", "images_selected", "images_skipped")
    return (*(result.provenance.get(name) for name in names), result.job.per_class, result.job.limit, result.n_images)


def _show(value: Any) -> str:
    """A value in a few characters."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} ({value[0].get('path', '')}, ...)"
    text = value if isinstance(value, str) else "none" if value in (None, []) else json.dumps(value)
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _number(value: float) -> str:
    return tables.cell(value, 4)


def _to_markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)


def _failures(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob(FAILED)):
        try:
            record = json.loads(path.read_text())
            yield f"{record['job']['model']} on {record['job']['dataset']} failed: {record['error']}"
        except (OSError, ValueError, KeyError, TypeError):
            yield f"{path.parent.name} failed."
