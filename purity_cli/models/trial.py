"""One cheap trial of a loaded network on images of the size that it will be given, before anything is counted.

It finds out how the network has to be run (memory format, one image at a time), where in its output the logits are, and
whether its values are an image's own. What is wrong becomes one sentence.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from purity_cli.errors import PurityError, no_memory, said
from purity_cli.models import logits as logits_in
from purity_cli.models.base import Network, check_finite, freeze, is_lazy, output_shape, seeded
from purity_cli.models.from_file import USUAL_SIZES
from purity_cli.models.identity import digest_of_outputs
from purity_cli.plan import Size
from purity_cli.recomputing import without_activation_checkpointing

FORMATS = (torch.channels_last, torch.contiguous_format)
PASSES = 30
"""Of one image through a network that draws random numbers: what is left to chance may come up in few of them."""


def tried(
    network: Network, size: Size, *, batch_size: int | None = None, scored: bool = True, seed: int = 0
) -> Network:
    """`network`, ready to run on images of `size` (h, w): complete, giving logits (n, classes), in the memory format
    that it bears, with what has to be said of it in its `notes`. Where it gives none, `without_logits` says what.

    Where it is to be `scored`, an image's values must be its own: PurityError where they depend on the batch, unless
    `batch_size` is 1, on chance, or can have no gradient. PurityError for all that keeps it from running.
    """
    with seeded(seed), without_activation_checkpointing():
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
    memory_format, values, cut, format_note = _first(network, image)
    place, lacking = logits_in.find(network.name, values)
    predicts = lacking is None and getattr(module, "num_classes", None) != 0
    if place is not None:
        module.register_forward_hook(partial(logits_in.hand_on, place))
        given, part = logits_in.kind(values), logits_in.where(place)
        notes.append(f"{network.name} gives {given}, of which {part} is taken for the logits.")
        values = logits_in.hand_on(place, module, None, values)
    if scored and predicts:
        _check_gradient(network, values, cut)
    alone = values.detach() if isinstance(values, Tensor) else None  # what gives no tensor is not compared
    before = _drawn()
    beside, problem = _several(module, images, memory_format) if alone is not None else (None, None)
    passes = 1 if _drawn() == before else PASSES
    if scored and predicts:
        notes += _no_logits(network.name, values if beside is None else beside)
    if problem:
        notes.append(f"{network.name} takes one image at a time ({problem}), so the batch size is 1.")
    elif scored and alone is not None and beside is not None and (passes > 1 or _differ(alone, beside)):
        note = _depends(module, network.name, images, memory_format, batch_size, passes)
        notes += [note] if note else []
    return replace(
        network,
        num_classes=values.shape[1] if predicts else 0,
        without_logits=lacking,
        memory_format=memory_format,
        format_note=format_note,
        largest_batch=1 if problem else None,
        notes=tuple(notes),
        outputs=digest_of_outputs(module, image),
    )


def failed(network: Network, error: Exception) -> PurityError:
    """The sentence for what a network raised while it ran on images; to be raised from `error`."""
    return PurityError(f"{network.name} failed as it ran ({said(error)}): --debug shows where.")


def _images(n: int, channels: int, size: Size) -> Tensor:
    """Images in 0..1 of different brightness and contrast, so that one normalised beside others shows it."""
    images = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))
    images[::2] = 0.6 + 0.3 * images[::2]
    return images


def _run(module: nn.Module, image: Tensor, memory_format: torch.memory_format) -> tuple[Any, list[bool]]:
    """The network's output, and of each innermost module that ran, in their order, whether what it gave is cut off:
    autograd was at work, and does not link it to the image."""
    module.to(memory_format=memory_format)
    cut: list[bool] = []

    def look(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        linked = isinstance(output, Tensor) and output.requires_grad
        cut.append(torch.is_grad_enabled() and not linked)

    with _innermost(module, look):
        leaf = image.contiguous(memory_format=memory_format).clone().requires_grad_()
        return module(leaf.clone()), cut


@contextmanager
def _innermost(module: nn.Module, hook: Callable[[str, nn.Module, Any, Any], None]) -> Iterator[None]:
    """Have `hook` called whenever a module without others in it has run, with its path before what a hook is given."""
    with ExitStack() as stack:
        for name, part in module.named_modules():
            if not list(part.children()):
                stack.callback(part.register_forward_hook(partial(hook, name)).remove)
        yield


def _complete(network: Network, image: Tensor) -> None:
    """Have lazy modules take the shapes that one image gives them."""
    try:
        with torch.no_grad():
            network.module(image)
    except Exception as error:
        raise _why(network, image, error) from error
    freeze(network.module, network.name)
    check_finite(network.module, network.name, network.weights)


def _first(network: Network, image: Tensor) -> tuple[torch.memory_format, Any, list[bool], str | None]:
    """The memory format in which the network runs forward and backward, what `_run` gives, and why the format is not
    the first one."""
    reason: str | None = None
    broken: list[tuple[torch.memory_format, Any, list[bool], str | None]] = []
    for memory_format in FORMATS:
        try:
            with torch.enable_grad():
                output, cut = _run(network.module, image, memory_format)
                failure = _backward_fails(output)
        except Exception as error:
            if no_memory(error):
                raise
            if memory_format == FORMATS[-1] and not broken:
                raise _why(network, image, error) from error
            failure = said(error)
        else:
            if failure is None:
                return memory_format, output, cut, reason
            broken.append((memory_format, output, cut, reason))
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
        module.to(memory_format=memory_format)
        with torch.no_grad():
            values = module(images.contiguous(memory_format=memory_format).clone())
    except Exception as error:
        return None, said(error)
    if not isinstance(values, Tensor) or values.ndim < 2 or len(values) != len(images):
        return None, f"{len(images)} give {logits_in.kind(values)}"
    return values, None


def _drawn() -> tuple[Any, ...]:
    """Where the generators of random numbers stand, which moves as one is drawn."""
    _, keys, place, *_ = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), bytes(keys), place  # type: ignore[arg-type]


def _no_logits(name: str, values: Tensor) -> list[str]:
    """What has to be said of values (n, classes) that stand for logits and are others."""
    values = values.detach().double()
    if values.shape[1] == 1:
        return [
            f"{name} gives one value, which is taken for the logit of the predicted class even where it is negative: "
            "if it decides between two classes, have it return torch.cat([-y, y], 1) in place of y."
        ]
    for what, before, shares in (
        ("probabilities", "softmax", values),
        ("logarithms of probabilities", "log_softmax", values.exp()),
    ):
        if bool((shares >= 0).all() and (shares <= 1).all() and ((shares.sum(1) - 1).abs() < 1e-3).all()):
            return [
                f"{name} gives {what} in place of logits, and these have other gradients and another purity: have it "
                f"return what goes into the {before}."
            ]
    return []


def _check_gradient(network: Network, logits: Tensor, cut: list[bool]) -> None:
    # Where only a part at its beginning is cut off, the layers behind that can be read.
    if logits.requires_grad or cut[-1:] == [True]:
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


def _differ(alone: Tensor, beside: Tensor) -> bool:
    """Whether an image's logits alone and as the second of several differ by more than what rounding often makes."""
    scale, spread = float(beside.abs().max()), float((beside[0] - beside[1]).abs().max())
    return float((alone[0] - beside[1]).abs().max()) > 1e-5 * scale + 1e-3 * spread


