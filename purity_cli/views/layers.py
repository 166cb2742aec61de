"""What `purity score` and `purity show` print: a row per layer, the paper's layout, and how far to trust numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from purity_cli.naming import READINGS
from purity_cli.plan import table_thresholds
from purity_cli.report import Column, Report, Row, Table, number, text
from purity_cli.results import Result
from purity_cli.stats import ENOUGH, RATE
from purity_cli.views import cells

TOP1 = "top1"
INTEGERS = ("n_images", "channels", "height", "width", "activations", "live")
FEW = 8
"""Results up to which each is named in the sentences on all."""


def rate_title(rate: float) -> str:
    """What F at an equal rate is called: `F 1%`."""
    return f"F {100 * rate:g}%"


def tidy(measures: Sequence[str] = (), rate: float = RATE, *, corrected: bool = False) -> list[Column]:
    """The columns of `cells.rows` for programs, and those of them that people see; `corrected`: they see F jk, too."""
    shown = {
        "layer": text("layer", fold=True),
        "purity": number("purity", "F", bar=True, error="se"),
        "se": number("se", drop=1),
        "purity_jk": number("purity_jk", "F jk", drop=1, shown=corrected),
        "activations": number("activations", "N", None, drop=5),
        "live": number("live", digits=None, drop=3),
        # People read F at a rate beside F; programs find it behind the columns that were there before.
        "purity_rate": number("purity_rate", rate_title(rate), error="purity_rate_se", behind="se"),
    }
    names = [*cells.COLUMNS, *measures, *cells.RATE_COLUMNS]
    plain = {name: number(name, drop=2) for name in measures}
    return [shown.get(name) or plain.get(name) or Column(name, number=name in INTEGERS, shown=False) for name in names]


def every_threshold(results: Sequence[Result], rate: float = RATE) -> Table:
    """The rows of results at every threshold, for programs."""
    return Table("rows", tidy(cells.measures(results), rate), cells.rows(results, rate=rate), aim="data")


def layers(results: Sequence[Result], threshold: float, rate: float = RATE, *, corrected: bool = False) -> Report:
    """F of each layer with what makes it hard to trust, each reading's average; then the paper's layout."""
    called = cells.names(results)
    every = cells.every_row(results, threshold, rate, called)
    rows: list[Row] = [
        {**row, "row": row["label"] if row["stage"] else None, "map": _map(row)} for row in every if row["layer"]
    ]
    foot = [{**row, "row": row["label"]} for row in every if not row["layer"]]
    columns = tidy(cells.measures(results), rate, corrected=corrected)
    at = [column.key for column in columns].index("layer")
    name, row_ = text("name", "model", shown=len(results) > 1, data=False), text("row", "stage", data=False)
    columns[at : at + 1] = [name, row_, columns[at], text("map", "c x h x w", data=False, drop=4)]
    table = Table("layers", columns, rows, marks=_marks(rows), foot=foot)
    return Report(
        [table, *across(every, called, rate)],
        [
            *(cells.summary(result, threshold) for result in results),
            *(note for result in results for note in cells.remarks(result)),
            *trust(results, every, threshold, rate, called),
        ],
    )


def _map(row: Row) -> str:
    return f"{row['channels']} x {row['height']} x {row['width']}"


def _marks(rows: Sequence[Row]) -> dict[tuple[int, str], str]:
    marks = {(i, "purity"): "starved" for i, row in enumerate(rows) if low(row)}
    return marks | {(i, "purity_rate"): "starved" for i, row in enumerate(rows) if low(row, "purity_rate")}


def low(row: Row, key: str = "purity") -> bool:
    """Whether F of a row, or its F at the rate, is biased low by few firings."""
    flag = "starved" if key == "purity" else "rate_starved"
    return cells.is_number(row.get(key)) and bool(row[flag])


def across(every: Sequence[Row], called: Sequence[str], rate: float, expected: Sequence[str] = ()) -> list[Table]:
    """The paper's layout: a row per stage, then their average, then top1; a column per result. Then F at the rate.

    `every` are rows of `cells.every_row`. Other readings stand below the activations, and layers that are no stage
    below these. A cell is None where a result has no such row; the column of a result that has no rows is marked as
    missing, and what is biased low as starved. `expected` are rows that are there even if no result has them.
    """
    values = {(row["label"], row["name"]): row for row in every}
    order = {name: place(name) for name in expected}
    order |= {row["label"]: place(row["label"] if row["stage"] or not row["layer"] else "") for row in every}
    top1 = {row["name"]: row[TOP1] for row in every if row[TOP1] is not None}
    order |= {TOP1: place(TOP1)} if top1 else {}
    lines = sorted(order, key=lambda name: order[name])
    missing = [name for name in called if name not in {row["name"] for row in every}]
    tables = []
    for key, title in (("purity", ""), ("purity_rate", f"{rate_title(rate)}: F at an equal firing rate")):
        own = [line for line in lines if key == "purity" or line != TOP1]
        rows: list[Row] = [
            {"stage": line, **{n: top1.get(n) if line == TOP1 else values.get((line, n), {}).get(key) for n in called}}
            for line in own
        ]
        marks = {(i, name): "missing" for i in range(len(own)) for name in missing}
        marks |= {
            (own.index(line), name): "starved" for (line, name), row in values.items() if row["layer"] and low(row, key)
        }
        digits = {i: 2 for i, line in enumerate(own) if line == TOP1}
        columns = [text("stage"), *map(number, called)]
        tables.append(Table("stages" if not title else "stages_rate", columns, rows, title, marks, digits, aim="page"))
    return tables


def place(name: str) -> tuple[int, int]:
    """Readings in their order, in each the stages by number and their average; then other layers, then top1."""
    reading, _, stage = name.rpartition(":")
    reading = reading or "activation"
    if name == TOP1:
        return 99, 0
    if reading in READINGS and (stage == cells.AVERAGE or (stage[:1] == "C" and stage[1:].isdecimal())):
        return READINGS.index(reading), 10**6 if stage == cells.AVERAGE else int(stage[1:])
    return 98, 0


def stored(result: Result, threshold: float, rate: float = RATE) -> tuple[Report, Report]:
    """What a results folder holds beside the counts: every row for programs, and a page at one threshold."""
    return Report([every_threshold([result], rate)]), layers([result], threshold, rate)


@dataclass(frozen=True)
class Caveats:
    """Where F of a result can be trusted. Layers are named by their labels."""

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


def caveats(result: Result, threshold: float) -> Caveats:
    """How far the numbers of a result can be trusted at a threshold."""
    amounts = {
        layer.name: (layer.counts.sum((0, 2)).tolist(), ENOUGH * layer.channels)
        for layer in result.layers
        if layer.counts is not None
    }
    at = cells.index(result, threshold)
    dead = tuple(name for name, (fired, _) in amounts.items() if not any(fired))
    firing = {name: amount for name, amount in amounts.items() if name not in dead}
    fed = [
        t
        for t in table_thresholds(result.thresholds)
        if firing and all(fired[cells.index(result, t)] >= least for fired, least in firing.values())
    ]
    silent = tuple(name for name, (fired, _) in firing.items() if not fired[at])
    starved = tuple(name for name, (fired, least) in firing.items() if 0 < fired[at] < least)
    factor = max((firing[name][1] / firing[name][0][at] for name in starved), default=1.0)
    images = None if silent else two_digits(result.n_images * factor)
    return Caveats(starved, silent, dead, max(fed, default=None), images)


def two_digits(value: float) -> int:
    """Rounded up to two digits: 1,234 -> 1,300."""
    exact = Decimal(repr(value))
    return int(exact.quantize(Decimal(1).scaleb(max(0, exact.adjusted() - 1)), ROUND_CEILING))


def trust(
    results: Sequence[Result], every: Sequence[Row], threshold: float, rate: float, called: Sequence[str]
) -> list[str]:
    """In sentences, how far F of several results can be trusted; nothing where all is well."""
    found = {name: caveats(result, threshold) for name, result in zip(called, results, strict=True)}
    faults = {
        "dead": "Nothing fires at any threshold, so that F is NaN",
        "silent": f"Nothing fires at the threshold {threshold:g}, so that F is NaN",
        "starved": f"N < {ENOUGH} c where a * stands, so that F is biased low",
    }
    notes = [
        f"{what}: {_where({name: getattr(one, field) for name, one in found.items()})}."
        for field, what in faults.items()
        if any(getattr(one, field) for one in found.values())
    ]
    remedies: dict[str, list[str]] = {}
    for name, one in found.items() if len(found) <= FEW else ():
        if one.starved or one.silent:
            remedies.setdefault(_remedy(one, threshold), []).append(name)
    notes += [
        sentence if len(found) == 1 else f"{', '.join(names)}: {sentence}" for sentence, names in remedies.items()
    ]
    return notes + list(_trust_at_rate([row for row in every if row["layer"]], rate, called))


def _trust_at_rate(rows: Sequence[Row], rate: float, called: Sequence[str]) -> Iterator[str]:
    reasons: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.get("rate_reason"):
            by_name = reasons.setdefault(row["rate_reason"], {name: [] for name in called})
            by_name[row["name"]].append(row["label"])
    for reason, where in reasons.items():
        yield f"{rate_title(rate)} is NaN, because {reason}: {_where(where)}."
    few = sorted({row["n_images"] for row in rows if low(row, "purity_rate")})
    if few:
        yield (
            f"{rate_title(rate)} of {few[0]:,} images has about {rate * few[0]:.2g} firings per channel, fewer than "
            f"{ENOUGH}, so that it is biased low: from {ENOUGH / rate:,.0f} images on it is not."
        )


def comparable(results: Sequence[Result]) -> Iterator[str]:
    """What makes several results less comparable than a table of them lets one think."""
    for name, values in (
        ("data sets", [result.dataset for result in results]),
        ("numbers of images", [f"{result.n_images:,}" for result in results]),
        ("pixels", [result.preprocessing for result in results]),
        ("precisions", [result.job.precision for result in results]),
    ):
        if different := list(dict.fromkeys(values))[1:]:
            listed = some([values[0], *different])
            yield f"The results are of {len(different) + 1} different {name} ({listed}): compare within one."
    last: dict[str, list[str]] = {}
    for name, result in zip(cells.names(results), results, strict=True):
        last.setdefault(cells.deepest(result).name, []).append(name)
    if len(last) > 1:
        which = some([f"{layer} of {some(names)}" for layer, names in last.items()])
        yield f"The last layers are not alike ({which}): another stage or reading gives another number."
    trained = {result.model for result in results if cells.epoch_of(result.job, result) is not None}
    if len({(result.source, result.model) for result in results}) == 1:
        trained |= {results[0].model}
    if trained and len(results) > 1:
        yield f"Checkpoints of one training depend on each other ({some(sorted(trained))}): p says less than it seems."


def _where(layers_of: Mapping[str, Sequence[str]]) -> str:
    """The layers; of several results with their names, of many results these and the number of layers alone."""
    held = {name: ", ".join(layers) for name, layers in layers_of.items() if layers}
    if len(layers_of) == 1:
        return next(iter(held.values()))
    if len(layers_of) > FEW:
        n = sum(map(len, layers_of.values()))
        return f"{n:,} layer{'s' * (n != 1)} of {some(list(held))}"
    alike: dict[str, list[str]] = {}
    for name, layers in held.items():
        alike.setdefault(layers, []).append(name)
    return "; ".join(f"{', '.join(names)}: {layers}" for layers, names in alike.items())


def some(names: Sequence[str]) -> str:
    """All names, or of many the first four and how many more there are."""
    rest = len(names) - 4
    return ", ".join(names) if rest < 2 else f"{', '.join(names[:4])} and {rest} more"


def _remedy(one: Caveats, threshold: float) -> str:
    every = "Every layer that fires at all" if one.dead else "Every layer"
    up_to = f"up to the threshold {one.enough:g}" if one.enough is not None else "at no stored threshold"
    needs = "" if one.images is None else f"; the threshold {threshold:g} needs about {one.images:,} images"
    return f"{every} has N >= {ENOUGH} c {up_to}{needs}."
