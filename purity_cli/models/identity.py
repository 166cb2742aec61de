"""What a network is, as digests: its modules, their settings, every tensor in it, and what it makes of one image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from purity_cli.errors import no_memory

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digest_of_parts(module: nn.Module) -> str:
    """SHA-256 of the module tree (class names and `extra_repr`), of all parameters and buffers, persistent or not, and
    of what `get_extra_state` gives."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update("\0".join(map(str, (*parts, ""))).encode("utf-8", "backslashreplace"))

    for path, part in module.named_modules(remove_duplicate=False):
        add(path, type(part).__qualname__, ADDRESS.sub("", part.extra_repr()))
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            add(ADDRESS.sub("", repr(part.get_extra_state())))
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                add(name, tensor.dtype, tuple(tensor.shape))
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_outputs(module: nn.Module, image: Tensor) -> str:
    """SHA-256 of what the network and its innermost modules give for one image (1, c, h, w).

    It shows what no tensor holds: code, files and environment variables that decide how the network computes. It is
    computed in double precision and rounded, so that it is the same for any number of threads.
    """
    try:
        lines = _outputs(module, in_double(module), image, digits=5)
    except Exception as error:  # a network may insist on float32
        if no_memory(error):
            raise
        lines = _outputs(module, module, image, digits=3)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def in_double(module: nn.Module) -> Callable[[Tensor], Any]:
    """The network in double precision, as a function of float32 images; the module stays as it is."""
    tensors = replaced(module, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    # Not tying the weights: PyTorch would put a tensor of two names back under the first alone.
    return lambda images: torch.func.functional_call(module, tensors, images.double(), tie_weights=False)


def replaced(module: nn.Module, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The network's tensors by name, each changed; one that it holds under several names is changed once."""
    made: dict[int, Tensor] = {}
    found = {}
    for path, part in module.named_modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                if id(tensor) not in made:
                    made[id(tensor)] = change(tensor)
                found[f"{path}.{name}" if path else name] = made[id(tensor)]
    return found


def _outputs(module: nn.Module, run: Callable[[Tensor], Any], image: Tensor, digits: int) -> list[str]:
    lines: list[str] = []

    def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        for tensor in _floats(output):
            size = float(tensor.abs().double().mean())
            mean = float(tensor.double().mean()) / size if size else 0.0
            lines.append(f"{name} {tuple(tensor.shape)} {size:.{digits}e} {mean:z.{digits}f}")

    with torch.no_grad(), ExitStack() as stack:
        for name, part in module.named_modules():
            if name and not list(part.children()):
                stack.callback(part.register_forward_hook(partial(note, name)).remove)
        output = run(image.clone())
    for tensor in _floats(output):
        largest = float(tensor.abs().max())
        values = (tensor / largest if largest else tensor).flatten().tolist()
        lines.append(f"{largest:.{digits}e} " + " ".join(f"{value:z.{digits}f}" for value in values[:1000]))
    return lines


def _floats(output: Any) -> Iterator[Tensor]:
    parts = output if isinstance(output, (tuple, list)) else [output]
    yield from (part for part in parts if isinstance(part, Tensor) and part.is_floating_point() and part.numel())
