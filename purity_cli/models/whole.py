"""What a user's function returns, made a network that can be read: out of its wrappers, complete, and finite."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim.swa_utils import AveragedModel

from purity_cli.errors import PurityError, said

LAZY = (UninitializedParameter, UninitializedBuffer)
STATISTICS = ("running_mean", "running_var")
WRAPPERS = {
    nn.DataParallel: "module",
    nn.parallel.DistributedDataParallel: "module",
    AveragedModel: "module",
}
"""Modules that run another, and where they keep it. Its keys and its layers are the ones that people name."""


def unwrapped(module: nn.Module, name: str) -> nn.Module:
    """`module` without such wrappers, around it or inside, and not compiled; PurityError for TorchScript."""
    module = _inner(module)
    for part in list(module.modules()):
        if isinstance(part, torch.jit.ScriptModule):
            raise PurityError(
                f"{name} returned a TorchScript module, whose layers cannot be read: return the network as it was "
                "before torch.jit."
            )
        for child, inside in part._modules.items():
            part._modules[child] = None if inside is None else _inner(inside)
        _undo_compile(part)
    return module


def _inner(module: nn.Module) -> nn.Module:
    attribute = next((name for kind, name in WRAPPERS.items() if isinstance(module, kind)), None)
    if type(module).__name__ == "OptimizedModule":  # torch.compile's, whose import takes seconds
        attribute = "_orig_mod"
    return _inner(getattr(module, attribute)) if attribute else module


def _undo_compile(module: nn.Module) -> None:
    """Compiled code takes no notice of hooks that come later: `net.compile()`, and a compiled `forward`."""
    if module._compiled_call_impl is not None:
        module._compiled_call_impl = None
    original: Any = getattr(module.forward, "_torchdynamo_orig_callable", None)
    if original is not None:
        module.forward = original if isinstance(original, MethodType) else MethodType(original, module)


def is_lazy(module: nn.Module) -> bool:
    """Whether some shapes are open until weights are loaded or the network runs."""
    return any(isinstance(tensor, LAZY) for tensor in (*module.parameters(), *module.buffers()))


def freeze(module: nn.Module, name: str) -> None:
    """Eval mode, float32, and no parameter that asks for a gradient; PurityError where that cannot be had."""
    try:
        module.eval().float()
    except Exception as error:  # a user's own methods, and PyTorch's for what torch.export made
        raise PurityError(
            f"{name} cannot be put into eval mode and float32 ({said(error)}): return the network as it was before "
            "torch.export, and with these methods of nn.Module."
        ) from error
    for parameter in module.parameters():
        if not isinstance(parameter, LAZY):
            parameter.requires_grad_(False)


def check_finite(module: nn.Module, name: str, weights: str) -> None:
    """PurityError where a weight has no value, is NaN or infinite, or a buffer NaN (one may well hold -inf, as masks
    do)."""
    parameters = dict(module.named_parameters())
    for key, tensor in (*parameters.items(), *module.named_buffers()):
        if tensor.is_meta and not isinstance(tensor, LAZY):
            raise PurityError(f"{key} of {name} is on the device meta and has no values: build the network on the CPU.")
        if isinstance(tensor, LAZY) or not tensor.is_floating_point():
            continue
        # One pass: a sum is NaN or infinite where any value is, and otherwise only where finite ones overflow.
        if tensor.sum(dtype=torch.float64).isfinite():
            continue
        bad = ~tensor.isfinite() if key in parameters or key.endswith(STATISTICS) else tensor.isnan()
        if bad.any():
            raise PurityError(
                f"{key} of {name} holds a NaN or an infinity in {int(bad.sum())} of its {tensor.numel()} values "
                f"(weights: {weights}): no number can come of it; take weights from before the training diverged."
            )
