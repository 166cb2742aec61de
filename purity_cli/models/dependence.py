"""Whether an image's values are its own, or depend on those beside it or on chance."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from purity_cli.errors import PurityError


def differ(alone: Tensor, beside: Tensor) -> bool:
    """Whether an image's logits alone and as the second of several differ by more than what rounding often makes."""
    scale, spread = float(beside.abs().max()), float((beside[0] - beside[1]).abs().max())
    return float((alone[0] - beside[1]).abs().max()) > 1e-5 * scale + 1e-3 * spread


def depends(
    module: nn.Module, name: str, images: Tensor, memory_format: torch.memory_format, batch_size: int | None
) -> str | None:
    """Whether the second image's values change with those beside it, or from pass to pass, by more than rounding: then
    PurityError, or what to say where each image is scored alone."""
    again, beside = _compare(module, images, memory_format)
    if again is None and beside is None:
        return None
    try:  # rounding, in a network that makes much of it, is gone in double precision
        exact: nn.Module = copy.deepcopy(module).double()
        again, beside = _compare(exact, images.double(), memory_format)
    except Exception:  # it cannot be copied, or insists on float32
        pass
    if again is not None:
        raise PurityError(
            f"{name} gives an image other values in each pass, whatever the batch, from {again} on: chance "
            "is at work in eval mode, such as dropout with training=True, and has to be switched off there."
        )
    if beside is None:
        return None
    text = f"The values of {name} depend on the batch: from {beside} on, an image's change with those beside it"
    if batch_size == 1:
        return f"{text}; with a batch size of 1 each is taken alone."
    raise PurityError(f"{text}. Give it running statistics, or take each image alone with --batch-size 1.")


def _compare(module: nn.Module, images: Tensor, memory_format: torch.memory_format) -> list[str | None]:
    """Where the values of the second image begin to differ from those it has alone: alone again, and beside others."""
    module.to(memory_format=memory_format)
    reference, again, beside = (
        _outputs(module, batch.contiguous(memory_format=memory_format), place)
        for batch, place in ((images[1:2], 0), (images[1:2], 0), (images, 1))
    )
    return [_first_other(module, reference, each) for each in (again, beside)]


def _outputs(module: nn.Module, images: Tensor, place: int) -> dict[str, Tensor]:
    """What the innermost modules and the network itself, as `""`, give the image in this place."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, part in module.named_modules():
            if name and not any(True for _ in part.children()):
                stack.callback(part.register_forward_hook(partial(_keep, seen, name, place)).remove)
        seen[""] = module(images)[place]
    return {**{name: value for name, value in seen.items() if name}, "": seen[""]}


def _first_other(module: nn.Module, reference: dict[str, Tensor], values: dict[str, Tensor]) -> str | None:
    for name, value in values.items():
        other = reference.get(name)
        if other is None or other.shape != value.shape:
            continue  # the batch is not its first axis
        if float((value - other).abs().max()) > 1e-3 * float(other.abs().max()):
            return _described(module, name)
    return None


def _keep(seen: dict[str, Tensor], name: str, place: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.ndim and name not in seen and len(output) > place:
        seen[name] = output[place].clone()


def _described(module: nn.Module, name: str) -> str:
    if not name:
        return "its output"
    part = module.get_submodule(name)
    about = ""
    if isinstance(part, _BatchNorm):
        about = ", without running statistics" if part.running_mean is None else ", in training mode"
    return f"{name} ({type(part).__name__}{about if about.endswith('statistics') or part.training else ''})"
