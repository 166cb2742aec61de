"""Small charts as SVG elements of a few kilobytes, for pages that hold hundreds of them.

Colours and fonts are the page's, by class, so that they follow it into the dark and onto paper; every line has its own
dashes and markers besides. The elements hold text as text: whatever a name says, it stays text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

from purity_cli.figures import NORMAL_95
from purity_cli.report import said
from purity_cli.results import Layer, Result
from purity_cli.stats import ENOUGH
from purity_cli.views import cells

LEFT, RIGHT, TOP, BOTTOM = 30, 10, 22, 34
LINE = 15
LONG = 48
"""Characters of a name in a legend."""
STYLES = 7
"""Colours that a page has for lines: classes `s0` to `s6`; dashes and markers follow other cycles."""
DASHES, MARKERS = 4, 2
BARS = 128
"""Bars of a histogram at most."""


class Point(NamedTuple):
    x: float
    y: float
    error: float = 0.0
    low: bool = False
    """Whether it is hollow, for it cannot be trusted."""
    about: str = ""


class Line(NamedTuple):
    name: str
    points: Sequence[Point]


def stage_curve(result: Result, threshold: float) -> Element:
    """F from stage to stage, a line per reading, or over the layers where none is a stage; with 95 % intervals."""
    of = cells.stages_of(result)
    if of:
        stages = sorted({layer.stage for layers in of.values() for layer in layers if layer.stage}, key=cells.depth)
        places = {stage: i for i, stage in enumerate(stages)}
        lines = [
            Line(reading, [point(result, layer, threshold, places[layer.stage or ""]) for layer in layers])
            for reading, layers in of.items()
        ]
        ticks = [(float(i), stage) for stage, i in places.items()]
    else:
        lines = [Line("", [point(result, layer, threshold, i) for i, layer in enumerate(result.layers)])]
        ticks = [(float(i), str(i + 1)) for i in range(len(result.layers))]
    last = max(len(ticks) - 1, 1)
    ticks = ticks[:: -(-len(ticks) // 12)]
    label = "stage" if of else "layer, in the order of the table"
    return chart(lines, ticks, (-0.3, last + 0.3), label, bars=True)


def point(result: Result, layer: Layer, threshold: float, place: int) -> Point:
    one = cells.cell(result, layer, threshold)
    value, error = _known(one.purity), _known(one.se)
    low = (one.activations or 0) < ENOUGH * layer.channels
    about = f"{layer.name}: F = {said(one.purity, 3)} ± {said(one.se, 3)}, N = {said(one.activations)}"
    return Point(place, value, 0.0 if math.isnan(error) else NORMAL_95 * error, low, about)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def sweep(result: Result) -> Element:
    """F of each layer against the threshold, within one standard error."""
    lines = []
    for layer in result.layers:
        if layer.counts is not None:
            curve = zip(result.thresholds, cells.curve(result, layer), strict=True)
            points = [
                Point(t, _known(one.purity), _known(one.se), (one.activations or 0) < ENOUGH * layer.channels)
                for t, one in curve
            ]
            lines.append(Line(layer.name, points))
    ticks = [(x / 4, f"{x / 4:g}") for x in range(5)]
    return chart(lines, ticks, (0.0, 1.0), "threshold")


def chart(
    lines: Sequence[Line],
    ticks: Sequence[tuple[float, str]],
    across: tuple[float, float],
    label: str,
    *,
    bars: bool = False,
    size: tuple[int, int] = (340, 200),
) -> Element:
    """Lines of F, from 0 to 1, with a legend below if there are several; errors as bars, or else as bands."""
    named = [(i, line.name) for i, line in enumerate(lines) if line.name and len(lines) > 1]
    width, height = size
    svg = Element(
        "svg",
        {"viewBox": f"0 0 {width} {height + LINE * len(named)}", "class": "chart wide" if width > 400 else "chart"},
    )
    floor, start, stop = height - BOTTOM, LEFT, width - RIGHT

    def at(x: float) -> float:
        return start + (stop - start) * (x - across[0]) / (across[1] - across[0])

    def up(y: float) -> float:
        return floor - (floor - TOP) * min(max(y, 0.0), 1.0)

    grid = "".join(f"M{start} {_n(up(y / 4))}H{stop}" for y in range(5))
    SubElement(svg, "path", {"class": "grid", "d": grid})
    for y in range(5):
        _text(svg, start - 5, up(y / 4) + 3.5, f"{y / 4:g}", "end")
    for x, name in ticks:
        _text(svg, at(x), floor + 13, name, "middle")
    _text(svg, (start + stop) / 2, floor + 28, label, "middle", "label")
    _text(svg, 0, 10, "F", "start", "label")
    for i, line in enumerate(lines):
        known = [point for point in line.points if not math.isnan(point.y)]
        group = SubElement(svg, "g", {"class": _style(i)})
        erring = [point for point in known if point.error and not math.isnan(point.error)]
        if bars:
            d = "".join(f"M{_n(at(p.x))} {_n(up(p.y - p.error))}V{_n(up(p.y + p.error))}" for p in erring)
            SubElement(group, "path", {"class": "bar", "d": d})
        elif len(erring) > 1:
            over = [(at(p.x), up(p.y + p.error)) for p in erring]
            under = [(at(p.x), up(p.y - p.error)) for p in reversed(erring)]
            SubElement(group, "path", {"class": "band", "d": _path(over + under) + "Z"})
        SubElement(group, "path", {"class": "line", "d": _path((at(p.x), up(p.y)) for p in known)})
        _dots(group, "dot", ((at(p.x), up(p.y)) for p in known))
        _dots(group, "hollow", ((at(p.x), up(p.y)) for p in known if p.low))
        for point in known:
            if point.about:
                dot = SubElement(group, "circle", {"cx": _n(at(point.x)), "cy": _n(up(point.y)), "r": "7"})
                SubElement(dot, "title").text = point.about
    for place, (i, name) in enumerate(named):
        y = height + LINE * place + 6
        group = SubElement(svg, "g", {"class": _style(i)})
        SubElement(group, "path", {"class": "line", "d": f"M{start} {y - 4}h26"})
        _dots(group, "dot", [(start + 13, y - 4)])
        silent = all(math.isnan(point.y) for point in lines[i].points)
        _text(svg, start + 34, y, _short(name) + (": nothing fires" if silent else ""), "start")
    return svg


def channels(result: Result, place: int, threshold: float) -> Element:
    """Which channels of a layer fire, how often: what is behind its F (the paper's Fig. 1).

    A bar for each channel, or for so many neighbours, as high as their mean share of all firings; a line through the
    shares from the largest to the smallest; and dashes at 1 / c, where all would stand if F were 1.
    """
    layer = result.layers[place]
    fired = layer.counts[:, cells.index(result, threshold)].sum(0).tolist()
    width, floor, top, c = 220, 74, 6, len(fired)
    svg = Element("svg", {"viewBox": f"0 0 {width} 92", "class": "chart channels"})
    total, most = sum(fired), max(fired)
    joined = -(-c // BARS)
    if total:
        heights = [sum(fired[i : i + joined]) / len(fired[i : i + joined]) / most for i in range(0, c, joined)]
        step = width / len(heights)
        d = "".join(
            f"M{_n(i * step)} {floor}V{_n(floor - (floor - top) * h)}h{_n(step * 0.8)}V{floor}"
            for i, h in enumerate(heights)
            if h
        )
        SubElement(svg, "path", {"class": "bars", "d": d})
        ordered = sorted(fired, reverse=True)
        shown = sorted({round(i * (c - 1) / 63) for i in range(64)}) if c > 1 else [0]
        curve = ((width * (i + 0.5) / c, floor - (floor - top) * ordered[i] / most) for i in shown)
        SubElement(svg, "path", {"class": "ordered", "d": _path(curve)})
        even = floor - (floor - top) * total / c / most
        SubElement(svg, "path", {"class": "even", "d": f"M0 {_n(even)}H{width}"})
    SubElement(svg, "path", {"class": "axis", "d": f"M0 {floor}H{width}"})
    note = f"{c} channels" + (f", {joined} to a bar" if joined > 1 else "")
    _text(svg, 0, 88, note, "start")
    _text(svg, width, 88, f"highest {100 * most / total:.2g} %" if total else "nothing fires", "end")
    return svg


def _short(name: str) -> str:
    return name if len(name) <= LONG else f"{name[: LONG - 1]}…"


def _style(i: int) -> str:
    return f"s{i % STYLES} d{i % DASHES} m{i % MARKERS}"


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "".join(f"{'L' if i else 'M'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points))


def _dots(parent: Element, kind: str, points: Iterable[tuple[float, float]]) -> None:
    """Markers, as ends of lines of no length: a few characters each."""
    d = "".join(f"M{_n(x)} {_n(y)}h0" for x, y in points)
    if d:
        SubElement(parent, "path", {"class": kind, "d": d})


def _text(parent: Element, x: float, y: float, text: str, anchor: str, kind: str = "") -> None:
    about = {"x": _n(x), "y": _n(y), "text-anchor": anchor, **({"class": kind} if kind else {})}
    SubElement(parent, "text", about).text = text
