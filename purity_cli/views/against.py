"""A column of a CSV file, as timm's tables of results or a user's own, joined with stored results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from purity_cli.errors import PurityError, did_you_mean
from purity_cli.files import expanded
from purity_cli.results import Result

LEAST = 3
"""Results that can be correlated."""
SIZES = ("img_size", "infer_img_size")
"""Columns with the side of a square image, as timm's tables of accuracy and of speed call it."""
NAMED = 8
"""Results that one sentence names."""
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
"""A number whose commas group thousands, as timm writes 1,014.45."""


class TargetColumn(NamedTuple):
    """A quantity that results are set against: of each result its value, None where it has none."""

    values: Sequence[float | None]
    name: str
    notes: tuple[str, ...] = ()
    """What was joined, and what was left."""

    def of(self, results: Sequence[Result]) -> list[Result]:
        """Those of the results that have a value."""
        return [result for result, value in zip(results, self.values, strict=True) if value is not None]


def read_against(text: str, results: Sequence[Result], *, any_size: bool = False) -> TargetColumn:
    """The column of `FILE.csv:COLUMN` for each result, joined on the column model, which may have the weights behind a
    dot (`resnet50.a1_in1k`), or on model and weights where there is such a column; then on the size of the images.

    A result without a row is left. `any_size` takes the row of the nearest size where there is none of the result's
    own. PurityError where the file, a column or a number is missing, where one of several rows would have to be chosen,
    and where fewer than three results are joined.
    """
    path, _, column = text.rpartition(":")
    if not path or not column:
        raise PurityError(f"Cannot read --against {text}: write FILE.csv:COLUMN.")
    try:
        rows = pd.read_csv(expanded(path), dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError, UnicodeError) as error:
        raise PurityError(f"{path} cannot be read as CSV ({str(error).splitlines()[0]}).") from None
    for name in ("model", column):
        if name not in rows.columns:
            known = ", ".join(map(str, rows.columns))
            raise PurityError(f"{path} has no column {name}, only {known}.{did_you_mean(name, map(str, rows.columns))}")
    grouped = [value for value in rows[column] if "," in value]
    if wrong := next((value for value in grouped if not THOUSANDS.fullmatch(value.strip())), None):
        raise PurityError(
            f"{path} has {wrong!r} in {column}: a comma may only group thousands, so write decimals with a point."
        )
    values: list[float | None] = []
    left: list[str] = []
    taken: set[int] = set()
    for result in results:
        mine, why = _of_size(_of_weights(rows, result), result, any_size)
        if why:
            values.append(None)
            left.append(f"{tagged_name(result)} ({why})")
            continue
        values.append(_number(mine, column, path, result))
        taken |= set(mine.index)
    notes = _notes(path, rows, values, left, taken)
    if grouped:
        example = grouped[0].strip()
        notes += (f"Commas in {column} group thousands: {example} is read as {example.replace(',', '')}.",)
    return TargetColumn(values, f"{column} of {Path(path).name}", notes)


def tagged_name(result: Result) -> str:
    """A result as timm's tables write it, with a tag behind a dot, or in words."""
    if result.source in ("timm", "hf-hub", "local-dir"):
        return result.model if result.weights in ("main", "saved") else f"{result.model}.{result.weights}"
    return f"{result.model} with weights {result.weights}"


def _of_weights(rows: pd.DataFrame, result: Result) -> pd.DataFrame:
    models = rows["model"]
    if "weights" in rows.columns:
        return rows[(models == result.model) & (rows["weights"] == result.weights)]
    tagged = rows[models == f"{result.model}.{result.weights}"]
    if not tagged.empty:
        return tagged
    # A bare name means any weights, unless the table tells them apart.
    apart = models.str.startswith(f"{result.model}.").any()
    return rows[models == result.model] if not apart else tagged


def _of_size(mine: pd.DataFrame, result: Result, any_size: bool) -> tuple[pd.DataFrame, str | None]:
    """The rows of the result's image size, and why there are none."""
    if mine.empty:
        return mine, "no row"
    column = next((name for name in SIZES if name in mine.columns), None)
    if column is None:
        return mine, None
    there = pd.to_numeric(mine[column], errors="coerce")
    size = _size(result)
    here = mine[there == size]
    if not here.empty:
        return here, None
    if any_size:
        near = (there - (size or 0)).abs()
        return mine[near == near.min()], None
    sizes = " and ".join(dict.fromkeys(mine[column]))
    return here, f"of {sizes} pixels there, {f'scored at {size}' if size else 'scored at no one size'}"


def _size(result: Result) -> int | None:
    """The side of the square images that a network was given; None where they were not that."""
    pixels = result.provenance.get("preprocessing") or {}
    given = pixels.get("crop") or pixels.get("resize")
    return int(given[0]) if isinstance(given, (list, tuple)) and given[0] == given[1] else None


def _number(mine: pd.DataFrame, column: str, path: str, result: Result) -> float:
    texts = list(dict.fromkeys(mine[column]))
    if len(texts) > 1:
        raise PurityError(f"{path} has {len(mine)} rows for {tagged_name(result)}: leave one, or add a column weights.")
    value = pd.to_numeric(texts[0].replace(",", ""), errors="coerce")
    if not np.isfinite(value):
        raise PurityError(f"{path} has no number in {column} for {tagged_name(result)}, but {texts[0]!r}.")
    return float(value)


def _notes(
    path: str, rows: pd.DataFrame, values: Sequence[float | None], left: Sequence[str], taken: set[int]
) -> tuple[str, ...]:
    name = Path(path).name
    joined = len(values) - len(left)
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    listed = f"{', '.join(left[:NAMED])}{more}"
    if joined < LEAST <= len(values):
        raise PurityError(f"{path} has rows for {joined} of the {len(values)} results, too few; left: {listed}.")
    keys = ["model", "weights" if "weights" in rows.columns else "tag"]
    by = " and ".join([", ".join(keys), "image size"]) if set(SIZES) & set(rows.columns) else " and ".join(keys)
    notes = [
        f"Joined with {name} by {by}: {joined} of {len(values)} results; {len(rows) - len(taken):,} of its "
        f"{len(rows):,} rows are of none."
    ]
    return (*notes, *([f"Left, without a value in {name}: {listed}."] if left else []))
