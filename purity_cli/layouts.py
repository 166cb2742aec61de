"""Where in a module's output the channels and the places are: every layout becomes maps (n, c, h, w)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from purity_cli.errors import PurityError


@dataclass(frozen=True)
class Layout:
    """The order of a feature map's axes.

    `first` is (n, c, h, w). `last` is (n, h, w, c), as in Swin. `tokens` is (n, p + h * w, c), as in ViT: `prefix` is
    p, the number of tokens that are no places of the image (class token, registers), and `grid` is (h, w), whose
    places follow row by row.

    >>> Layout("tokens", prefix=1, grid=(14, 14)).maps(torch.zeros(2, 197, 192)).shape
    torch.Size([2, 192, 14, 14])
    """

    kind: Literal["first", "last", "tokens"] = "first"
    prefix: int = 0
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("first", "last", "tokens") or (self.kind == "tokens") != (self.grid is not None):
            raise PurityError(
                f"A layout is 'first', 'last', or 'tokens' with a grid (h, w), not {self.kind!r} with {self.grid}."
            )

    def __str__(self) -> str:
        if self.grid is None:
            return f"channels {self.kind}"
        prefix = f"{self.prefix} + " if self.prefix else ""
        return f"tokens {prefix}{self.grid[0]}x{self.grid[1]}"

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an output of this shape can have this layout."""
        if self.grid is None:
            return len(shape) == 4
        return len(shape) == 3 and shape[1] == self.prefix + self.grid[0] * self.grid[1]

    def maps(self, output: Tensor) -> Tensor:
        """The feature maps of an output: a view (n, c, h, w) without the prefix tokens."""
        if self.grid is not None:
            return output[:, self.prefix :].reshape(len(output), *self.grid, -1).permute(0, 3, 1, 2)
        return output.permute(0, 3, 1, 2) if self.kind == "last" else output

    def map_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(c, h, w) of an output of this shape."""
        if self.kind == "first":
            return shape[1], shape[2], shape[3]
        height, width = self.grid or (shape[1], shape[2])
        return shape[-1], height, width

    def add_probe(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The output with a zero probe added at every place of the map, and the probe, which requires grad.

        The probe holds one number for each image and channel, so its gradient is the spatial sum of the map's.
        """
        n = len(output)
        if self.kind == "first":
            probe = output.new_zeros(n, output.shape[1], 1, 1).requires_grad_()
            return output + probe, probe
        probe = output.new_zeros(n, *(1,) * (output.ndim - 2), output.shape[-1]).requires_grad_()
        if not self.prefix:
            return output + probe, probe
        return torch.cat([output[:, : self.prefix], output[:, self.prefix :] + probe], 1), probe


FIRST = Layout()
