"""One cheap trial of a loaded network on images of the size that it will be given, before anything is counted.

It finds out how the network has to be run (memory format, one image at a time), where in its output the logits are, and
whether its values are an image's own. What is wrong becomes one sentence.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from purity_cli.errors import PurityError, no_memory, said
from purity_cli.models import logits as logits_in
from purity_cli.models.base import Network, output_shape, seeded
from purity_cli.models.dependence import depends, differ
from purity_cli.models.from_file import USUAL_SIZES
from purity_cli.models.whole import check_finite, freeze, is_lazy
from purity_cli.plan import Size
from purity_cli.recomputing import kept

FORMATS = (torch.channels_last, torch.contiguous_format)


def tried(
    network: Network, size: Size, *, batch_size: int | None = None, scored: bool = True, seed: int = 0
) -> Network:
    """`network`, ready to run on images of `size` (h, w): complete, giving logits (n, classes), in the memory format
    that it bears, with what has to be said of it in its `notes`. Where it gives none, `without_logits` says what.

    Where it is to be `scored`, an image's values must be its own: PurityError where they depend on the batch, unless
    `batch_size` is 1, on chance, or can have no gradient. PurityError for all that keeps it from running.
    """
    with seeded(seed), kept():
        try:
            return _try(network, _images(3, 3, size), batch_size, scored)
        except PurityError:
            raise
        except Exception as error:  # whatever a network's own code may raise, not in each pass
            if no_memory(error):
                raise
            raise failed(network, error) from error


def _try(network: Network, images: Tensor, batch_size: int | None, scored: bool) -> Network:
    # The one in the middle, since a network may favour the first or the last of a batch.
    module, notes, image = network.module, list(network.notes), images[1:2]
    if is_lazy(module):
        _complete(network, image)
    memory_format, values, runs, format_note = _first(network, image)
    place, lacking = logits_in.find(network.name, values)
    predicts = lacking is None and getattr(module, "num_classes", None) != 0
    if place is not None:
        module.register_forward_hook(partial(logits_in.hand_on, place))
        given, part = logits_in.kind(values), logits_in.where(place)
        notes.append(f"{network.name} gives {given}, of which {part} is taken for the logits.")
        values = logits_in.hand_on(place, module, None, values)
    if scored and predicts:
        _check_gradient(network, values, runs)
    alone = values.detach() if isinstance(values, Tensor) else None  # what gives no tensor is not compared
    beside, problem = _several(module, images, memory_format) if alone is not None else (None, None)
    if problem:
        notes.append(f"{network.name} takes one image at a time ({problem}), so the batch size is 1.")
    elif scored and alone is not None and beside is not None and differ(alone, beside):
        note = depends(module, network.name, images, memory_format, batch_size)
        notes += [note] if note else []
    return replace(
        network,
        num_classes=values.shape[1] if predicts else 0,
        without_logits=lacking,
        memory_format=memory_format,
        format_note=format_note,
        largest_batch=1 if problem else None,
        notes=tuple(notes),
    )


def failed(network: Network, error: Exception) -> PurityError:
    """The sentence for what a network raised while it ran on images; to be raised from `error`."""
    return PurityError(f"{network.name} failed as it ran ({said(error)}): --debug shows where.")


def _images(n: int, channels: int, size: Size) -> Tensor:
    """Images in 0..1 of different brightness and contrast, so that one normalised beside others shows it."""
    images = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))
    images[::2] = 0.6 + 0.3 * images[::2]
    return images


def _run(module: nn.Module, images: Tensor, memory_format: torch.memory_format) -> tuple[Any, list[_Run]]:
    """The network's output, and the innermost modules that ran, in their order."""
    module.to(memory_format=memory_format)
    runs: list[_Run] = []
    with ExitStack() as stack:
        for name, part in module.named_modules():
            if not any(True for _ in part.children()):
                stack.callback(part.register_forward_hook(partial(_record, runs, name)).remove)
        leaf = images.contiguous(memory_format=memory_format)
        if torch.is_grad_enabled():
            leaf = leaf.clone().requires_grad_()
        return module(leaf.clone()), runs


@dataclass(frozen=True)
class _Run:
    name: str
    module: nn.Module
    with_gradient: bool
    """Whether autograd was at work."""
    linked: bool
    """Whether autograd links the output to the image."""


