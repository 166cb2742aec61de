"""What a network must give to be scored, tried on images of the size that it will be given, before anything is counted.

The contract (docs/python.md): RGB of the given size goes in, one row of logits per image comes out, the same whatever
the other images and whatever chance. The trial also finds out how the network runs: memory format, one image at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purity_cli.errors import PurityError, no_memory, said
from purity_cli.machine import float32_of
from purity_cli.models.base import Network, check_finite, freeze, is_lazy, seeded
from purity_cli.models.identity import digest_of_outputs, in_double
from purity_cli.plan import Size
from purity_cli.recomputing import without_activation_checkpointing

USUAL_SIZES = (224, 32, 64, 28, 96, 299, 384)
"""Of images, tried in this order where a network does not say what it takes."""
FORMATS = (torch.channels_last, torch.contiguous_format)
PASSES = 30
"""Of one image through a network that draws random numbers: what is left to chance may come up in few of them."""
COMPARED = 16
"""Images of a block that are compared with what they give alone."""


def validate(
    network: Network, size: Size, *, batch_size: int | None = None, scored: bool = True, seed: int = 0
) -> Network:
    """`network`, ready to run on images of `size` (h, w): complete, giving logits (n, classes), in the memory format
    that it bears, with what has to be said of it in its `notes`. Where it gives none, `without_logits` says what.

    Where it is to be `scored`, an image's values must be its own: PurityError where they depend on the batch, unless
    `batch_size` is 1, on chance, or can have no gradient. PurityError for all that keeps it from running.
    """
    with seeded(seed), without_activation_checkpointing():
        try:
            return _validated(network, _images(3, 3, size), batch_size, scored)
        except PurityError:
            raise
        except Exception as error:  # whatever a network's own code may raise, not in each pass
            if no_memory(error):
                raise
            raise failed(network, error) from error


def failed(network: Network, error: Exception) -> PurityError:
    """The sentence for what a network raised while it ran on images; to be raised from `error`."""
    return PurityError(f"{network.name} failed as it ran ({said(error)}): --debug shows where.")


def check_independent(network: Network, images: Tensor) -> None:
    """PurityError where some of these images (n, 3, h, w) give other values together than alone.

    The noise of the trial does not reach every branch of a network's code: real images may. Those that are most unlike
    the others are compared: the darkest, the brightest, the least and the most certain.
    """
    images = images[:COMPARED]
    if len(images) < 2 or network.largest_batch == 1:
        return
    try:
        with without_activation_checkpointing(), torch.no_grad(), float32_of("fp32"):
            depends = _some_depend(network.module, images)
    except Exception as error:
        if no_memory(error):  # the engine goes on with fewer images at a time
            return
        raise failed(network, error) from error
    if depends:
        raise PurityError(_dependent(network.name))


def _some_depend(module: nn.Module, images: Tensor) -> bool:
    together = module(images.clone())
    if not isinstance(together, Tensor) or len(together) != len(images):
        return False
    light, certain = images.flatten(1).mean(1), together.flatten(1).softmax(1).amax(1)
    rows = sorted({int(row) for value in (light, certain) for row in (value.argmin(), value.argmax())})
    alone = torch.cat([module(images[row : row + 1].clone()) for row in rows])
    return _differ(alone, together[rows], together) and _depends(module, images, rows)


def _validated(network: Network, images: Tensor, batch_size: int | None, scored: bool) -> Network:
    # The one in the middle, since a network may favour the first or the last of a batch.
    module, notes, image = network.module, list(network.notes), images[1:2]
    if is_lazy(module):
        _complete(network, image)
    memory_format, output, format_note = _first(network, image)
    images, image = (batch.contiguous(memory_format=memory_format) for batch in (images, image))
    place, lacking = _find_logits(network.name, output)
    predicts = lacking is None and getattr(module, "num_classes", None) != 0
    if place is not None:
        module.register_forward_hook(partial(_hand_on, place))
        shown = f"[{place}]" if isinstance(place, int) else place
        notes.append(f"{network.name} gives {_kind(output)}, of which {shown} is taken for the logits.")
        output = _hand_on(place, module, None, output)
    if scored and predicts and not output.requires_grad:
        raise PurityError(
            f"The logits of {network.name} have no gradient, because its forward runs under torch.no_grad or "
            "torch.inference_mode or detaches them: purity needs gradients, so remove that."
        )
    together, problem = None, None
    before = _drawn()
    if isinstance(output, Tensor):  # what gives no tensor is not compared
        together, problem = _several(module, images)
    chance = _drawn() != before
    if scored and predicts:
        notes += _no_logits(network.name, output if together is None else together)
    if problem:
        notes.append(f"{network.name} takes one image at a time ({problem}), so the batch size is 1.")
    elif scored and together is not None:
        notes += _check_own_values(network.name, module, images, output.detach(), together, batch_size, chance)
    return replace(
        network,
        num_classes=output.shape[1] if predicts else 0,
        without_logits=lacking,
        memory_format=memory_format,
        format_note=format_note,
        largest_batch=1 if problem else None,
        notes=tuple(notes),
        outputs=digest_of_outputs(module, image),
    )


def _images(n: int, channels: int, size: Size) -> Tensor:
    """Images in 0..1 of different brightness and contrast, so that one normalised beside others shows it."""
    images = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))
    images[::2] = 0.6 + 0.3 * images[::2]
    return images


def _complete(network: Network, image: Tensor) -> None:
    """Have lazy modules take the shapes that one image gives them."""
    try:
        with torch.no_grad():
            network.module(image.clone())
    except Exception as error:
        raise _why(network, image, error) from error
    freeze(network.module, network.name)
    check_finite(network.module, network.name, network.weights)


def _first(network: Network, image: Tensor) -> tuple[torch.memory_format, Any, str | None]:
    """The memory format in which the network runs forward and backward, what it gives, and why the format is not the
    first one."""
    because: str | None = None
    runs: tuple[torch.memory_format, Any, str | None] | None = None
    for memory_format in FORMATS:
        try:
            output, reason = _run(network.module, image, memory_format)
        except Exception as error:
            if no_memory(error):
                raise
            if memory_format == FORMATS[-1] and runs is None:
                raise _why(network, image, error) from error
            reason = said(error)
        else:
            if reason is None:
                return memory_format, output, because
            runs = runs or (memory_format, output, because)
        because = because or reason
    assert runs is not None
    network.module.to(memory_format=runs[0])
    return runs


def _run(module: nn.Module, image: Tensor, memory_format: torch.memory_format) -> tuple[Any, str | None]:
    """The network's output, and why autograd does not go back from it to the image; None where it does.

    Parameters take part in autograd, so that an output without a gradient is one that no layer can have.
    """
    module.to(memory_format=memory_format)
    floats = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    try:
        for parameter in floats:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            leaf = image.contiguous(memory_format=memory_format).clone().requires_grad_()
            output = module(leaf.clone())
    finally:
        for parameter in floats:
            parameter.requires_grad_(False)
    parts = [part for part in (output, *_parts(output).values()) if isinstance(part, Tensor) and part.requires_grad]
    try:
        if parts:
            torch.autograd.grad(parts, leaf, [torch.ones_like(part) for part in parts], allow_unused=True)
    except Exception as error:
        if no_memory(error):
            raise
        return output, said(error)
    return output, None


def _parts(output: Any) -> dict[Any, Any]:
    """What an output holds, by index or name."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    return {"logits": getattr(output, "logits", None)}