def _depends(
    module: nn.Module,
    name: str,
    images: Tensor,
    memory_format: torch.memory_format,
    batch_size: int | None,
    passes: int,
) -> str | None:
    """Whether the second image's values change with those beside it, or from pass to pass, by more than rounding: then
    PurityError, or what to say where each image is scored alone."""
    again, beside = _compare(module, images, memory_format, passes)
    if again is None and beside is None:
        return None
    try:  # rounding, in a network that makes much of it, is gone in double precision
        exact: nn.Module = copy.deepcopy(module).double()
        again, beside = _compare(exact, images.double(), memory_format, passes)
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


def _compare(
    module: nn.Module, images: Tensor, memory_format: torch.memory_format, passes: int
) -> tuple[str | None, str | None]:
    """Where the values of the second image begin to differ from those it has alone: alone in as many further passes,
    and beside others."""
    module.to(memory_format=memory_format)
    alone, together = (batch.contiguous(memory_format=memory_format) for batch in (images[1:2], images))
    reference = _outputs(module, alone, 0)
    others = (_first_other(module, reference, _outputs(module, alone, 0)) for _ in range(passes))
    again = next((other for other in others if other), None)
    return again, _first_other(module, reference, _outputs(module, together, 1))


def _outputs(module: nn.Module, images: Tensor, place: int) -> dict[str, Tensor]:
    """What the innermost modules and the network itself, as `""`, give the image in this place."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim and name not in seen and len(output) > place:
            seen[name] = output[place].clone()

    with torch.no_grad(), _innermost(module, keep):
        seen[""] = module(images)[place]
    return seen


def _first_other(module: nn.Module, reference: dict[str, Tensor], values: dict[str, Tensor]) -> str | None:
    for name, value in values.items():
        other = reference.get(name)
        if other is None or other.shape != value.shape:
            continue  # the batch is not its first axis
        if float((value - other).abs().max()) > 1e-3 * float(other.abs().max()):
            return _described(module, name)
    return None


def _described(module: nn.Module, name: str) -> str:
    if not name:
        return "its output"
    part = module.get_submodule(name)
    about = ""
    if isinstance(part, _BatchNorm) and part.running_mean is None:
        about = ", without running statistics"
    elif isinstance(part, _BatchNorm) and part.training:
        about = ", in training mode"
    return f"{name} ({type(part).__name__}{about})"
