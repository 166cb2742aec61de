"""Taps: the outputs of chosen modules and the gradients that reach them, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from purity_cli.errors import PurityError, UnsuitableLayer, did_you_mean, log
from purity_cli.layouts import FIRST, Layout
from purity_cli.recomputing import without_activation_checkpointing

M = TypeVar("M")


class TapOutput(NamedTuple, Generic[M]):
    """What one batch gave: logits (n, classes), and per tap what `read_map` made of B, and the spatial sums of
    dy_m / dB, float32 (n, c).

    Without gradients there are none of these, and `logits` is whatever the network returned.
    """

    logits: Any
    maps: Mapping[str, M]
    gradients: Mapping[str, Tensor]


class Taps(Generic[M]):
    """Reads module outputs B (n, c, h, w) and spatial sums of dy_m / dB, m the predicted class, for all taps at once.

    A tapped module hands on B + probe, the probe a zero for each image and channel that requires grad: the gradient of
    the predicted classes' summed logits with respect to it is the spatial sum of dy_m / dB. What comes after the tap
    works on a tensor of its own, so whatever is done in place there, the result is that of the graph without in-place
    ops. The network is given a copy of the images, so it may also change these in place.

    `layers` are module paths, whose outputs then are (n, c, h, w), or a mapping from paths to the `Layout` of each.
    `read_map` is given maps (n, c, h, w) whatever the layout, as a view of the output. It reduces each map as soon as
    it exists; what it returns is kept, the map is not. Inside the `with` block
    the network is in eval mode with its parameters frozen, so that autograd starts at the shallowest tap and records
    nothing before it; leaving the block, also by an error, removes every hook and restores both.

    With `gradients=False` there is no backward pass, and the network may return anything.

    Raises UnsuitableLayer where a module does not give exactly one tensor of its layout per pass, or does not
    influence the logits.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Mapping[str, Layout] | Sequence[str],
        read_map: Callable[[Tensor], M],
        *,
        gradients: bool = True,
    ) -> None:
        modules = dict(net.named_modules())
        for name in layers:
            if name not in modules:
                raise PurityError(f"{type(net).__name__} has no module {name!r}.{did_you_mean(name, modules)}")
        self.net = net
        self.layouts = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers, FIRST)
        self.modules = {name: modules[name] for name in self.layouts}
        self._entered, self._looked_at = False, set[str]()
        self.read_map, self.backward = read_map, gradients
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._probes: dict[str, Tensor] = {}
        self._maps: dict[str, M] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for module in self.net.modules():
                stack.callback(setattr, module, "training", module.training)
            for parameter in self.net.parameters():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
            self.net.eval().requires_grad_(False)
            stack.enter_context(without_activation_checkpointing())
            for name, module in self.modules.items():
                handle = module.register_forward_hook(self._hook(name))
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._stack.close()

    def __call__(self, images: Tensor) -> TapOutput[M]:
        """One forward and one backward pass over `images` (n, 3, h, w), summed over their predicted classes."""
        if not self._entered:
            raise PurityError("Taps read within their `with` block alone: outside of it they leave the network alone.")
        try:
            if not self.backward:
                with torch.no_grad():
                    return TapOutput(self._forward(images), self._maps, {})
            # What is made in inference mode can enter no backward pass.
            with torch.inference_mode(False), torch.enable_grad():
                with _FrozenBatchNorm():
                    logits = self._forward(images)
                return TapOutput(logits.detach(), self._maps, self._gradients(logits))
        finally:
            self._forget()

    def _gradients(self, logits: Tensor) -> dict[str, Tensor]:
        # |beta| cancels in M, so half precision may scale the scores to keep small gradients from underflowing.
        scale = 1024.0 if logits.dtype == torch.float16 else 1.0
        scores = logits.gather(1, logits.argmax(1, keepdim=True)).sum(dtype=torch.float32) * scale
        probes = list(self._probes.values())
        found = torch.autograd.grad(scores, probes, allow_unused=True) if scores.requires_grad else [None] * len(probes)
        gradients = dict(zip(self._probes, found, strict=True))
        deaf = [name for name in self.modules if gradients.get(name) is None]
        if deaf:
            raise UnsuitableLayer(
                f"{', '.join(deaf)} does not influence the logits, or not in a way that autograd follows: choose "
                "another layer."
            )
        sums = {name: gradient.flatten(1).float() for name, gradient in gradients.items() if gradient is not None}
        self._warn_of_unread(sums)
        return sums

    def _warn_of_unread(self, sums: Mapping[str, Tensor]) -> None:
        """Say once where no patch token of the first images has a gradient."""
        new = [name for name in sums if self.layouts[name].prefix and name not in self._looked_at]
        self._looked_at.update(new)
        if silent := [name for name in new if not sums[name].any()]:
            log.warning(
                f"Nothing fires at {', '.join(silent)}: no patch token there has a gradient, as behind the last "
                "attention of a network that predicts from its class token. Read `last`, the normalisation before that "
                "attention."
            )

    def shapes(self, images: Tensor) -> dict[str, tuple[int, int, int]]:
        """(c, h, w) of every tap, by a pass without gradients."""
        try:
            with torch.no_grad():
                self._forward(images)
            return self._shapes
        finally:
            self._forget()

    def _forget(self) -> None:
        self._shapes, self._probes, self._maps = {}, {}, {}

    def _forward(self, images: Tensor) -> Any:
        self._forget()
        logits = self.net(images.detach().clone())
        silent = [name for name in self.modules if name not in self._shapes]
        if silent:
            raise UnsuitableLayer(
                f"No call of {', '.join(silent)} was seen in the forward pass, so it cannot be read: choose another "
                "layer, or call the module itself where the network calls its forward()."
            )
        if self.backward and (not isinstance(logits, Tensor) or logits.ndim != 2):
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise PurityError(f"The network must return logits (n, classes), but it returned {got}: tap a classifier.")
        return logits

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        layout = self.layouts[name]

        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            if name in self._shapes:
                raise UnsuitableLayer(f"{name} runs more than once per image: tap a module that runs once.")
            if not isinstance(output, Tensor) or not layout.fits(output.shape) or not output.is_floating_point():
                got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                raise UnsuitableLayer(
                    f"{name} gives no feature map with {layout} but {got}: choose another layer, or give its Layout."
                )
            maps = layout.maps(output.detach())
            channels, height, width = maps.shape[1:]
            self._shapes[name] = (channels, height, width)
            if not torch.is_grad_enabled():
                if not self.backward:
                    self._maps[name] = self.read_map(maps)
                return None
            self._maps[name] = self.read_map(maps)
            handed_on, self._probes[name] = layout.add_probe(output)
            return handed_on

        return hook


class _FrozenBatchNorm(TorchFunctionMode):
    """Batch normalisation with fixed statistics is an affine map per channel, and so is its gradient.

    Autograd's own backward keeps the input and also forms the gradients of weight and bias, frozen or not; on CPU it
    costs as much as the convolutions of a DenseNet.
    Of one image on a CPU it is also wrong where the map is contiguous and its gradient is not, as before the tokens of
    timm's lambda_resnet26t (PyTorch 2.14).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            bound = _bind_batch_norm(*args, **kwargs)
            if not bound[5] and bound[0].requires_grad:
                return _AffineBatchNorm.apply(*bound[:5], bound[6])
        return func(*args, **kwargs)


def _bind_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    return x, running_mean, running_var, weight, bias, training or running_mean is None, eps


class _AffineBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):  # type: ignore[no-untyped-def]
        scale = torch.rsqrt(var + eps)
        ctx.save_for_backward(scale if weight is None else scale * weight)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[no-untyped-def]
        (scale,) = ctx.saved_tensors
        shape = (1, -1) + (1,) * (gradient.ndim - 2)
        return gradient * scale.view(shape).to(gradient.dtype), None, None, None, None, None
