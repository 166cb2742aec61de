"""Purity inside a training loop: `PurityMonitor` reads layers of a network that is being trained, and leaves it alone.

Plain PyTorch, once per epoch:

    monitor = PurityMonitor(net, ["last"])
    for images, _ in loader:
        monitor.update(images)
    log(monitor.compute())  # {"purity/layer4": 0.946}
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

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics.utilities import rank_zero_warn

from purity_cli import stages
from purity_cli.errors import PurityError
from purity_cli.models.from_file import bare
from purity_cli.plan import check_thresholds
from purity_cli.purity import FeaturePurity, MapStatistics, activation, map_statistics
from purity_cli.stats import ENOUGH
from purity_cli.taps import Taps


class PurityMonitor:
    """Feature purity of layers of `net`, or of what is in it where it is compiled or DistributedDataParallel.

    `layers` are stages (`C3`, `conv:last`), module paths or globs, as for `purity score`; the networks whose
    stages have names are those of torchvision and timm and such with an attribute `purity_stages`. Each layer's metric
    is a torchmetrics.Metric in `metrics`, so `compute` sums over all processes where there are several.
    """

    def __init__(self, net: nn.Module, layers: str | Sequence[str] = ("last",), *, threshold: float = 0.5) -> None:
        self.net, self.threshold = bare(net), check_thresholds([threshold])[0]
        self.layers = tuple(map(str.strip, layers.split(","))) if isinstance(layers, str) else tuple(layers)
        self.metrics: dict[str, FeaturePurity] = {}
        """By module path; empty before the first update."""
        self._taps: Taps[MapStatistics] | None = None

    def update(self, images: Tensor) -> None:
        """Count the firings on images (n, 3, h, w), normalised as the network takes them and on its device.

        The network runs in eval mode, and its mode, weights, gradients and statistics are as before afterwards. Works
        inside `torch.no_grad` and `torch.inference_mode`. Raises PurityError for layers that cannot be tapped.
        """
        if not isinstance(images, Tensor):
            raise PurityError(
                f"PurityMonitor.update takes a batch of images (n, 3, h, w), not a {type(images).__name__}: give the "
                "images of the batch alone."
            )
        with torch.inference_mode(False):
            # What was made in inference mode can enter no backward pass, a copy can.
            images = images.clone() if images.is_inference() else images.detach()
            if self._taps is None:
                size = (images.shape[-2], images.shape[-1])
                found = stages.resolve(self.net, "memory", type(self.net).__name__, self.layers, size)
                self._taps = Taps(self.net, [tap.module for tap in found], map_statistics)
            with self._taps as taps:
                reading = taps(images)
            for name, statistics in reading.maps.items():
                self._count(name, activation(statistics, reading.gradients[name]))

    def compute(self) -> dict[str, float]:
        """`{"purity/<module>": F}` of all images since the last reset; NaN where nothing fired.

        Every process must call this, also one that saw no batch. A Python warning says where F is biased low, for it
        comes of fewer than five firings per channel.
        """
        fired = self._agree()
        for name, metric in self.metrics.items():
            if 0 < fired[name] < ENOUGH * metric.counts.shape[2]:
                # The same words in each epoch, so that Python says them once.
                rank_zero_warn(
                    f"F of {name} is biased low, for there are fewer than {ENOUGH} firings per channel: take more "
                    "images, or a lower threshold.",
                    stacklevel=4,
                )
        return {f"purity/{name}": float(metric.compute()) for name, metric in self.metrics.items()}

    def _count(self, name: str, activations: Tensor) -> None:
        if name not in self.metrics:
            self.metrics[name] = FeaturePurity(activations.shape[1], (self.threshold,)).to(activations.device)
        self.metrics[name].update(activations)

    def _agree(self) -> dict[str, int]:
        """Have the same metrics, in the same order, on every process, as their sums wait for all of them; the firings
        of each, of all processes."""
        mine = {name: (metric.counts.shape[2], int(metric.counts.sum())) for name, metric in self.metrics.items()}
        everybody = [mine]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everybody *= dist.get_world_size()
            dist.all_gather_object(everybody, mine)
        known = {name: channels for theirs in everybody for name, (channels, _) in theirs.items()}
        device = next((tensor.device for tensor in (*self.net.parameters(), *self.net.buffers())), torch.device("cpu"))
        with torch.inference_mode(False):
            for name in known.keys() - self.metrics.keys():
                self._count(name, torch.zeros(0, known[name], device=device))
        self.metrics = {name: self.metrics[name] for name in known}
        return {name: sum(theirs[name][1] for theirs in everybody if name in theirs) for name in known}

    def reset(self) -> None:
        """Forget all images."""
        with torch.inference_mode(False):  # states made in inference mode could not be added to outside it
            for metric in self.metrics.values():
                metric.reset()