def _find_logits(name: str, output: Any) -> tuple[Any, str | None]:
    """Where the logits (1, classes) of one image are in an output, if it isn't them itself; or why there are none."""

    def is_row(part: Any) -> bool:
        return isinstance(part, Tensor) and part.ndim == 2 and part.is_floating_point() and len(part) == 1

    if is_row(output):
        return None, None
    found = [place for place, part in _parts(output).items() if is_row(part)]
    found = ["logits"] if "logits" in found else found
    if len(found) == 1:
        return found[0], None
    if found:
        raise PurityError(
            f"{name} gives {_kind(output)}, and {' and '.join(map(str, found[:4]))} could each be the logits: have it "
            "return those alone."
        )
    return None, (
        f"{name} gives {_kind(output)} for one image and no logits: return a row of them for each image, (n, classes), "
        "e.g. by flatten(1) or by the mean over a map"
    )


def _hand_on(place: Any, _module: nn.Module, _images: Any, output: Any) -> Any:
    """As a forward hook of the network: the logits in place of all that it gives."""
    return _parts(output)[place]


def _kind(output: Any) -> str:
    """What an output is, in words."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    return f"a {type(output).__name__}"


def _several(module: nn.Module, images: Tensor) -> tuple[Tensor | None, str | None]:
    """What several images give; None, and why, where the network takes only one at a time."""
    try:
        with torch.no_grad():
            values = module(images.clone())
    except Exception as error:
        if no_memory(error):
            raise
        return None, said(error)
    if not isinstance(values, Tensor) or values.ndim < 2 or len(values) != len(images):
        return None, f"{len(images)} give {_kind(values)}"
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


def _check_own_values(
    name: str, module: nn.Module, images: Tensor, alone: Tensor, together: Tensor, batch_size: int | None, chance: bool
) -> list[str]:
    """PurityError where the second image's values change from pass to pass, or with those beside it; a note on the
    latter where each image is scored alone."""
    differ = _differ(alone, together[1:2], together)
    with torch.no_grad():
        for _ in range(PASSES if chance else 1 if differ else 0):
            if _differ(module(images[1:2].clone()), alone, together):
                raise PurityError(
                    f"{name} gives an image other values in each pass, whatever the batch: chance is at work in eval "
                    "mode, such as dropout with training=True, and has to be switched off there."
                )
    if not differ or not _depends(module, images, [1]):
        return []
    if batch_size == 1:
        return [f"The values of {name} depend on the batch; with a batch size of 1 each image is taken alone."]
    raise PurityError(_dependent(name))


def _dependent(name: str) -> str:
    return (
        f"The values of {name} depend on the batch: an image's change with those beside it. Give its normalisation "
        "running statistics, let no branch depend on the batch, or take each image alone with --batch-size 1."
    )


def _differ(some: Tensor, others: Tensor, of: Tensor, rounding: float = 1e-5, share: float = 1e-3) -> bool:
    """Whether values of the same images differ by more than rounding and than a share of what lies between images."""
    scale, spread = float(of.abs().max()), float((of - of[:1]).abs().max())
    return float((some - others).abs().max()) > rounding * scale + share * spread


def _depends(module: nn.Module, images: Tensor, rows: list[int]) -> bool:
    """`_differ` of these images alone and together, in double precision: rounding, in a network that makes much of it,
    is gone there."""

    def differ(run: Callable[[Tensor], Tensor], rounding: float, share: float) -> bool:
        together = run(images.clone())
        alone = torch.cat([run(images[row : row + 1].clone()) for row in rows])
        return _differ(alone, together[rows], together, rounding, share)

    with torch.no_grad():
        try:
            return differ(in_double(module), 1e-10, 1e-3)
        except Exception as error:  # it insists on float32
            if no_memory(error):
                raise
        return differ(module, 1e-3, 1e-2)


def _why(network: Network, image: Tensor, error: Exception) -> PurityError:
    """What keeps a network from running on an image, as far as other images show it, and the way out."""
    size: Size = (image.shape[-2], image.shape[-1])

    def runs(n: int, channels: int, size: Size) -> bool:
        try:
            with torch.no_grad():
                network.module(_images(n, channels, size))
        except Exception:
            return False
        return True

    convolutions = (part for part in network.module.modules() if isinstance(part, nn.Conv2d))
    channels = next((part.in_channels for part in convolutions), 3)
    if channels != 3 and runs(1, channels, size):
        plural = "channel" if channels == 1 else "channels"
        return PurityError(
            f"{network.name} takes images of {channels} {plural}, and purity gives it 3, red, green and blue: give a "
            "function whose network takes these, e.g. with a layer before it that makes one of the other."
        )
    if runs(2, 3, size):
        return PurityError(
            f"{network.name} runs on two images and not on one ({said(error)}): keep the batch's axis, e.g. by "
            "flatten(1) in place of squeeze()."
        )
    text = f"{network.name} does not run on a float32 image of {size[0]}x{size[1]} ({said(error)})"
    other = next((side for side in USUAL_SIZES if (side, side) != size and runs(1, 3, (side, side))), None)
    if other:
        return PurityError(f"{text}, but on one of {other}x{other}: give --resize {other} --crop {other}.")
    return PurityError(f"{text}: --debug shows where.")
