"""What `purity score` and `purity show` print: a row per layer, the paper's layout, and what the numbers are worth:
where too little fired to trust them, and what it would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from purity_cli.naming import READINGS
from purity_cli.plan import table_thresholds
from purity_cli.report import Column, Report, Row, Table, number, text
from purity_cli.results import Result
from purity_cli.stats import ENOUGH
from purity_cli.views import cells

TOP1 = "top1"
INTEGERS = ("n_images", "channels", "height", "width", "activations", "live")
SHOWN = {
    "layer": text("layer", fold=True),
    "purity": number("purity", "F", bar=True, error="se"),
    "se": number("se", drop=1),
    "purity_jk": number("purity_jk", "F jk", drop=1),
    "activations": number("activations", "N", None, drop=5),
    "live": number("live", digits=None, drop=3),
}
"""The columns of tidy rows that people see, too."""


def tidy(measures: Sequence[str] = ()) -> list[Column]:
    """The columns of `cells.rows` for programs, and those of them that people see."""
    found = [SHOWN.get(name, Column(name, number=name in INTEGERS, shown=False)) for name in cells.COLUMNS]
    return [*found, *(number(name, drop=2) for name in measures)]


def every_threshold(results: Sequence[Result]) -> Table:
    """The tidy rows of results at every threshold, for programs."""
    return Table("rows", tidy(cells.measures(results)), cells.rows(results), aim="data")


def layers(results: Sequence[Result], threshold: float) -> Report:
    """F of each layer with what makes it hard to trust, each reading's average; then the paper's layout."""
    called = cells.names(results)
    rows = [
        {
            **row,
            "row": row["label"] if row["stage"] else None,
            "map": f"{row['channels']} x {row['height']} x {row['width']}",
        }
        for row in cells.rows(results, threshold)
    ]
    foot = [
        {"name": name, "row": label, "purity": one.purity, "se": one.se, "purity_jk": one.corrected}
        for name, result in zip(called, results, strict=True)
        for label, one in cells.averages(result, threshold).items()
    ]
    columns = tidy(cells.measures(results))
    place = columns.index(SHOWN["layer"])
    columns[place:place] = [
        text("name", "model", shown=len(results) > 1, data=False),
        text("row", "stage", data=False),
    ]
    columns.insert(place + 3, text("map", "c x h x w", data=False, drop=4))
    marks = {(i, "purity"): "starved" for i, row in enumerate(rows) if row.get("starved") and row["activations"]}
    return Report(
        [
            Table("layers", columns, rows, marks=marks, foot=foot),
            across(dict(zip(called, results, strict=True)), threshold),
        ],
        [
            *(cells.summary(result, threshold) for result in results),
            *(note for result in results for note in cells.remarks(result)),
            *worths(results, threshold),
        ],
    )


def across(results: Mapping[str, Result | None], threshold: float, expected: Sequence[str] = ()) -> Table:
    """The paper's layout: a row per stage, then their average, then top1; a column per result.

    Other readings stand below the activations, and layers that are no stage below these. A cell is None where a
    result has no such row; the cells of what has no result (None) are marked as missing, and those biased low as
    starved. `expected` are rows that are there even if no result has them.
    """
    columns: dict[str, dict[str, float | None]] = {}
    order: dict[str, tuple[int, int]] = {}
    for name in expected:
        order[name] = place(name)
    for name, result in results.items():
        values = columns.setdefault(name, {})
        for layer in result.layers if result else ():
            values[layer.name] = cells.cell(result, layer, threshold).purity  # type: ignore[arg-type]
            order.setdefault(layer.name, place(layer.name if layer.stage else ""))
        for label, one in cells.averages(result, threshold).items() if result else ():
            values[label] = one.purity
            order.setdefault(label, place(label))
        if result and result.top1 is not None:
            values[TOP1] = result.top1
            order.setdefault(TOP1, place(TOP1))
    lines = sorted(order, key=lambda name: order[name])
    rows: list[Row] = [{"stage": line, **{name: columns[name].get(line) for name in columns}} for line in lines]
    missing = [name for name, result in results.items() if result is None]
    marks = {(i, name): "missing" for i in range(len(rows)) for name in missing}
    for name, result in results.items():
        low = worth(result, threshold).starved if result else ()
        marks |= {(lines.index(line), name): "starved" for line in low}
    digits = {i: 2 for i, line in enumerate(lines) if line == TOP1}
    return Table("stages", [text("stage"), *map(number, columns)], rows, marks=marks, digits=digits, aim="page")


def place(name: str) -> tuple[int, int]:
    """Readings in their order, in each the stages by number and their average; then other layers, then top1."""
    reading, _, stage = name.rpartition(":")
    reading = reading or "activation"
    if name == TOP1:
        return 99, 0
    if reading in READINGS and (stage == cells.AVERAGE or (stage[:1] == "C" and stage[1:].isdecimal())):
        return READINGS.index(reading), 10**6 if stage == cells.AVERAGE else int(stage[1:])
    return 98, 0


def stored(result: Result, threshold: float) -> tuple[Report, Report]:
    """What a results folder holds beside the counts: every row for programs, and a page at one threshold."""
    return Report([every_threshold([result])]), layers([result], threshold)


@dataclass(frozen=True)
class Caveats:
    """Where F of a result can be trusted. Rows are named by their labels."""

    starved: tuple[str, ...]
    """N below `ENOUGH` c at the threshold asked for, and above 0."""
    silent: tuple[str, ...]
    """Nothing fires at this threshold, though it does at others."""
    dead: tuple[str, ...]
    """Nothing fires at any threshold."""
    enough: float | None
    """The highest stored threshold at which every layer that fires at all has N >= `ENOUGH` c; None for none."""
    images: float | None
    """About how many images the threshold needs, N growing with their number; None where something is silent there."""


def worth(result: Result, threshold: float) -> Caveats:
    """What the numbers of a result are worth at a threshold."""
    amounts = {
        layer.name: (layer.counts.sum((0, 2)).tolist(), ENOUGH * layer.channels)
        for layer in result.layers
        if layer.counts is not None
    }
    place = cells.index(result, threshold)
    dead = tuple(name for name, (fired, _) in amounts.items() if not any(fired))
    speaking = {name: amount for name, amount in amounts.items() if name not in dead}
    shown = table_thresholds(result.thresholds)
    fed = [
        t
        for i, t in enumerate(result.thresholds)
        if t in shown
        if speaking and all(fired[i] >= least for fired, least in speaking.values())
    ]
    silent = tuple(name for name, (fired, _) in speaking.items() if not fired[place])
    starved = tuple(name for name, (fired, least) in speaking.items() if 0 < fired[place] < least)
    factor = max((speaking[name][1] / speaking[name][0][place] for name in starved), default=1.0)
    images = None if silent else two_digits(result.n_images * factor)
    return Caveats(starved, silent, dead, max(fed, default=None), images)


def two_digits(value: float) -> int:
    """Rounded up to two digits: 1,234 -> 1,300."""
    exact = Decimal(repr(value))
    return int(exact.quantize(Decimal(1).scaleb(max(0, exact.adjusted() - 1)), ROUND_CEILING))


def faults(threshold: float) -> dict[str, str]:
    """What is said of layers that a field of `Caveats` names."""
    return {
        "dead": "nothing fires at any threshold, so that F is NaN",
        "silent": f"nothing fires at the threshold {threshold:g}, so that F is NaN",
        "starved": f"N < {ENOUGH} c where a * stands, so that F is biased low",
    }


def worths(results: Sequence[Result], threshold: float, called: Sequence[str] | None = None) -> list[str]:
    """In sentences, what F of several results is worth at a threshold; nothing where all is well."""
    known = dict(zip(called or cells.names(results), (worth(result, threshold) for result in results), strict=True))
    alone = len(results) == 1
    said = []
    for field, what in faults(threshold).items():
        named = _each({name: ", ".join(getattr(one, field)) for name, one in known.items()}, alone)
        if named:
            said.append(f"{what[0].upper()}{what[1:]}: {'; '.join(named)}.")
    wanting = {name: _remedy(one, threshold) for name, one in known.items() if one.starved or one.silent}
    return [*said, *_each(wanting, alone)]


def _each(said: dict[str, str], alone: bool) -> list[str]:
    """`A, B: text` for all that have the same to say, or the text where a result stands alone."""
    alike: dict[str, list[str]] = {}
    for name, sentence in said.items():
        if sentence:
            alike.setdefault(sentence, []).append(name)
    return list(alike) if alone else [f"{', '.join(names)}: {sentence}" for sentence, names in alike.items()]


def _remedy(one: Caveats, threshold: float) -> str:
    every = "Every layer that fires at all" if one.dead else "Every layer"
    up_to = f"up to the threshold {one.enough:g}" if one.enough is not None else "at no stored threshold"
    needs = "" if one.images is None else f"; the threshold {threshold:g} needs about {one.images:,} images"
    return f"{every} has N >= {ENOUGH} c {up_to}{needs}."
