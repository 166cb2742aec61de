"""Training images in memory: decoded once, augmented in batches where they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from purity_cli.datasets import ImageSource, UnreadableImage
from purity_cli.errors import PurityError
from purity_cli.pixels import prepare
from purity_cli.plan import Preprocessing, Size
from purity_cli.train.settings import Augmentation


@dataclass(frozen=True)
class Images:
    """All images of a split: `pixels` uint8 (n, 3, h, w), channels last in memory, and `labels` int64 (n,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))


def decode(
    source: ImageSource, selection: Sequence[int], preprocessing: Preprocessing, size: Size, workers: int
) -> Images:
    """The images of a selection, resized and cropped; PurityError where one is unreadable or not of `size` (h, w)."""
    pixels = np.empty((len(selection), *size, 3), np.uint8)

    def load(row: int) -> None:
        path = source.paths[selection[row]]
        try:
            image = prepare(source, selection[row], preprocessing)
        except UnreadableImage as error:
            raise PurityError(f"{path} in {source.name} cannot be read ({error}): mend or remove it.") from None
        if (image.height, image.width) != size:
            raise PurityError(
                f"{path} is {image.height}x{image.width}, and the network takes {size[0]}x{size[1]}: give "
                f"--resize {min(size)}."
            )
        pixels[row] = np.asarray(image)

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        list(pool.map(load, range(len(selection))))
    labels = [(source.labels or ())[i] for i in selection]
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(labels))


@dataclass(frozen=True)
class Draws:
    """What chance decides in one epoch, for each of n images."""

    order: Tensor
    """int64 (n,): when its turn comes."""
    top: Tensor
    """int64 (n,): where its crop begins in the padded image, 0..2 pad."""
    left: Tensor
    """int64 (n,): the same from the left."""
    mirrored: Tensor
    """bool (n,)."""

    @classmethod
    def of(cls, n: int, augmentation: Augmentation) -> Draws:
        """Drawn on the CPU from the global random state, so that every device sees the same."""
        top, left = torch.randint(0, 2 * augmentation.pad + 1, (2, n))
        mirrored = torch.rand(n) < (0.5 if augmentation.flip else 0)
        return cls(torch.randperm(n), top, left, mirrored)

    def to(self, device: torch.device) -> Draws:
        return Draws(*(draw.to(device) for draw in vars(self).values()))


def augment(images: Images, chosen: Tensor, draws: Draws, margin: int) -> Tensor:
    """The images `chosen`, uint8 (n, 3, h, w), channels last in memory: padded with `margin` black pixels, cropped to
    their old size and mirrored as `draws` says.
    """
    height, width = images.pixels.shape[2:]
    padded = pad(images.pixels[chosen], (margin,) * 4).permute(0, 2, 3, 1)
    number, down, right = (torch.arange(end, device=chosen.device) for end in (len(chosen), height, width))
    rows = draws.top[chosen, None] + down
    columns = draws.left[chosen, None] + torch.where(draws.mirrored[chosen, None], right.flip(0), right)
    return padded[number[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of all that chance decides in an epoch, so that a resumed training needs no stored random state."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
