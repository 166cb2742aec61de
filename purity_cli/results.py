"""What a run leaves: a row per layer, and everything that must stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purity_cli.naming import row_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from purity_cli.plan import Job
    from purity_cli.states import States


@dataclass(frozen=True)
class Layer:
    """What was measured of one tapped module, as one reading of a stage: a row of every table.

    One module can be two rows, as `layer3` of a ResNet is C4 and block:C4. `counts` is int64 (G, T, c): for each
    jackknife group and threshold, the number of images on which each channel fired; None for a network without a
    classifier. `height` and `width` are the feature map's. `measures` are the other measures asked for, by their
    column; NaN where one could not be had. `stage` and `reading` are None for a layer that is no stage.
    """

    module: str
    stage: str | None
    channels: int
    height: int
    width: int
    counts: NDArray[np.int64]
    measures: Mapping[str, float] = field(default_factory=dict)
    reading: str | None = None

    @property
    def name(self) -> str:
        """What the row is called: `C3`, `conv:C3`, or the module's path."""
        return row_name(self.module, self.stage, self.reading)


@dataclass(frozen=True)
class Result:
    """One scored job. `top1` and `top5` are per cent, None where the images carry no labels for this network.

    `model`, `source`, `weights`, `dataset` and `preprocessing` are the names as resolved, which the rows show;
    `provenance` is what `run.json` holds.
    """

    job: Job
    thresholds: tuple[float, ...]
    layers: tuple[Layer, ...]
    n_images: int
    top1: float | None
    top5: float | None
    model: str
    source: str
    weights: str
    dataset: str
    preprocessing: str
    provenance: dict[str, Any]
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Everything that decided the numbers, as JSON: a result is that of another run only where these are equal."""
    images_by_group: tuple[int, ...] = ()
    """Images that were counted in each jackknife group; empty in results that say only how many there were."""
    states: States | None = None
    """The sums that all this was computed from; None where a folder was read, for they may be large."""

    @property
    def images(self) -> tuple[int, ...] | NDArray[np.int64]:
        """The images of each jackknife group, as the functions of `stats` take them."""
        from purity_cli.stats import images_in_groups

        counts = [layer.counts for layer in self.layers if layer.counts is not None]
        return self.images_by_group or images_in_groups(self.n_images, counts)
