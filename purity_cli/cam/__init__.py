"""Grad-CAM, and the maps of single channels, of a few images: from the same taps as purity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from purity_cli.cam.pictures import readable
from purity_cli.datasets import UnreadableImage
from purity_cli.errors import PurityError
from purity_cli.models import failed
from purity_cli.pixels import normalise, prepare
from purity_cli.run.resolving import Resolved
from purity_cli.taps import Taps

IMAGENET_SOURCES = ("bundled", "pretrainedmodels", "timm", "torchvision")
"""Whose networks of 1,000 classes are of ImageNet's."""

Read = Callable[[Tensor, Tensor], Tensor]
"""What to make of a feature map B (1, c, h, w) and beta (1, c)."""


class View(NamedTuple):
    """One image as one network sees it."""

    picture: NDArray[np.uint8]
    """(h, w, 3), resized and cropped."""
    predicted: int
    score: float
    """Softmax of the predicted class."""
    maps: dict[str, NDArray[np.float32]]
    """By module, what was read of it."""


def grad_cam(feature_map: Tensor, beta: Tensor) -> Tensor:
    """max(sum_k beta_k B_k, 0) (n, h, w) of B (n, c, h, w) and beta (n, c), the mean of dy_m / dB (Selvaraju 2017)."""
    return (beta[:, :, None, None] * feature_map).sum(1).clamp_min(0)


def channel_maps(feature_map: Tensor, beta: Tensor, channels: Sequence[int]) -> Tensor:
    """L_k = max(beta_k B_k, 0) of the chosen channels: (n, k, h, w) (Eq. 2)."""
    chosen = list(channels)
    return (beta[:, chosen, None, None] * feature_map[:, chosen]).clamp_min(0)


def look(plan: Resolved, images: Sequence[int], read: Read = grad_cam) -> list[View]:
    """Views of images of `plan.source`, with what `read` makes of each tapped layer, of the predicted class.

    In float32 whatever the job's precision, one image at a time. PurityError for an image that cannot be read and
    logits that are not finite.
    """
    network, device = plan.network.module.to(plan.device), plan.device
    views = []
    with Taps(network, [tap.module for tap in plan.taps], lambda b: b) as taps:
        for i in images:
            picture = _load(plan, i)
            pixels = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).to(device)
            try:
                reading = taps(normalise(pixels, plan.preprocessing))
            except PurityError:
                raise
            except Exception as error:  # whatever a network's own code may raise
                raise failed(plan.network, error) from error
            if not reading.logits.isfinite().all():
                raise PurityError(
                    f"The logits of {plan.network.name} hold a NaN or an infinity for {plan.source.paths[i]}: check "
                    "the weights and the preprocessing."
                )
            score, predicted = reading.logits[0].softmax(0).max(0)
            betas = {name: reading.gradients[name] / b[0, 0].numel() for name, b in reading.maps.items()}
            maps = {name: read(b, betas[name])[0].cpu().numpy() for name, b in reading.maps.items()}
            views.append(View(picture, int(predicted), float(score), maps))
    return views


def top_channels(counts: NDArray[np.int64], k: int) -> list[tuple[int, int]]:
    """The k channels with the largest of counts (c,), and these; of equal ones the lower number first."""
    order = np.argsort(-counts, kind="stable")[:k]
    return [(int(channel), int(counts[channel])) for channel in order]


def names_of_classes(plan: Resolved) -> list[str] | None:
    """What the network's classes are called; None where nobody knows."""
    network, source = plan.network, plan.source
    if plan.label_note is None and source.class_names:
        return readable(source.class_names)
    if network.num_classes == 1000 and network.source in IMAGENET_SOURCES:
        from purity_cli.datasets.imagenet import class_names

        return readable(class_names())
    return None


def _load(plan: Resolved, i: int) -> NDArray[np.uint8]:
    path = plan.source.paths[i]
    try:
        return np.array(prepare(plan.source, i, plan.preprocessing))
    except UnreadableImage as error:
        raise PurityError(f"{path} cannot be read ({error}): mend it, or choose other images.") from None
