"""What a number is worth: where too little fired to trust it, and what it would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from purity_cli.results import Result
from purity_cli.views import cells


@dataclass(frozen=True)
class Worth:
    """Where F of a result can be trusted. Rows are named by their labels."""

    starved: tuple[str, ...]
    """N below `cells.ENOUGH` c at the threshold asked for, and above 0."""
    silent: tuple[str, ...]
    """Nothing fires at this threshold, though it does at others."""
    dead: tuple[str, ...]
    """Nothing fires at any threshold."""
    enough: float | None
    """The highest stored threshold at which every layer that fires at all has N >= `cells.ENOUGH` c; None for none."""
    images: float | None
    """About how many images the threshold needs, N growing with their number; None where something is silent there."""


def worth(result: Result, threshold: float) -> Worth:
    """What the numbers of a result are worth at a threshold."""
    amounts = {
        layer.name: (layer.counts.sum((0, 2)).tolist(), cells.ENOUGH * layer.channels)
        for layer in result.layers
        if layer.counts is not None
    }
    place = cells.index(result, threshold)
    dead = tuple(name for name, (fired, _) in amounts.items() if not any(fired))
    speaking = {name: amount for name, amount in amounts.items() if name not in dead}
    fed = [
        t
        for i, t in enumerate(result.thresholds)
        if speaking and all(fired[i] >= least for fired, least in speaking.values())
    ]
    silent = tuple(name for name, (fired, _) in speaking.items() if not fired[place])
    starved = tuple(name for name, (fired, least) in speaking.items() if 0 < fired[place] < least)
    factor = max((speaking[name][1] / speaking[name][0][place] for name in starved), default=1.0)
    images = None if silent else two_digits(result.n_images * factor)
    return Worth(starved, silent, dead, max(fed, default=None), images)


def two_digits(value: float) -> int:
    """Rounded up to two digits: 1,234 -> 1,300."""
    number = Decimal(repr(value))
    return int(number.quantize(Decimal(1).scaleb(max(0, number.adjusted() - 1)), ROUND_CEILING))


def worths(results: Sequence[Result], threshold: float, called: Sequence[str] | None = None) -> list[str]:
    """In sentences, what F of several results is worth at a threshold; nothing where all is well."""
    known = dict(zip(called or cells.names(results), (worth(result, threshold) for result in results), strict=True))

    alone = len(results) == 1

    def where(field: str) -> str:
        return "; ".join(_each({name: ", ".join(getattr(one, field)) for name, one in known.items()}, alone))

    said = []
    if where("dead"):
        said.append(f"Nothing fires at any threshold, so that F is NaN: {where('dead')}.")
    if where("silent"):
        said.append(f"Nothing fires at the threshold {threshold:g}, so that F is NaN: {where('silent')}.")
    if where("starved"):
        said.append(f"N < {cells.ENOUGH} c where a * stands, so that F is biased low: {where('starved')}.")
    wanting = {name: _remedy(one, threshold) for name, one in known.items() if one.starved or one.silent}
    return [*said, *_each(wanting, alone)]


def _each(said: dict[str, str], alone: bool) -> list[str]:
    """`A, B: text` for all that have the same to say, or the text where a result stands alone."""
    alike: dict[str, list[str]] = {}
    for name, text in said.items():
        if text:
            alike.setdefault(text, []).append(name)
    return list(alike) if alone else [f"{', '.join(names)}: {text}" for text, names in alike.items()]


def _remedy(one: Worth, threshold: float) -> str:
    every = "Every layer that fires at all" if one.dead else "Every layer"
    up_to = f"up to the threshold {one.enough:g}" if one.enough is not None else "at no stored threshold"
    needs = "" if one.images is None else f"; the threshold {threshold:g} needs about {one.images:,} images"
    return f"{every} has N >= {cells.ENOUGH} c {up_to}{needs}."
