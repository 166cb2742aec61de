"""Purity inside a training loop: `PurityMonitor` reads layers of a network that is being trained, and leaves it alone.

Plain PyTorch, once per epoch:

    monitor = PurityMonitor(net, ["last"])
    for images, _ in loader:
        monitor.update(images)
    log(monitor.compute())  # {"purity/layer4": 0.946, "purity_rate/layer4": 0.913}
    monitor.reset()

Lightning, in a LightningModule that made `self.monitor` after `self.net`:

    def validation_step(self, batch, _):
        self.monitor.update(batch[0])

    def on_validation_epoch_end(self):
        self.log_dict(self.monitor.compute())
        self.monitor.reset()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from purity_cli import stages
from purity_cli.errors import PurityError, log
from purity_cli.metrics.accumulators import FiringCounts, LayerBatch
from purity_cli.models import bare
from purity_cli.plan import STORED_GRID, check_rate, check_thresholds
from purity_cli.purity import MapStatistics, map_statistics
from purity_cli.stats import ENOUGH, RATE, feature_purity, purity_at_rate
from purity_cli.taps import Taps


class PurityMonitor:
    """Feature purity of layers of `net`, or of what is in it where it is compiled or DistributedDataParallel.

    `layers` are stages (`C3`, `conv:last`), module paths or globs, as for `purity score`. F is read at `threshold`,
    and F_r at the threshold at which the share `rate` of all pairs of image and channel fires.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: str | Sequence[str] = ("last",),
        *,
        threshold: float = 0.5,
        rate: float = RATE,
    ) -> None:
        self.net, self.rate = bare(net), check_rate(rate)
        self.threshold = check_thresholds([threshold])[0]
        self.thresholds = check_thresholds([*STORED_GRID, threshold])
        self.layers = tuple(map(str.strip, layers.split(","))) if isinstance(layers, str) else tuple(layers)
        self.metrics: dict[str, FiringCounts] = {}
        """By module path; empty before the first update. All images are in one group."""
        self._warned: set[str] = set()
        self._taps: Taps[MapStatistics] | None = None

    def update(self, images: Tensor) -> None:
        """Count the firings on images (n, 3, h, w), normalised as the network takes them and on its device.

        The network runs in eval mode, and its mode, weights, gradients and statistics are as before afterwards. Works
        inside `torch.no_grad` and `torch.inference_mode`. Raises PurityError for layers that cannot be tapped, and for
        a NaN or an infinity; no image of the batch is then counted.
        """
        if not isinstance(images, Tensor):
            raise PurityError(
                f"PurityMonitor.update takes a batch of images (n, 3, h, w), not a {type(images).__name__}: give the "
                "images of the batch alone."
            )
        with torch.inference_mode(False):
            if self._taps is None:
                size = (images.shape[-2], images.shape[-1])
                found = stages.resolve(self.net, "memory", type(self.net).__name__, self.layers, size)
                self._taps = Taps(self.net, {tap.module: tap.layout for tap in found}, map_statistics)
            with self._taps as taps:
                output = taps(images)
            places = torch.zeros(len(images), dtype=torch.int64, device=images.device)
            batches = {
                name: LayerBatch(maps, output.gradients[name], places, places) for name, maps in output.maps.items()
            }
            for name, batch in batches.items():
                if not bool(batch.finite.all()):
                    raise PurityError(
                        f"layer {name} holds a NaN or an infinity for image {int(batch.finite.int().argmin())} of the "
                        "batch: check the images, the weights and the learning rate."
                    )
            for name, batch in batches.items():
                if name not in self.metrics:
                    channels = batch.maps.max_positive.shape[1]
                    self.metrics[name] = FiringCounts(channels, self.thresholds, 1, images.device)
                self.metrics[name].add(self.metrics[name].increments(batch))

    def compute(self) -> dict[str, float]:
        """`{"purity/<module>": F, "purity_rate/<module>": F_r}` of all images since the last reset.

        NaN where nothing fired, or where no threshold gives the rate. Sums over all processes where there are several:
        then every process must call this, also one that saw no batch. A warning says once where F is biased low.
        """
        found, level = {}, self.thresholds.index(self.threshold)
        for name, arrays in self._of_all_processes().items():
            counts = arrays["counts"]
            fired = counts[0, level]
            if 0 < fired.sum() < ENOUGH * len(fired) and name not in self._warned:
                self._warned.add(name)
                log.warning(
                    f"F of {name} is biased low because there are fewer than {ENOUGH} firings per channel: take more "
                    "images, or a lower threshold."
                )
            found[f"purity/{name}"] = float(feature_purity(fired))
            rated = purity_at_rate(counts, arrays["images"], self.thresholds, self.rate)
            found[f"purity_rate/{name}"] = rated.purity
        return found

    def _of_all_processes(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The arrays of every layer that any process has seen, summed, in the same order everywhere."""
        mine = {name: metric.arrays() for name, metric in self.metrics.items()}
        everybody = [mine]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everybody *= dist.get_world_size()
            dist.all_gather_object(everybody, mine)
        total: dict[str, dict[str, NDArray[Any]]] = {}
        for theirs in everybody:
            for name, arrays in theirs.items():
                before = total.get(name)
                total[name] = {key: array + before[key] if before else array for key, array in arrays.items()}
        return total

    def reset(self) -> None:
        """Forget all images."""
        self.metrics = {}
