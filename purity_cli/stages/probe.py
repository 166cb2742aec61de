"""What every module of a network gives for one image, by one forward pass with hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from purity_cli.errors import PurityError, first_line, no_memory
from purity_cli.recomputing import without_activation_checkpointing

Size = tuple[int, int]
"""(height, width) of the network's input in pixels."""


class Call(NamedTuple):
    """One call of a module: `begin` and `end` count the beginnings and ends of all calls in the pass."""

    begin: int
    end: int
    takes: tuple[int, int] | None
    """(h, w) of its first input; None where that is no map."""
    shortcut: bool
    """Whether it goes past others, as the `downsample` of a residual block, or is inside such a module: one that is
    given what the module around it was given, as another in there is, gives what that gives, and has fewer convolutions
    than the rest of that."""


@dataclass(frozen=True)
class LayerInfo:
    """One module in one forward pass of one image."""

    module: str
    """Dotted path."""
    kind: str
    """Class name."""
    shape: tuple[int, int, int] | None
    """(c, h, w) of its feature map; None where it cannot be tapped."""
    calls: int
    problem: str | None
    """Why it cannot be tapped, as what it did: `ran 3 times`, `gave a tuple`, ...; None where it can."""
    readings: tuple[str, ...] = ()
    """What `--layers` also calls it: `C3`, `conv:C3`, ...; empty where it has its path alone."""
    ran: tuple[Call, ...] = field(default=(), compare=False, repr=False)
    """Its calls, in their order."""

    @property
    def stage(self) -> str | None:
        """`C3` if it is one of the network's stages."""
        return next((name for name in self.readings if ":" not in name), None)


def probe(net: nn.Module, input_size: Size) -> dict[str, LayerInfo]:
    """Every module below `net`, in the order of `named_modules`, by a forward pass of one random image (1, 3, h, w).

    The pass runs in eval mode, without gradients, on the device of `net`, which may be `meta`; the network is left as
    it was. A module can be tapped if it ran exactly once and gave one map (1, c, h, w) of the image.
    Raises PurityError where the network does not run on such an image.
    """
    trace = _Trace()
    with ExitStack() as stack, torch.no_grad():
        for name, module in net.named_modules():
            stack.callback(setattr, module, "training", module.training)
            if name:
                trace.follow(name, module, stack)
        net.eval()
        stack.enter_context(without_activation_checkpointing())
        try:
            net(_random_image(net, input_size))
        except Exception as error:  # whatever a network's own code may raise
            if no_memory(error):
                raise
            reason = first_line(error)
            raise PurityError(
                f"The network does not run on images of {input_size[0]}x{input_size[1]} ({reason}): "
                "give its own input size with --resize and --crop (purity layers: --size)."
            ) from error
    modules = dict(net.named_modules())
    return {name: _describe(name, modules[name], calls, input_size) for name, calls in trace.calls.items()}


def _random_image(net: nn.Module, size: Size) -> Tensor:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    like = next((t for t in chain(net.parameters(), net.buffers()) if t.is_floating_point()), image)
    return image.to(device=like.device, dtype=like.dtype)


@dataclass(eq=False)
class _Running:
    """A call in progress, then what it was. The tensors are kept while it runs, and never longer."""

    module: nn.Module
    begin: int
    given: Tensor | None
    takes: tuple[int, int] | None
    around: _Running | None
    branch: bool
    """Whether it is given what the call around it was given."""
    convolutions: int
    """That ran in it, itself included."""
    branches: int = 0
    end: int = 0
    gives: Any = None
    """Its output's shape, or what else that was."""

    @property
    def shortcut(self) -> bool:
        around = self.around
        if around is None:
            return False
        past = self.branch and around.branches > 1 and around.convolutions > 2 * self.convolutions
        return around.shortcut or (past and self.gives == around.gives)


class _Trace:
    """Hooks that write down the calls of modules."""

    def __init__(self) -> None:
        self.calls: dict[str, list[_Running]] = {}
        self._clock, self._running = count(1), list[_Running]()

    def follow(self, name: str, module: nn.Module, stack: ExitStack) -> None:
        """Until `stack` is closed."""
        calls = self.calls.setdefault(name, [])
        stack.callback(module.register_forward_pre_hook(self._begin).remove)
        stack.callback(module.register_forward_hook(self._ender(calls)).remove)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        given = next((each for each in inputs if isinstance(each, Tensor)), None)
        takes = (given.shape[2], given.shape[3]) if given is not None and given.ndim == 4 else None
        around = self._running[-1] if self._running else None
        branch = around is not None and given is not None and given is around.given
        if around and branch:
            around.branches += 1
        self._running.append(_Running(module, next(self._clock), given, takes, around, branch, 0))
        if isinstance(module, nn.Conv2d):
            for call in self._running:
                call.convolutions += 1

    def _ender(self, calls: list[_Running]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            while (call := self._running.pop()).module is not module:
                pass  # one that raised what the network caught
            call.end, call.given, call.gives = next(self._clock), None, _given(output)
            calls.append(call)

        return hook


def _given(output: Any) -> Any:
    """An output's shape, or what else it is, but never the tensor."""
    if not isinstance(output, Tensor):
        return type(output).__name__
    return tuple(output.shape) if output.is_floating_point() else f"tensor of {output.dtype}"


def _describe(name: str, module: nn.Module, calls: Sequence[_Running], size: Size) -> LayerInfo:
    given = [call.gives for call in calls]
    problem = _problem(given, size)
    ran = tuple(Call(call.begin, call.end, call.takes, call.shortcut) for call in calls)
    return LayerInfo(name, type(module).__name__, None if problem else given[0][1:], len(given), problem, ran=ran)


def _problem(given: list[Any], size: Size) -> str | None:
    """Why a module's outputs are not one map (1, c, h, w) of an image of `size`; None if they are."""
    if len(given) != 1:
        return f"ran {len(given)} times" if given else "did not run"
    output = given[0]
    if isinstance(output, str):
        return f"gave a {output}"
    shown = f"gave ({', '.join(map(str, ('n', *output[1:]) if output[:1] == (1,) else output))})"
    if len(output) != 4 or output[0] != 1 or 0 in output:
        return shown
    skew, skew_if_last = _skew(output[2], output[3], size), _skew(output[1], output[2], size)
    # Channels-last maps also have four axes, but it is axes 1 and 2 that have the image's proportions. The margin
    # is for sizes that were rounded. Where h : w = w : c (in a square image, c = h = w) the two cannot be told
    # apart, which counts as channels first.
    if skew_if_last + 0.1 < min(skew, 1):
        return f"{shown}, channels last"
    # E.g. attention's (n, heads, tokens, width). Strides may differ between the axes, but hardly by more than 2.
    return f"{shown}, no map of the image" if skew > 1 else None


def _skew(height: int, width: int, size: Size) -> float:
    """How far height : width is from the image's, in powers of two."""
    return abs(math.log2(height / width * size[1] / size[0]))
