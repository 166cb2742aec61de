"""One cheap trial of a loaded network on images of the size that it will be given, before anything is counted.

It finds out how the network has to be run (memory format, one image at a time), where in its output the logits are, and
whether its values are an image's own. What is wrong becomes one sentence.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from purity_cli.errors import PurityError, said
from purity_cli.models.base import Network, output_shape, seeded
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
    module, notes = network.module, list(network.notes)
    images = _images(2, 3, size)
    with _as_found(module), seeded(seed), kept():
        if is_lazy(module):
            _complete(network, images[:1])
        memory_format, output, format_note = _first(network, images[:1])
        place, lacking = _find_logits(network, output)
        if place is not None:
            module.register_forward_hook(partial(_hand_on, place))
            notes.append(f"{network.name} gives {_kind(output)}, of which {_where(place)} is taken for the logits.")
        with torch.enable_grad():
            values, runs = _run(module, images[:1], memory_format)
        if scored and not lacking and getattr(module, "num_classes", None) != 0:
            _check_gradient(network, values, runs)
        values = values.detach() if isinstance(values, Tensor) else None
        both, problem = _two(module, images, memory_format, values)
        if problem:
            notes.append(f"{network.name} takes one image at a time ({problem}), so the batch size is 1.")
        elif scored and values is not None and both is not None and _differ(values, both):
            note = _depends(network, images, memory_format, batch_size)
            notes += [note] if note else []
    return replace(
        network,
        num_classes=None if lacking or values is None else values.shape[1],
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
    """Images in 0..1 of different brightness and contrast, so that one normalised beside the other shows it."""
    images = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))
    images[1:] = 0.6 + 0.3 * images[1:]
    return images


@contextmanager
def _as_found(module: nn.Module) -> Iterator[None]:
    """Eval mode within, and each part's own mode again afterwards."""
    with ExitStack() as stack:
        for part in module.modules():
            stack.callback(setattr, part, "training", part.training)
        module.eval()
        yield


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
    freeze(network.module)
    check_finite(network.module, network.name, network.weights)


def _first(network: Network, image: Tensor) -> tuple[torch.memory_format, Any, str | None]:
    """The memory format in which the network runs forward and backward, its output, and why it is not the first."""
    outcomes = []
    for memory_format in FORMATS:
        try:
            with torch.enable_grad():
                output, _ = _run(network.module, image, memory_format)
                broken = _backward_fails(output)
            outcomes.append((memory_format, output, broken))
            if not broken:
                break
        except Exception as error:
            if memory_format == FORMATS[-1] and not outcomes:
                raise _why(network, image, error) from error
            reason = said(error)
    memory_format, output, broken = next((each for each in outcomes if not each[2]), outcomes[0])
    if memory_format == FORMATS[0]:
        return memory_format, output, None
    return memory_format, output, outcomes[0][2] if len(outcomes) > 1 else reason


def _backward_fails(output: Any) -> str | None:
    tensors = [tensor for _, tensor in _tensors(output) if tensor.requires_grad]
    if not tensors:
        return None
    try:
        sum(tensor.sum() for tensor in tensors).backward()  # type: ignore[union-attr]
    except Exception as error:
        return said(error)
    return None


def _two(
    module: nn.Module, images: Tensor, memory_format: torch.memory_format, alone: Tensor | None
) -> tuple[Tensor | None, str]:
    """The values of two images, where one's `alone` are a tensor; and why the network takes only one at a time."""
    try:
        with torch.no_grad():
            values, _ = _run(module, images, memory_format)
    except Exception as error:
        return None, said(error)
    if alone is None:
        return None, ""
    if not isinstance(values, Tensor) or values.ndim != alone.ndim or len(values) != len(images):
        return None, f"{len(images)} give {_kind(values)}"
    return values, ""


# Where in an output the logits are: an index or a name at each step, and `None` for the (n, c, 1, 1) of a convolution.
Place = tuple[Any, ...]


def _tensors(output: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield place, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, (*place, key))
    elif isinstance(output, (tuple, list)):
        for i, value in enumerate(output):
            yield from _tensors(value, (*place, i))
    elif hasattr(output, "__dict__"):
        for key, value in vars(output).items():
            if isinstance(value, Tensor):
                yield from _tensors(value, (*place, key))


def _find_logits(network: Network, output: Any) -> tuple[Place | None, str | None]:
    """Where the logits (1, classes) of one image are in an output, if it isn't them itself; or why there are none."""
    if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point() and len(output) == 1:
        return None, None
    found = [place for place, tensor in _tensors(output) if tensor.ndim == 2 and len(tensor) == 1]
    named = [place for place in found if place[-1:] == ("logits",)] or (
        [("logits",)] if _is_logits(getattr(output, "logits", None)) else []
    )
    flat = [(*place, None) for place, t in _tensors(output) if t.ndim == 4 and len(t) == 1 and t.shape[2:] == (1, 1)]
    chosen = named or found or flat
    if len(chosen) == 1:
        return chosen[0], None
    if len(chosen) > 1:
        shown = " and ".join(_where(place) for place in chosen[:4])
        raise PurityError(
            f"{network.name} gives {_kind(output)}, and {shown} could each be the logits: have it return those alone."
        )
    hint = "return logits (n, classes)"
    if isinstance(output, Tensor) and output.ndim == 1:
        hint += ", and keep the batch's axis, e.g. by flatten(1) in place of squeeze()"
    elif any(tensor.ndim == 4 for _, tensor in _tensors(output)):
        hint += "; a network that gives a map, as for segmentation, needs a function of yours that averages it"
    return None, f"{network.name} gives {_kind(output)} for one image and no logits (n, classes): {hint}"


