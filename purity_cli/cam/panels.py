"""Panels of maps over images (Figs 4 to 7), headed by purity: what stands in them, and a matplotlib Figure of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from purity_cli import cam
from purity_cli.cam import Chosen
from purity_cli.errors import PurityError
from purity_cli.figures.drawing import Figure, mpl, style, wrapped
from purity_cli.results import Result
from purity_cli.run.resolving import Resolved
from purity_cli.stats import ENOUGH
from purity_cli.views import cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    ImageArray = NDArray[np.uint8]

# Inches: of a cell's longer side, the space between cells, and a line and a character of text.
CELL, GAP, LINE, CHARACTER = 1.1, 0.07, 0.13, 0.058
NAME_WIDTH = 17
"""Characters in a line over or under a cell."""
CENTRED: dict[str, Any] = {"ha": "center", "va": "top"}
SHARP = 160
"""Pixels that an image's shorter side is enlarged to, so that a map over a small one is not as coarse."""


@dataclass(frozen=True)
class Heading:
    """What stands over a column: its name, its purity in bold, and what that is of."""

    name: str
    purity: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tile:
    """An image (h, w, 3), a map (h', w') to lay over it, and words to stand below; without an image, empty."""

    image: ImageArray | None
    map: Floats | None = None
    label: str = ""


@dataclass(frozen=True)
class TileRow:
    name: str
    cells: Sequence[Tile]
    """One per heading."""


class Shown(NamedTuple):
    """A heading per column, a row per image or class, and what the maps are."""

    headings: list[Heading]
    rows: list[TileRow]
    what: str


@dataclass(frozen=True)
class Heads:
    """Where purity comes from: stored results where there are any, else `score`."""

    stored: Sequence[Result]
    threshold: float
    dataset: str
    """Of several stored results of a network, the one over these images is taken."""
    models: bool
    weights: bool
    """Whether columns must name their model, and their weights, since there are several."""
    score: Callable[[Resolved], Result]

    def of(self, plan: Resolved) -> list[Heading]:
        """A heading per tapped layer; PurityError where no stored result, or more than one, is of this network."""
        result = self._find(plan) if self.stored else self.score(plan)
        rows = {row["layer"]: row for row in cells.rows([result], self.threshold)}
        n = f"n = {result.n_images:,}" + (f" of {result.dataset}" if self.stored else "")
        headings = []
        for tap in plan.taps:
            row = rows[tap.module]
            few = f"N = {row['activations']:,} < {ENOUGH} c" if row["activations"] else "nothing fires"
            headings.append(
                Heading(
                    self._name(plan, f"{tap.name} {tap.module}" if tap.stage else tap.module),
                    "F = –" if math.isnan(row["purity"]) else f"F = {row['purity']:.3f}",
                    f"{n}\n{few}" if row["starved"] else n,
                )
            )
        return headings

    @property
    def several(self) -> bool:
        return self.models or self.weights

    def _name(self, plan: Resolved, layer: str) -> str:
        network = plan.network
        weights = re.sub(r"\.(safetensors|pth|pt|bin)$", "", network.weights)
        return "\n".join([network.name] * self.models + [weights] * self.weights + [layer])

    def _find(self, plan: Resolved) -> Result:
        network, modules = plan.network, {tap.module for tap in plan.taps}
        found = [
            result
            for result in self.stored
            if (result.model, result.source, result.weights) == (network.name, network.source, network.weights)
            and result.provenance.get("weights_sha256") == network.weights_sha256
            and modules <= {layer.module for layer in result.layers}
        ]
        here = [result for result in found if result.dataset == self.dataset] or found
        if len(here) != 1:
            raise PurityError(
                f"{len(here) or 'None'} of the results of --from {'are' if here else 'is'} of "
                f"{', '.join(sorted(modules))} of {network.name} with weights {network.weights}: give the one that is, "
                "or leave out --from."
            )
        return here[0]


def grad_cams(plans: Iterable[Resolved], chosen: Chosen, heads: Heads) -> Shown:
    """The images, then a column of Grad-CAM maps for each layer of each network."""
    headings, columns = [Heading("image")], []
    for plan in plans:
        views = cam.look(replace(plan, source=chosen.source), chosen.images)
        seen = list(zip(views, _predictions(plan, views), strict=True))
        if len(headings) == 1:
            columns.append([Tile(v.image, None, "" if heads.several else label) for v, label in seen])
        headings += heads.of(plan)
        for tap in plan.taps:
            column = [_cell(v.image, v.maps[tap.module], label if heads.several else "") for v, label in seen]
            columns.append(column)
    rows = [TileRow(name, cells) for name, *cells in zip(chosen.names, *columns, strict=True)]
    return Shown(headings, rows, "Grad-CAM of the predicted class, which stands below with its softmax score")


