"""What every module of a network gives for one image, by one forward pass with hooks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from purity_cli.errors import PurityError

Size = tuple[int, int]
"""(height, width) of the network's input in pixels."""


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
    stage: str | None = None
    """`C3` if it is one of the network's stages."""


def probe(net: nn.Module, input_size: Size) -> dict[str, LayerInfo]:
    """Every module below `net`, in the order of `named_modules`, by a forward pass of one random image (1, 3, h, w).

    The pass runs in eval mode, without gradients, on the device of `net`, which may be `meta`; the network is left as
    it was. A module can be tapped if it ran exactly once and gave one map (1, c, h, w) of the picture.
    Raises PurityError where the network does not run on such an image.
    """
    outputs: dict[str, list[Any]] = {name: [] for name, _ in net.named_modules() if name}
    with ExitStack() as stack, torch.no_grad():
        for name, module in net.named_modules():
            stack.callback(setattr, module, "training", module.training)
            if name:
                stack.callback(module.register_forward_hook(_recorder(outputs[name])).remove)
        net.eval()
        try:
            net(_picture(net, input_size))
        except Exception as error:  # whatever a network's own code may raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PurityError(
                f"The network does not run on pictures of {input_size[0]}x{input_size[1]} ({reason}): "
                "give its own input size with --resize and --crop."
            ) from error
    modules = dict(net.named_modules())
    return {name: _describe(name, modules[name], given, input_size) for name, given in outputs.items()}


def weightless(net: nn.Module) -> nn.Module:
    """A copy whose tensors are on the meta device: its forward pass takes neither memory nor arithmetic."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in net.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in net.buffers()}
    return copy.deepcopy(net, memo)


def _picture(net: nn.Module, size: Size) -> Tensor:
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    like = next((t for t in chain(net.parameters(), net.buffers()) if t.is_floating_point()), picture)
    return picture.to(device=like.device, dtype=like.dtype)


def _recorder(given: list[Any]) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that keeps an output's shape, or what else it is, but never the tensor."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            given.append(type(output).__name__)
        else:
            given.append(tuple(output.shape) if output.is_floating_point() else f"tensor of {output.dtype}")

    return hook


def _describe(name: str, module: nn.Module, given: list[Any], size: Size) -> LayerInfo:
    problem = _problem(given, size)
    return LayerInfo(name, type(module).__name__, None if problem else given[0][1:], len(given), problem)


def _problem(given: list[Any], size: Size) -> str | None:
    """Why a module's outputs are not one map (1, c, h, w) of a picture of `size`; None if they are."""
    if len(given) != 1:
        return f"ran {len(given)} times" if given else "did not run"
    output = given[0]
    if isinstance(output, str):
        return f"gave a {output}"
    shown = f"gave ({', '.join(map(str, ('n', *output[1:]) if output[:1] == (1,) else output))})"
    if len(output) != 4 or output[0] != 1 or 0 in output:
        return shown
    skew, skew_if_last = _skew(output[2], output[3], size), _skew(output[1], output[2], size)
    # Channels-last maps also have four axes, but it is axes 1 and 2 that have the picture's proportions. The margin
    # is for sizes that were rounded. Where h : w = w : c (in a square picture, c = h = w) the two cannot be told
    # apart, which counts as channels first.
    if skew_if_last + 0.1 < min(skew, 1):
        return f"{shown}, channels last"
    # E.g. attention's (n, heads, tokens, width). Strides may differ between the axes, but hardly by more than 2.
    return f"{shown}, no map of the picture" if skew > 1 else None


def _skew(height: int, width: int, size: Size) -> float:
    """How far height : width is from the picture's, in powers of two."""
    return abs(math.log2(height / width * size[1] / size[0]))