def _is_logits(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2


def _hand_on(place: Place, _module: nn.Module, _images: Any, output: Any) -> Any:
    """As a forward hook of the network: the logits in place of all that it gives."""
    for step in place:
        if step is None:
            output = output.flatten(1)
        elif isinstance(step, int) or isinstance(output, Mapping):
            output = output[step]
        else:
            output = getattr(output, step)
    return output


def _where(place: Place) -> str:
    return " ".join(
        "its average" if step is None and not place[:-1] else "" if step is None else f"[{step}]"
        if isinstance(step, int) else str(step) for step in place
    ).strip()  # fmt: skip


def _kind(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    if isinstance(output, (tuple, list)) and type(output) in (tuple, list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"


def _check_gradient(network: Network, logits: Tensor, runs: list[_Run]) -> None:
    last = runs[-1] if runs else None
    # Where only a part at its beginning is cut off, the layers behind that can be read.
    if logits.requires_grad or (last and last.with_gradient and not last.linked):
        return
    raise PurityError(
        f"The logits of {network.name} have no gradient, for its forward runs under torch.no_grad or "
        "torch.inference_mode or detaches them: purity needs gradients, so remove that."
    )


def _differ(alone: Tensor, beside: Tensor) -> bool:
    """Whether an image's logits alone and beside another differ by more than what rounding often makes."""
    scale, spread = float(beside.abs().max()), float((beside[0] - beside[1]).abs().max())
    return float((alone[0] - beside[0]).abs().max()) > 1e-5 * scale + 1e-3 * spread


def _depends(
    network: Network, images: Tensor, memory_format: torch.memory_format, batch_size: int | None
) -> str | None:
    """Whether an image's values change with those beside it, or from pass to pass, by more than rounding: then
    PurityError, or what to say where each image is scored alone."""
    again, beside = _compare(network.module, images, memory_format)
    if again is None and beside is None:
        return None
    try:  # rounding, in a network that makes much of it, is gone in double precision
        exact: nn.Module = copy.deepcopy(network.module).double()
        again, beside = _compare(exact, images.double(), memory_format)
    except Exception:  # it cannot be copied, or insists on float32
        pass
    if again is not None:
        raise PurityError(
            f"{network.name} gives an image other values in each pass, whatever the batch, from {again} on: chance "
            "is at work in eval mode, such as dropout with training=True, and has to be switched off there."
        )
    if beside is None:
        return None
    text = f"The values of {network.name} depend on the batch: from {beside} on, an image's change with those beside it"
    if batch_size == 1:
        return f"{text}; with a batch size of 1 each is taken alone."
    raise PurityError(f"{text}. Give it running statistics, or take each image alone with --batch-size 1.")


def _compare(module: nn.Module, images: Tensor, memory_format: torch.memory_format) -> list[str | None]:
    """Where the values of the first image begin to differ from those it has alone: alone again, and beside another."""
    module.to(memory_format=memory_format)
    reference, again, beside = (
        _outputs(module, batch.contiguous(memory_format=memory_format)) for batch in (images[:1], images[:1], images)
    )
    return [_first_other(module, reference, each) for each in (again, beside)]


def _outputs(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What the innermost modules and the network itself, as `""`, give the first image."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, part in module.named_modules():
            if name and not any(True for _ in part.children()):
                stack.callback(part.register_forward_hook(partial(_keep_first, seen, name)).remove)
        seen[""] = module(images)[0]
    return {**{name: value for name, value in seen.items() if name}, "": seen[""]}


def _first_other(module: nn.Module, reference: dict[str, Tensor], values: dict[str, Tensor]) -> str | None:
    for name, value in values.items():
        other = reference.get(name)
        if other is None or other.shape != value.shape:
            continue  # the batch is not its first axis
        if float((value - other).abs().max()) > 1e-3 * float(other.abs().max()):
            return _described(module, name)
    return None


def _keep_first(seen: dict[str, Tensor], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.ndim and name not in seen:
        seen[name] = output[0].clone()


def _described(module: nn.Module, name: str) -> str:
    if not name:
        return "its output"
    part = module.get_submodule(name)
    about = ""
    if isinstance(part, _BatchNorm):
        about = ", without running statistics" if part.running_mean is None else ", in training mode"
    return f"{name} ({type(part).__name__}{about if about.endswith('statistics') or part.training else ''})"


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

    channels = _channels(network.module)
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


def _channels(module: nn.Module) -> int | None:
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d))
    return next((part.in_channels for part in convolutions), None)
