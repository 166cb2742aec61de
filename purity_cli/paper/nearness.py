"""Which reading comes nearest to published values: over each one's own cells, and over those that they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from purity_cli.report import Row
from purity_cli.views import cells
from purity_cli.views.layers import TOP1

CHOSEN = "layers as named"
"""What stands for the reading where layers are named by their paths."""
NO_CELL = (TOP1, cells.AVERAGE)
"""Published values that are no cells of purity."""
LEAST = 3
"""Cells that readings must share before one of them is called nearer."""
ALIKE = 5e-4
"""Two mean differences that are shown alike, with three decimals, are called equal."""


@dataclass(frozen=True)
class Nearness:
    """How near one reading comes to the reference, over some cells."""

    cells: int
    difference: float
    """The mean absolute one."""
    rank: float | None
    """Spearman's rank correlation; None for fewer than three cells, or where either side is all alike."""


def nearness(rows: Sequence[Row]) -> Nearness:
    """Over the rows whose F is known."""
    from scipy.stats import spearmanr

    measured = [(row["measured"], row["reference"]) for row in rows if cells.is_number(row["measured"])]
    if not measured:
        return Nearness(0, math.nan, None)
    ours, theirs = zip(*measured, strict=True)
    varies = len(measured) >= LEAST and len(set(ours)) > 1 and len(set(theirs)) > 1
    mean = sum(abs(a - b) for a, b in measured) / len(measured)
    return Nearness(len(measured), mean, float(spearmanr(ours, theirs).statistic) if varies else None)


def by_reading(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows that are cells of purity, no averages, by reading; `CHOSEN` where they are compared by their path."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["cell"] not in NO_CELL and row["measured"] is not None:
            found.setdefault(row["reading"] or CHOSEN, []).append(row)
    return found


def shared(readings: Mapping[str, Sequence[Row]]) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of the cells that the readings have in common, and the readings left out for that.

    While they share fewer than `LEAST` cells, the one with the fewest of its own is left out.
    """
    own = {
        name: {(row["model"], row["epoch"], row["cell"]): row for row in rows if cells.is_number(row["measured"])}
        for name, rows in readings.items()
    }
    left_out: list[str] = []
    while own:
        common = set.intersection(*(set(one) for one in own.values()))
        if len(common) >= LEAST or len(own) < 2:
            return {name: [row for key, row in one.items() if key in common] for name, one in own.items()}, left_out
        least = min(own, key=lambda name: len(own[name]))
        left_out.append(least)
        del own[least]
    return {}, left_out


def verdict(rows: Sequence[Row]) -> str:
    """The sentence that names the nearest reading and by how much, or tells why none is named."""
    readings = by_reading(rows)
    if len(readings) < 2:
        one = f"all values are of {next(iter(readings))}" if readings else "nothing was measured"
        return f"No reading is called the nearest: {one}."
    common, left_out = shared(readings)
    if len(common) < 2:
        return (
            f"No reading is called the nearest: {_list(list(readings))} share fewer than {LEAST} cells that are known."
        )
    order = sorted(((nearness(part).difference, name) for name, part in common.items()))
    (best, name), (second, other) = order[:2]
    parts = ", ".join(dict.fromkeys(row["cell"] for row in common[name]))
    many = len({row["model"] for row in common[name]})
    over = f"the {len(common[name])} cells that {_list(list(common))} share ({parts} of {many} model{'s' * (many > 1)})"
    own = ", ".join(
        f"{reading} {one.difference:.3f} ({one.cells})"
        for reading, one in ((r, nearness(v)) for r, v in readings.items())
    )
    without = f", {_list(left_out)} being left out for having too few" if left_out else ""
    if second - best < ALIKE:
        found = f"{name} and {other} come equally near, with a mean absolute difference of {best:.3f} each"
    else:
        found = (
            f"{name} comes nearest to the reference, with a mean absolute difference of {best:.3f}, by "
            f"{second - best:.3f} nearer than the next, {other}"
        )
    return f"Over {over}{without}, {found}; over each one's own cells it is {own}."


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
