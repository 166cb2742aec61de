"""Which axes of a module's output are the image's: its layout, from what is known and never from a guess.

In this order: the axes that change with the height and the width of the image; what a module's class says of its axes;
the shapes and sizes of maps that are known by then. What all of this leaves open is refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from purity_cli.layouts import FIRST, Layout

Size = tuple[int, int]
LAST = Layout("last")
MOST_PREFIX = 8
"""So many prefix tokens are looked for where a network does not say how many it has."""

_FIRST_2D = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.FractionalMaxPool2d, nn.GroupNorm, nn.PixelShuffle, nn.Upsample),
)
_FIRST_1D = (nn.Conv1d, nn.BatchNorm1d, nn.GroupNorm, nn.AvgPool1d, nn.AdaptiveAvgPool1d)


class Axes:
    """The layouts of one network's outputs: shapes, by module, from one pass at `size` and from two at other sizes.

    `lower` is of an image that is less high, `narrower` of one that is less wide; they lack what did not run then.
    What gave no tensor has a text in place of a shape, which says what that was.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        size: Size,
        shapes: Mapping[str, Any],
        lower: Mapping[str, Any],
        narrower: Mapping[str, Any],
    ) -> None:
        self._image, self._shapes, self._others = size, shapes, (lower, narrower)
        self._modules = modules
        self._prefix = next((m.num_prefix_tokens for m in modules.values() if hasattr(m, "num_prefix_tokens")), None)
        self._grids: set[Size] = {grid for module in modules.values() if (grid := _grid_of(module))}
        self._sizes: set[Size] = set()
        self._layouts: dict[str, Layout | str] = {}
        self._known: dict[tuple[int, ...], set[Layout]] = {(1, 3, *size): {FIRST}}
        # Maps come before tokens, whose grids are sizes of maps; what decides by itself comes first.
        for decide, axes in (
            *((self._by_change, 4), (self._by_class, 4), (self._by_change, 3), (self._by_class, 3)),
            *((self._by_sizes, 4), (self._by_sizes, 3)),
        ):
            self._add({name: decide(name, shape) for name, shape in self._open() if len(shape) == axes})

    def layout(self, module: str) -> Layout | str:
        """The layout of a module's output, or why it is no map."""
        return self._layouts[module]

    def size(self, shape: Any) -> Size | None:
        """(h, w) of a tensor of this shape; None where it is no map of the image."""
        if isinstance(shape, str) or not shape or shape[0] != 1:
            return None
        for layout in self._known.get(shape, ()):
            return layout.map_shape(shape)[1:]
        if len(shape) == 4:
            return next((size for size in (shape[2:], shape[1:3]) if size in self._sizes), None)
        tokens = self._tokens(shape) if len(shape) == 3 else None
        return tokens.grid if isinstance(tokens, Layout) else None

    def _open(self) -> list[tuple[str, tuple[int, ...]]]:
        """The outputs that nothing has decided yet; what can be no map at once is."""
        still = []
        for name, shape in self._shapes.items():
            if name in self._layouts:
                continue
            if isinstance(shape, str):
                self._layouts[name] = f"gave a {shape}"
            elif len(shape) not in (3, 4) or shape[0] != 1 or 0 in shape:
                self._layouts[name] = _shown(shape)
            else:
                still.append((name, shape))
        return still

    def _add(self, found: Mapping[str, Layout | str | None]) -> None:
        for name, layout in found.items():
            if layout is not None:
                self._layouts[name] = layout
            if isinstance(layout, Layout):
                self._known.setdefault(self._shapes[name], set()).add(layout)
                self._sizes.add(layout.map_shape(self._shapes[name])[1:])

    def _by_change(self, name: str, shape: tuple[int, ...]) -> Layout | str | None:
        """By the axes that change with the image's height alone, and with its width alone."""
        by_height, by_width = (_changed(shape, other.get(name)) for other in self._others)
        if not by_height or not by_width:
            return None
        if len(shape) == 3 and by_height == by_width == [1]:
            return self._tokens(shape)
        if len(shape) == 4 and (by_height, by_width) in (([2], [3]), ([1], [2])):
            return FIRST if by_width == [3] else LAST
        return _no_map(shape)

    def _by_class(self, name: str, shape: tuple[int, ...]) -> Layout | str | None:
        """By what a module of this class takes for channels."""
        module = self._modules[name]
        if len(shape) == 3:
            if isinstance(module, _FIRST_1D):
                return _no_map(shape)
            return self._tokens(shape) if _last_axis(module, shape) else None
        if isinstance(module, _FIRST_2D):
            return FIRST if self._alike(shape[2], shape[3]) else _no_map(shape)
        if _last_axis(module, shape):
            return LAST if self._in_proportion(shape[1], shape[2], 1) else _no_map(shape)
        return None

    def _by_sizes(self, name: str, shape: tuple[int, ...]) -> Layout | str:
        """By the maps that are known: first those of this very shape, then those of a size that is in it."""
        fitting = set(self._known.get(shape, ()))
        if not fitting and len(shape) == 3:
            return self._tokens(shape)
        if not fitting:
            fitting |= {FIRST} if shape[2:] in {(1, 1), *self._sizes} else set()
            fitting |= {LAST} if shape[1:3] in self._sizes else set()
        if len(fitting) > 1:
            both = " or ".join(sorted(map(str, fitting)))
            return f"{_shown(shape)}, which may be {both}, and the network does not run on images of other proportions"
        return next(iter(fitting), _no_map(shape))

    def _tokens(self, shape: tuple[int, ...]) -> Layout | str:
        """The layout of an output (1, T, c) as tokens, or why it is none."""
        tokens = shape[1]
        proportional = [set(self._proportional(tokens, slack)) for slack in (0, 1)]
        for sizes in (self._grids, self._sizes, set(self._halves()), *proportional):
            fitting = sorted((tokens - h * w, (h, w)) for h, w in sizes if self._may_lead(tokens - h * w, h * w))
            if len(fitting) == 1:
                return Layout("tokens", *fitting[0])
            if fitting:
                both = " or ".join(f"{prefix} + {h}x{w}" for prefix, (h, w) in fitting)
                return (
                    f"{_shown(shape)}, which may be {both} tokens: set num_prefix_tokens, an attribute of the "
                    "network, to the number of those that are no places"
                )
        return _no_map(shape)

    def _may_lead(self, prefix: int, places: int) -> bool:
        """Whether a grid of so many places may come after so many prefix tokens."""
        most = min(MOST_PREFIX, places - 1)
        return places > 1 and (0 <= prefix <= most if self._prefix is None else prefix in (0, self._prefix))

    def _halves(self) -> Iterator[Size]:
        """The grids of tokens that a network makes of its maps by taking every other row and column."""
        for height, width in self._sizes:
            while height > 2 and width > 2:
                height, width = -(-height // 2), -(-width // 2)
                yield height, width

    def _proportional(self, tokens: int, slack: int) -> Iterator[Size]:
        """Where no map is known, every grid of the image's proportions."""
        for rest in range(max(2, tokens - MOST_PREFIX), tokens + 1) if not self._sizes else ():
            for height in range(1, rest + 1):
                if rest % height == 0 and self._in_proportion(height, rest // height, slack):
                    yield height, rest // height

    def _in_proportion(self, height: int, width: int, slack: int) -> bool:
        """Whether a map has the image's proportions, but for so many places that rounding or padding takes off."""
        return abs(height * self._image[1] - width * self._image[0]) < max(1, slack * max(self._image))

    def _alike(self, height: int, width: int) -> bool:
        """Whether a map has the image's proportions, but for a factor of 2: strides may differ between the axes."""
        return 1 / 2 <= height * self._image[1] / (width * self._image[0]) <= 2


def _shown(shape: Sequence[int]) -> str:
    return f"gave ({', '.join(map(str, ('n', *shape[1:]) if shape[:1] == (1,) else shape))})"


def _no_map(shape: Sequence[int]) -> str:
    return f"{_shown(shape)}, no map of the image"


def _changed(shape: Sequence[int], other: Any) -> list[int]:
    """Which axes differ; none where the other is missing or of another kind."""
    if other is None or isinstance(other, str) or len(other) != len(shape):
        return []
    return [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]


def _last_axis(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a module is a Linear or a LayerNorm over the last axis of what it gives."""
    if type(module).forward is nn.Linear.forward:
        return True
    if not isinstance(module, nn.LayerNorm) or tuple(module.normalized_shape) != (shape[-1],):
        return False
    # Libraries' subclasses may turn the axes; where only the last has this length they did not.
    return type(module).forward is nn.LayerNorm.forward or shape[1] != shape[-1]


def _grid_of(module: nn.Module) -> Size | None:
    """What a patch embedding says of its grid."""
    grid = getattr(module, "grid_size", None)
    pair = isinstance(grid, tuple | list) and len(grid) == 2 and all(isinstance(side, int) for side in grid)
    return (grid[0], grid[1]) if pair else None  # type: ignore[index]