def channels(plan: Resolved, chosen: Chosen, n: int, heads: Heads) -> Shown:
    """The images, then the n channels of one layer that fire on the most images of each class, with their counts."""
    if len(plan.taps) != 1 or chosen.classes is None:
        raise PurityError(f"--channels shows classes and one layer, not {len(plan.taps)}: name one with --layers.")
    module = plan.taps[0].module
    labels = plan.source.labels or ()
    headings, rows = heads.of(plan), []
    for name, k, i in zip(chosen.names, chosen.classes, chosen.images, strict=True):
        selection = [j for j in plan.selection if labels[j] == k]
        if not selection:
            raise PurityError(f"--limit leaves no image of class {name}: raise it, or use --per-class.")
        result = heads.score(replace(plan, selection=selection))
        assert result.layers[0].counts is not None
        top = cam.top_channels(result.layers[0].counts.sum((0, 1)), n)
        (view,) = cam.look(plan, [i], partial(cam.channel_maps, channels=[channel for channel, _ in top]))
        cells = [
            _cell(view.image, values, f"channel {channel}\n{count} of {result.n_images}") if count else Tile(None)
            for values, (channel, count) in zip(view.maps[module], top, strict=True)
        ]
        rows.append(TileRow(name, [Tile(view.image, None, *_predictions(plan, [view])), *cells]))
    # A layer may have fewer than n.
    headings += [Heading(f"no. {rank}") for rank in range(1, len(rows[0].cells))]
    what = "max(beta B, 0) of the channels that fire on the most images of each class, as far as any fire"
    return Shown(headings, rows, what)


def _predictions(plan: Resolved, views: Sequence[cam.ImageView]) -> list[str]:
    names = cam.names_of_classes(plan)
    return [f"{names[view.predicted] if names else f'class {view.predicted}'} {view.score:.2f}" for view in views]


def _cell(image: Any, values: Any, label: str) -> Tile:
    silent = "" if values.max() > 0 else "map is 0"
    return Tile(image, values, "\n".join(part for part in (label, silent) if part))


def scaled(values: Floats) -> NDArray[np.float64]:
    """A map between its least and its greatest value, as 0 to 1; a constant one is 1 where positive, else 0."""
    values = np.asarray(values, dtype=np.float64)
    least, span = values.min(), np.ptp(values)
    return (values - least) / span if span > 0 else (values > 0).astype(np.float64)


def overlay(image: ImageArray, values: Floats, colours: str, alpha: float) -> ImageArray:
    """The scaled map, resized bicubically to the image, in colours over it: uint8 (h, w, 3)."""
    height, width = image.shape[:2]
    small = Image.fromarray(scaled(values).astype(np.float32))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    coloured = mpl.colormaps[colours](large)[..., :3] * 255
    mixed: ImageArray = np.rint((1 - alpha) * image + alpha * coloured).astype(np.uint8)
    return mixed


def panel(headings: Sequence[Heading], rows: Sequence[TileRow], caption: str, colours: str, alpha: float) -> Figure:
    """A row per image or class and a column per heading; every cell shows its map over its image, or that alone."""
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
    with style():
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
                if cell.image is None:
                    continue
                x = margin + j * (CELL + GAP) + CELL / 2
                aspect = _aspect(cell)
                wide, tall = min(CELL, high / aspect) / 2, min(high, CELL * aspect)
                drawn = _drawn(cell.image, cell.map, colours, alpha)
                ax.imshow(drawn, extent=(x - wide, x + wide, top + tall, top), aspect="auto")
                ax.text(x, top + high + GAP / 3, label, fontsize=6.5, **CENTRED)
            top += high + under
        ax.text(width / 2, top + GAP, foot, fontsize=6.5, color="0.35", **CENTRED)
    return figure


def _drawn(image: ImageArray, values: Floats | None, colours: str, alpha: float) -> ImageArray:
    times = max(1, SHARP // min(image.shape[:2]))
    image = image.repeat(times, 0).repeat(times, 1)
    return image if values is None else overlay(image, values, colours, alpha)


def _aspect(cell: Tile) -> float:
    return 0.0 if cell.image is None else cell.image.shape[0] / cell.image.shape[1]


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0
