"""Feature purity written out from SPEC alone: numpy, one image and one layer at a time, no engine, no taps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

IN_PLACE = {
    Tensor.__iadd__: Tensor.__add__,
    Tensor.__imul__: Tensor.__mul__,
    Tensor.add_: Tensor.add,
    Tensor.mul_: Tensor.mul,
    torch.relu_: torch.relu,
}


class OutOfPlace(TorchFunctionMode):
    """Runs a network without its in-place ops, by calling each one's out-of-place twin."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.relu, F.relu6, F.hardtanh, F.silu, F.leaky_relu, F.dropout):
            kwargs = {**kwargs, "inplace": False}
            if func is F.relu:
                args = args[:1]
        return IN_PLACE.get(func, func)(*args, **kwargs)


@contextmanager
def inputs_of(net: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collects the layer's output in a list, with its gradient retained."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = dict(net.named_modules())[layer].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def map_and_gradient(net: nn.Module, image: Tensor, layer: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """B and dy_m / dB, each (c, h, w), of one image (1, 3, h, w)."""
    image = image.clone().requires_grad_()
    with OutOfPlace(), inputs_of(net, layer) as seen:
        logits = net(image)
        logits[0, int(logits[0].argmax())].backward()
    (output,) = seen
    assert output.grad is not None
    return output.detach().numpy()[0], output.grad.numpy()[0]


def mass(feature_map: NDArray[Any], gradient: NDArray[Any]) -> NDArray[Any]:
    """Steps 2 to 5: M (c,) of one image, in the order in which SPEC states them."""
    masses = []
    for b, g in zip(feature_map.astype(np.float64), gradient.astype(np.float64), strict=True):
        beta = g.mean()
        weighted = np.maximum(beta * b, 0)
        if weighted.max() > 0:
            weighted = weighted / weighted.max()
        masses.append(weighted.mean())
    return np.array(masses)


def counts(net: nn.Module, images: Tensor, layer: str, thresholds: list[float]) -> NDArray[np.int64]:
    """(T, c) firings over images (n, 3, h, w)."""
    masses = np.stack([mass(*map_and_gradient(net, image[None], layer)) for image in images])
    return np.stack([(masses > t).sum(0) for t in thresholds])


def purity(count: NDArray[Any]) -> float:
    """F of counts (c,): Eqs. 4 and 5."""
    total = count.sum()
    if total == 0 or len(count) == 1:
        return float("nan")
    entropy = 0.0
    for k in count:
        if k > 0:
            entropy -= k / total * np.log2(k / total)
    return float(entropy / np.log2(len(count)))
