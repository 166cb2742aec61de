"""What else of a stage can be read than its activation: `conv:C3`, `block:C3`, `pool:C3`.

The paper names no modules, and another module gives another number. Readings are found, in any network, by the order
in which its modules run and by the sizes of their maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from torch import nn

from purity_cli.stages.probe import Call, LayerInfo
from purity_cli.stages.trunk import POOLS

MIXERS = (nn.Conv2d, nn.Linear)
"""What makes a container of modules a block, and what no norm, activation or other element-wise module is."""


class RunOrder:
    """A network's modules as they run: `seen` is what `probe` found, `known` its stages, shallow to deep."""

    def __init__(self, net: nn.Module, seen: Mapping[str, LayerInfo], known: Mapping[str, str]) -> None:
        self.seen, self.known = seen, known
        modules = dict(net.named_modules())
        self.convolutions = [name for name in seen if isinstance(modules[name], nn.Conv2d)]
        self.pools = [name for name in seen if isinstance(modules[name], POOLS)]
        mixers = [name for name in seen if isinstance(modules[name], MIXERS)]
        inside = {name.rpartition(".")[0] for name in mixers}
        inside |= {path[:i] for path in inside for i, letter in enumerate(path) if letter == "."}
        self.blocks = [name for name in seen if name in inside and not isinstance(modules[name], MIXERS)]
        self._mixing = [call.begin for name in (*mixers, *self.pools) for call in seen[name].ran]

    def conv(self, stage: str) -> str | None:
        """The last convolution that ends by when the stage does, on maps (h, w) of its size.

        One on a shortcut past others, which may run after these, counts only where there is no other.
        """
        end, size = self._call(self.known[stage]).end, self._size(self.known[stage])
        found = [
            name for name in self._once(self.convolutions) if self._call(name).end <= end and self._size(name) == size
        ]
        return max(found, key=lambda name: (not self._call(name).shortcut, self._call(name).end), default=None)

    def block(self, stage: str) -> str | None:
        """The container with convolutions inside whose output the stage is.

        That is the stage's own module, where it is one. Else it is the largest that begins after the stage before (the
        trunk does not), has maps (c, h, w) as this one, and ends after it or, where there is none, before it, with
        nothing but norms, activations and other element-wise modules in between.
        """
        module = self.known[stage]
        if module in self.blocks:
            return module
        own, shape, before = self._call(module), self.seen[module].shape, self._before(stage)
        calls = {name: self._call(name) for name in self._once(self.blocks) if self.seen[name].shape == shape}
        alike = {name: call for name, call in calls.items() if call.begin > before and not call.shortcut}
        around = [name for name, call in alike.items() if call.begin < own.begin and self._follows(call, own)]
        ahead = [name for name, call in alike.items() if self._follows(own, call)]
        return min(around or ahead, key=lambda name: alike[name].begin, default=None)

    def pool(self, stage: str) -> str | None:
        """The first pooling that begins after the stage, on maps (h, w) of its size, on the way to the next stage.

        There may be a convolution in between, as in a DenseNet. Not on the way are what a squeeze-and-excitation pools,
        which is smaller than the next stage's map, and a pooling on a shortcut past convolutions. Behind the last stage
        it is the global pooling, where that is a module; its map is 1 x 1.
        """
        end, size = self._call(self.known[stage]).end, self._size(self.known[stage])
        after = self._after(stage)
        found = []
        for name in self._once(self.pools):
            call = self._call(name)
            on_the_way = after is None or (call.end < self._call(after).end and self._size(name) >= self._size(after))
            if call.begin > end and call.takes == size and on_the_way and not call.shortcut:
                found.append(name)
        return min(found, key=lambda name: self._call(name).begin, default=None)

    def _once(self, names: list[str]) -> Iterator[str]:
        """Those that can be tapped."""
        return (name for name in names if self.seen[name].shape)

    def _call(self, module: str) -> Call:
        return self.seen[module].ran[0]

    def _size(self, module: str) -> tuple[int, ...]:
        return (self.seen[module].shape or ())[1:]

    def _before(self, stage: str) -> int:
        """When the stage before ended; 0 for the first."""
        return next((self._call(self.known[a]).end for a, b in pairwise(self.known) if b == stage), 0)

    def _after(self, stage: str) -> str | None:
        """The module of the next stage."""
        return next((self.known[b] for a, b in pairwise(self.known) if a == stage), None)

    def _follows(self, then: Call, first: Call) -> bool:
        """Whether one ends after another with only element-wise modules beginning in between."""
        return first.end < then.end and not any(first.end < begin < then.end for begin in self._mixing)


FINDERS: dict[str, Callable[[RunOrder, str], str | None]] = {
    "conv": RunOrder.conv,
    "block": RunOrder.block,
    "pool": RunOrder.pool,
}
"""By what stands before the colon: one entry a reading, which gives the module or None where a stage has none."""
