"""A few images to look at, single files or one of each class; and what networks see in them: Grad-CAM, and the maps
of single channels, from the same taps as purity."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from purity_cli.datasets import ImageDataset, UnreadableImage
from purity_cli.datasets.base import fingerprint
from purity_cli.datasets.decoding import decode
from purity_cli.errors import PurityError, did_you_mean
from purity_cli.models import failed
from purity_cli.pixels import normalise, prepare
from purity_cli.run.resolving import Resolved
from purity_cli.taps import Taps

IMAGENET_SOURCES = ("bundled", "pretrainedmodels", "timm", "torchvision")
"""Whose networks of 1,000 classes are of ImageNet's."""

Read = Callable[[Tensor, Tensor], Tensor]
"""What to make of a feature map B (1, c, h, w) and beta (1, c)."""


class Chosen(NamedTuple):
    """Images of a source with what to call them, and their classes where these were chosen."""

    source: ImageDataset
    images: Sequence[int]
    names: Sequence[str]
    classes: Sequence[int] | None


@dataclass(eq=False)
class ImageFiles(ImageDataset):
    """Single files, in the order given."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.paths, map(self.stamp, range(len(self))), None)

    def read(self, i: int, /) -> bytes:
        try:
            return Path(self.paths[i]).read_bytes()
        except OSError as error:
            raise UnreadableImage(error.strerror or "unreadable") from None

    def decode(self, i: int, data: bytes, /) -> Image.Image:
        return decode(data)

    def stamp(self, i: int, /) -> str:
        return hashlib.sha256(self.read(i)).hexdigest()


def find_class(source: ImageDataset, text: str) -> int:
    """The class of this name, or number; PurityError where there is none."""
    if source.labels is None:
        raise PurityError(f"--class needs labels, but {source.label_note}: give --images instead.")
    names = list(source.class_names or [str(k) for k in range(max(source.labels) + 1)])
    for known in (names, readable(names)):
        if text in known:
            return known.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise PurityError(
        f"{source.name} has no class {text!r}: it has {len(names)}, from {names[0]} to {names[-1]}."
        f"{did_you_mean(text, {*names, *readable(names)})}"
    )


def readable(names: Sequence[str]) -> list[str]:
    """Names of classes with words for WordNet ids: `n01440764` and `n01440764 tench` become `tench`."""
    if not all(re.match(r"n\d{8}( |$)", name) for name in names):
        return list(names)
    from purity_cli.imagenet import class_names

    words = dict(name.split(" ", 1) for name in class_names())
    return [words.get(name[:9], name) for name in names]


def of_files(files: Sequence[str]) -> Chosen:
    """Every file, called by its name; PurityError for one that is not there."""
    for file in files:
        if not Path(file).is_file():
            raise PurityError(f"There is no image {file}: give files, or a number of classes.")
    source = ImageFiles("the panel", files, None, "single files carry no labels", None)
    return Chosen(source, range(len(files)), [Path(file).name for file in files], None)


def of_classes(source: ImageDataset, classes: Sequence[int]) -> Chosen:
    """The first image of each class, called by the class."""
    labels = list(source.labels or ())
    names = readable(source.class_names or [str(k) for k in range(max(labels) + 1)])
    for k in classes:
        if k not in labels:
            raise PurityError(f"{source.name} has no image of class {names[k]}: choose another.")
    return Chosen(source, [labels.index(k) for k in classes], [names[k] for k in classes], classes)


def first(source: ImageDataset, n: int) -> Chosen:
    """One image of each of the first n classes that have any; where there are no labels, the first n images."""
    if source.labels is None:
        images = range(min(n, len(source)))
        return Chosen(source, images, [Path(source.paths[i]).name for i in images], None)
    return of_classes(source, sorted(set(source.labels))[:n])


class ImageView(NamedTuple):
    """One image as one network sees it."""

    image: NDArray[np.uint8]
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


def look(plan: Resolved, images: Sequence[int], read: Read = grad_cam) -> list[ImageView]:
    """Views of images of `plan.source`, with what `read` makes of each tapped layer, of the predicted class.

    In float32 whatever the job's precision, one image at a time. PurityError for an image that cannot be read and
    logits that are not finite.
    """
    network, device = plan.network.module.to(plan.device), plan.device
    views = []
    with Taps(network, {tap.module: tap.layout for tap in plan.taps}, lambda b: b) as taps:
        for i in images:
            image = _load(plan, i)
            pixels = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).to(device)
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
            views.append(ImageView(image, int(predicted), float(score), maps))
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
        from purity_cli.imagenet import class_names

        return readable(class_names())
    return None


def _load(plan: Resolved, i: int) -> NDArray[np.uint8]:
    path = plan.source.paths[i]
    try:
        return np.array(prepare(plan.source, i, plan.preprocessing))
    except UnreadableImage as error:
        raise PurityError(f"{path} cannot be read ({error}): mend it, or choose other images.") from None
