"""What every module of a network gives for one image, by forward passes with hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from purity_cli.errors import PurityError, first_line, no_memory
from purity_cli.layouts import Layout
from purity_cli.recomputing import without_activation_checkpointing
from purity_cli.stages.axes import MOST_PREFIX, Axes

Size = tuple[int, int]
"""(height, width) in pixels or places."""


class Call(NamedTuple):
    """One call of a module: `begin` and `end` count the beginnings and ends of all calls in the pass."""

    begin: int
    end: int
    takes: Size | None
    """(h, w) of its first input; None where that is no map."""
    gives: Size | None
    """(h, w) of its output; None where that is no map."""
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
    layout: Layout | None = None
    """Where in its output the channels and the places are; None where it cannot be tapped."""
    readings: tuple[str, ...] = ()
    """What `--layers` also calls it: `C3`, `conv:C3`, ...; empty where it has its path alone."""
    reason: str | None = None
    """Why it is one of the network's stages: what down-samples behind it."""
    ran: tuple[Call, ...] = field(default=(), compare=False, repr=False)
    """Its calls, in their order."""

    @property
    def stage(self) -> str | None:
        """`C3` if it is one of the network's stages."""
        return next((name for name in self.readings if ":" not in name), None)


class Layers(dict[str, LayerInfo]):
    """Every module by its path, in the order of `named_modules`."""

    attended = 0
    """When tokens were last mixed by an attention, on the clock of `Call`; 0 where they never were."""
    from_class_token = False
    """Whether the network predicts from prefix tokens alone, so that nothing reads the others behind `attended`."""


def probe(net: nn.Module, input_size: Size) -> Layers:
    """Every module below `net`, by a forward pass of one random image (1, 3, h, w).

    Two further passes, of an image that is less high and of one that is less wide, show which axes of an output are
    those of the image, as far as the network runs on them. The passes run in eval mode, without gradients, on the
    device of `net`, which may be `meta`; the network is left as it was. A module can be tapped if it ran exactly once
    and gave one map of the image, in any `Layout`.
    Raises PurityError where the network does not run on such an image.
    """
    height, width = input_size
    trace, error = _trace(net, input_size)
    if error:
        raise PurityError(
            f"The network does not run on images of {height}x{width} ({first_line(error)}): "
            "give its own input size with --resize and --crop (purity layers: --size)."
        ) from error
    others = [_trace(net, size)[0].outputs() for size in ((_less(height), width), (height, _less(width)))]
    modules = dict(net.named_modules())
    axes = Axes(modules, input_size, trace.outputs(), *others)
    layers = Layers((name, _describe(name, modules[name], calls, axes)) for name, calls in trace.calls.items())
    layers.attended, layers.from_class_token = trace.ops.attended, trace.ops.from_prefix
    return layers


def _less(side: int) -> int:
    """About half of a side, divisible by 32 where that is possible: many networks halve their maps five times."""
    return -(-side // 64) * 32 if side >= 64 else -(-side // 2)


def _trace(net: nn.Module, size: Size) -> tuple[_Trace, Exception | None]:
    """What ran on an image of this size, and what ended the pass before its time."""
    trace = _Trace()
    with ExitStack() as stack:
        for name, module in net.named_modules():
            stack.callback(setattr, module, "training", module.training)
            if name:
                trace.follow(name, module, stack)
        net.eval()
        stack.enter_context(without_activation_checkpointing())
        stack.enter_context(torch.no_grad())
        try:
            image = _random_image(net, size)
            with trace.ops:
                net(image)
        except Exception as error:  # whatever a network's own code may raise
            if no_memory(error):
                raise
            return trace, error
    return trace, None


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
    takes: tuple[int, ...]
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
        self.ops = _Ops(self._clock)

    def outputs(self) -> Mapping[str, Any]:
        """What each module gave that ran exactly once."""
        return {name: calls[0].gives for name, calls in self.calls.items() if len(calls) == 1}

    def follow(self, name: str, module: nn.Module, stack: ExitStack) -> None:
        """Until `stack` is closed."""
        calls = self.calls.setdefault(name, [])
        stack.callback(module.register_forward_pre_hook(self._begin).remove)
        stack.callback(module.register_forward_hook(self._ender(calls)).remove)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        given = next((each for each in inputs if isinstance(each, Tensor)), None)
        around = self._running[-1] if self._running else None
        branch = around is not None and given is not None and given is around.given
        if around and branch:
            around.branches += 1
        takes = () if given is None else tuple(given.shape)
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


_ATTENTION = (F.softmax, torch.softmax, Tensor.softmax, F.scaled_dot_product_attention, F.multi_head_attention_forward)
_PICK = (Tensor.__getitem__, Tensor.select, torch.select, Tensor.narrow, torch.narrow)


class _Ops(TorchFunctionMode):
    """When an attention last mixed tokens, and how tokens (1, T, c) were last reduced: to their first, or by a mean."""

    def __init__(self, clock: count[int]) -> None:
        super().__init__()
        self._clock = clock
        self.attended = self.picked = self.averaged = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        if func in _ATTENTION:
            self.attended = next(self._clock)
        elif args and isinstance(args[0], Tensor) and args[0].ndim == 3 and isinstance(given, Tensor):
            tokens, channels = args[0].shape[1:]
            left = 1 if given.ndim == 2 else given.shape[1]
            few = given.ndim in (2, 3) and given.shape[-1] == channels and left <= MOST_PREFIX and left < tokens
            if func in _PICK and few:
                self.picked = next(self._clock)
            elif (func in (Tensor.mean, torch.mean) and few) or func in (Tensor.flatten, torch.flatten):
                self.averaged = next(self._clock)
        return given

    @property
    def from_prefix(self) -> bool:
        """Whether only prefix tokens were read behind the last attention."""
        return self.picked > self.attended > self.averaged


def _given(output: Any) -> Any:
    """An output's shape, or what else it is, but never the tensor."""
    if not isinstance(output, Tensor):
        return type(output).__name__
    return tuple(output.shape) if output.is_floating_point() else f"tensor of {output.dtype}"


def _describe(name: str, module: nn.Module, calls: Sequence[_Running], axes: Axes) -> LayerInfo:
    ran = tuple(
        Call(call.begin, call.end, axes.size(call.takes), axes.size(call.gives), call.shortcut) for call in calls
    )
    unread = f"ran {len(calls)} times" if calls else "was not seen to run"
    found = axes.layout(name) if len(calls) == 1 else unread
    kind = type(module).__name__
    if isinstance(found, str):
        return LayerInfo(name, kind, None, len(calls), found, ran=ran)
    return LayerInfo(name, kind, found.map_shape(calls[0].gives), 1, None, found, ran=ran)
