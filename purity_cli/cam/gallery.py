"""What a panel shows: networks and pictures -> headings with purity, and rows of maps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from purity_cli import cam
from purity_cli.cam.panels import Cell, Heading, Row
from purity_cli.cam.pictures import Chosen
from purity_cli.errors import PurityError
from purity_cli.results import Result
from purity_cli.run.resolving import Resolved
from purity_cli.views import cells


class Shown(NamedTuple):
    """A heading per column, a row per picture or class, and what the maps are."""

    headings: list[Heading]
    rows: list[Row]
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
            few = f"N = {row['activations']:,} < {cells.ENOUGH} c" if row["activations"] else "nothing fires"
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
    """The pictures, then a column of Grad-CAM maps for each layer of each network."""
    headings, columns = [Heading("picture")], []
    for plan in plans:
        views = cam.look(replace(plan, source=chosen.source), chosen.images)
        seen = list(zip(views, _predictions(plan, views), strict=True))
        if len(headings) == 1:
            columns.append([Cell(v.picture, None, "" if heads.several else label) for v, label in seen])
        headings += heads.of(plan)
        for tap in plan.taps:
            column = [_cell(v.picture, v.maps[tap.module], label if heads.several else "") for v, label in seen]
            columns.append(column)
    rows = [Row(name, cells) for name, *cells in zip(chosen.names, *columns, strict=True)]
    return Shown(headings, rows, "Grad-CAM of the predicted class, which stands below with its softmax score")


def channels(plan: Resolved, chosen: Chosen, n: int, heads: Heads) -> Shown:
    """The pictures, then the n channels of one layer that fire on the most images of each class, with their counts."""
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
            _cell(view.picture, values, f"channel {channel}\n{count} of {result.n_images}") if count else Cell(None)
            for values, (channel, count) in zip(view.maps[module], top, strict=True)
        ]
        rows.append(Row(name, [Cell(view.picture, None, *_predictions(plan, [view])), *cells]))
    # A layer may have fewer than n.
    headings += [Heading(f"no. {rank}") for rank in range(1, len(rows[0].cells))]
    what = "max(beta B, 0) of the channels that fire on the most images of each class, as far as any fire"
    return Shown(headings, rows, what)


def _predictions(plan: Resolved, views: Sequence[cam.View]) -> list[str]:
    names = cam.names_of_classes(plan)
    return [f"{names[view.predicted] if names else f'class {view.predicted}'} {view.score:.2f}" for view in views]


def _cell(picture: Any, values: Any, label: str) -> Cell:
    silent = "" if values.max() > 0 else "map is 0"
    return Cell(picture, values, "\n".join(part for part in (label, silent) if part))
