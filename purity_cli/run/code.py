"""What decides a network's numbers beside its weight file: code that a user brought, random tensors, and versions."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib import metadata

import torch

import purity_cli
from purity_cli.models import Network
from purity_cli.shipped import ROUNDING


def network_sha256(network: Network) -> str | None:
    """SHA-256, in hex, of what a weight file does not say: random tensors, and all code of a user's own network.

    None where the weight file says it all.
    """
    files = network.code()
    if network.weights_sha256 and not files:
        return None
    digest = hashlib.sha256()
    for name, tensor in network.module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # what get_extra_state gave
            digest.update(f"{name}\0{tensor!r}\0".encode())
            continue
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for content in sorted({file.read_bytes() for file in files}):
        digest.update(content)
    return digest.hexdigest()


def versions_behind(network: Network) -> dict[str, str | None]:
    """The versions of what computes: this tool, PyTorch, and every library that brought the network's modules."""
    brought = {type(module).__module__.partition(".")[0] for module in network.module.modules()}
    found: dict[str, str | None] = {
        "purity": purity_cli.__version__,
        **{name: metadata.version(name) for name in ROUNDING},
    }
    for name in sorted(brought - {"torch", "purity_cli", "__main__"}):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