def _record(runs: list[_Run], name: str, module: nn.Module, _: Any, output: Any) -> None:
    linked = isinstance(output, Tensor) and output.requires_grad
    runs.append(_Run(name, module, torch.is_grad_enabled(), linked))


def _complete(network: Network, image: Tensor) -> None:
    """Have lazy modules take the shapes that one image gives them."""
    try:
        with torch.no_grad():
            network.module(image)
    except Exception as error:
        raise _why(network, image, error) from error
    freeze(network.module, network.name)
    check_finite(network.module, network.name, network.weights)


def _first(network: Network, image: Tensor) -> tuple[torch.memory_format, Any, list[_Run], str | None]:
    """The memory format in which the network runs forward and backward, its output, what ran, and why the format is not
    the first one."""
    reason: str | None = None
    broken: list[tuple[torch.memory_format, Any, list[_Run], str | None]] = []
    for memory_format in FORMATS:
        try:
            with torch.enable_grad():
                output, runs = _run(network.module, image, memory_format)
                failure = _backward_fails(output)
        except Exception as error:
            if no_memory(error):
                raise
            if memory_format == FORMATS[-1] and not broken:
                raise _why(network, image, error) from error
            failure = said(error)
        else:
            if failure is None:
                return memory_format, output, runs, reason
            broken.append((memory_format, output, runs, reason))
        reason = reason or failure
    return broken[0]


def _backward_fails(output: Any) -> str | None:
    tensors = [tensor for _, tensor in logits_in.tensors(output) if tensor.requires_grad]
    if not tensors:
        return None
    try:
        sum(tensor.sum() for tensor in tensors).backward()  # type: ignore[union-attr]
    except Exception as error:
        return said(error)
    return None


def _several(module: nn.Module, images: Tensor, memory_format: torch.memory_format) -> tuple[Tensor | None, str | None]:
    """What several images give; None, and why, where the network takes only one at a time."""
    try:
        with torch.no_grad():
            values, _ = _run(module, images, memory_format)
    except Exception as error:
        return None, said(error)
    if not isinstance(values, Tensor) or values.ndim < 2 or len(values) != len(images):
        return None, f"{len(images)} give {logits_in.kind(values)}"
    return values, None


def _check_gradient(network: Network, logits: Tensor, runs: list[_Run]) -> None:
    last = runs[-1] if runs else None
    # Where only a part at its beginning is cut off, the layers behind that can be read.
    if logits.requires_grad or (last and last.with_gradient and not last.linked):
        return
    raise PurityError(
        f"The logits of {network.name} have no gradient, for its forward runs under torch.no_grad or "
        "torch.inference_mode or detaches them: purity needs gradients, so remove that."
    )


def _why(network: Network, image: Tensor, error: Exception) -> PurityError:
    """What keeps a network from running on an image, as far as other images show it, and the way out."""
    size: Size = (image.shape[-2], image.shape[-1])

    def runs(images: Tensor) -> bool:
        try:
            with torch.no_grad():
                network.module(images)
        except Exception:
            return False
        return True

    convolutions = (part for part in network.module.modules() if isinstance(part, nn.Conv2d))
    channels = next((part.in_channels for part in convolutions), None)
    if channels not in (None, 3) and runs(_images(2, channels or 1, size)[:1]):
        plural = "channel" if channels == 1 else "channels"
        return PurityError(
            f"{network.name} takes images of {channels} {plural}, and purity gives it 3, red, green and blue: give a "
            "function whose network takes these, e.g. with a layer before it that makes one of the other."
        )
    if runs(_images(2, 3, size)):
        return PurityError(
            f"{network.name} runs on two images and not on one ({said(error)}): keep the batch's axis, e.g. by "
            "flatten(1) in place of squeeze()."
        )
    text = f"{network.name} does not run on an image of {size[0]}x{size[1]} ({said(error)})"
    other = next((s for s in USUAL_SIZES if (s, s) != size and output_shape(network.module, (s, s)) is not None), None)
    if other:
        return PurityError(f"{text}, but on one of {other}x{other}: give --resize {other} --crop {other}.")
    return PurityError(f"{text}: --debug shows where.")
