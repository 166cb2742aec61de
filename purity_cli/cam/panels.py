"""Panels of maps over pictures (Figs 4 to 7): arrays and words -> one matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from purity_cli.figures.drawing import STYLE, wrapped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Picture = NDArray[np.uint8]

# Inches: of a cell's longer side, the space between cells, and a line and a character of text.
CELL, GAP, LINE, CHARACTER = 1.1, 0.07, 0.13, 0.058
NAME_WIDTH = 17
"""Characters in a line over or under a cell."""
CENTRED: dict[str, Any] = {"ha": "center", "va": "top"}
SHARP = 160
"""Pixels that a picture's shorter side is enlarged to, so that a map over a small one is not as coarse."""


@dataclass(frozen=True)
class Heading:
    """What stands over a column: its name, its purity in bold, and what that is of."""

    name: str
    purity: str = ""
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A picture (h, w, 3), a map (h', w') to lay over it, and words to stand below; without a picture, empty."""

    picture: Picture | None
    map: Floats | None = None
    label: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    cells: Sequence[Cell]
    """One per heading."""


def scaled(values: Floats) -> NDArray[np.float64]:
    """A map between its least and its greatest value, as 0 to 1; a constant one is 1 where positive, else 0."""
    values = np.asarray(values, dtype=np.float64)
    least, span = values.min(), np.ptp(values)
    return (values - least) / span if span > 0 else (values > 0).astype(np.float64)


def overlay(picture: Picture, values: Floats, colours: str, alpha: float) -> Picture:
    """The scaled map, resized bicubically to the picture, in colours over it: uint8 (h, w, 3)."""
    height, width = picture.shape[:2]
    small = Image.fromarray(scaled(values).astype(np.float32))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    coloured = mpl.colormaps[colours](large)[..., :3] * 255
    mixed: Picture = np.rint((1 - alpha) * picture + alpha * coloured).astype(np.uint8)
    return mixed


def panel(headings: Sequence[Heading], rows: Sequence[Row], caption: str, colours: str, alpha: float) -> Figure:
    """A row per image or class and a column per heading; every cell shows its map over its picture, or that alone."""
    heads = [(wrapped(head.name, NAME_WIDTH), head.purity, wrapped(head.note, NAME_WIDTH)) for head in headings]
    labels = [[wrapped(cell.label, NAME_WIDTH) for cell in row.cells] for row in rows]
    heights = [CELL * min(1.0, max(_aspect(cell) for cell in row.cells)) for row in rows]
    below = [LINE * max(_lines(label) for label in line) + GAP for line in labels]
    names, purities, notes = (LINE * max(map(_lines, part)) for part in zip(*heads, strict=True))
    sides = [wrapped(row.name, NAME_WIDTH) for row in rows]
    margin = 2 * GAP + CHARACTER * max(len(line) for side in sides for line in side.split("\n"))
    width = margin + len(headings) * (CELL + GAP) + GAP
    foot = wrapped(caption, int(width / CHARACTER))
    height = names + purities + notes + 3 * GAP + sum(heights) + sum(below) + LINE * _lines(foot) + GAP
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        # One pair of axes in inches from the top left corner: hundreds would take half a minute.
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        ax.set_axis_off()
        for j, (name, purity, note) in enumerate(heads):
            x = margin + j * (CELL + GAP) + CELL / 2
            ax.text(x, GAP, name, fontsize=7, **CENTRED)
            ax.text(x, GAP + names, purity, fontsize=7, fontweight="bold", **CENTRED)
            ax.text(x, GAP + names + purities, note, fontsize=6.5, color="0.35", **CENTRED)
        top = names + purities + notes + 2 * GAP
        for row, side, line, high, under in zip(rows, sides, labels, heights, below, strict=True):
            ax.text(margin - GAP, top + high / 2, side, fontsize=7, ha="right", va="center")
            for j, (cell, label) in enumerate(zip(row.cells, line, strict=True)):
                if cell.picture is None:
                    continue
                x = margin + j * (CELL + GAP) + CELL / 2
                aspect = _aspect(cell)
                wide, tall = min(CELL, high / aspect) / 2, min(high, CELL * aspect)
                drawn = _drawn(cell.picture, cell.map, colours, alpha)
                ax.imshow(drawn, extent=(x - wide, x + wide, top + tall, top), aspect="auto")
                ax.text(x, top + high + GAP / 3, label, fontsize=6.5, **CENTRED)
            top += high + under
        ax.text(width / 2, top + GAP, foot, fontsize=6.5, color="0.35", **CENTRED)
    return figure


def _drawn(picture: Picture, values: Floats | None, colours: str, alpha: float) -> Picture:
    times = max(1, SHARP // min(picture.shape[:2]))
    picture = picture.repeat(times, 0).repeat(times, 1)
    return picture if values is None else overlay(picture, values, colours, alpha)


def _aspect(cell: Cell) -> float:
    return 0.0 if cell.picture is None else cell.picture.shape[0] / cell.picture.shape[1]


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0
