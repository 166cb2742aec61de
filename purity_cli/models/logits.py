"""Where in what a network gives the logits are, and a hook that hands on those alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from purity_cli.errors import PurityError

# Where in an output the logits are: an index or a name at each step, and `None` for the (n, c, 1, 1) of a convolution.
Place = tuple[Any, ...]


def tensors(output: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """The floating-point tensors in an output, with their places."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield place, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors(value, (*place, key))
    elif isinstance(output, (tuple, list)):
        for i, value in enumerate(output):
            yield from tensors(value, (*place, i))
    elif hasattr(output, "__dict__"):
        for key, value in vars(output).items():
            if isinstance(value, Tensor):
                yield from tensors(value, (*place, key))


def find(name: str, output: Any) -> tuple[Place | None, str | None]:
    """Where the logits (1, classes) of one image are in an output, if it isn't them itself; or why there are none."""
    if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point() and len(output) == 1:
        return None, None
    found = [place for place, tensor in tensors(output) if tensor.ndim == 2 and len(tensor) == 1]
    named = [place for place in found if place[-1:] == ("logits",)]
    if not named and isinstance(own := getattr(output, "logits", None), Tensor) and own.ndim == 2:
        named = [("logits",)]
    flat = [(*place, None) for place, t in tensors(output) if t.ndim == 4 and len(t) == 1 and t.shape[2:] == (1, 1)]
    chosen = named or found or flat
    if len(chosen) == 1:
        return chosen[0], None
    if len(chosen) > 1:
        shown = " and ".join(where(place) for place in chosen[:4])
        raise PurityError(
            f"{name} gives {kind(output)}, and {shown} could each be the logits: have it return those alone."
        )
    hint = "return logits (n, classes)"
    if isinstance(output, Tensor) and output.ndim == 1:
        hint += ", and keep the batch's axis, e.g. by flatten(1) in place of squeeze()"
    elif any(tensor.ndim == 4 for _, tensor in tensors(output)):
        hint += "; a network that gives a map, as for segmentation, needs a function of yours that averages it"
    return None, f"{name} gives {kind(output)} for one image and no logits (n, classes): {hint}"


def hand_on(place: Place, _module: nn.Module, _images: Any, output: Any) -> Any:
    """As a forward hook of the network: the logits in place of all that it gives."""
    for step in place:
        if step is None:
            output = output.flatten(1)
        elif isinstance(step, int) or isinstance(output, Mapping):
            output = output[step]
        else:
            output = getattr(output, step)
    return output


def where(place: Place) -> str:
    """A place in words: `logits`, `head [0]`."""
    steps = [f"[{step}]" if isinstance(step, int) else str(step) for step in place if step is not None]
    return " ".join(steps) or "its only value a class"


def kind(output: Any) -> str:
    """What an output is, in words."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    if isinstance(output, (tuple, list)) and type(output) in (tuple, list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
