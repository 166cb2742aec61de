"""What decides a network's numbers beside its weight file: code that a user brought, random tensors, and versions."""

from __future__ import annotations

import hashlib
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from modulefinder import ModuleFinder
from pathlib import Path
from types import ModuleType
from typing import Self

import torch
from torch import nn

import purity_cli
from purity_cli.models import Network

ROUNDING = ("torch", "torchvision", "pillow")
"""What another version of may round otherwise, as may this tool's: no job goes on with it, and no result is kept."""
OURS = Path(purity_cli.__file__).resolve().parent
INSTALLED = tuple(
    Path(place).resolve()
    for place in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        *filter(None, [site.USER_SITE]),
    )
)


class Imports:
    """While it is entered, notes the files of every module that is imported for the first time: in `files`."""

    def __init__(self) -> None:
        self.files: list[Path] = []

    def __enter__(self) -> Self:
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """None, as every other finder is to be asked."""
        with suppress(Exception):
            spec = PathFinder.find_spec(name, path, target)
            if spec and spec.origin:
                self.files.append(Path(spec.origin))
        return None


def network_sha256(network: Network, model: str, imported: Iterable[Path] = ()) -> str | None:
    """SHA-256, in hex, of what a weight file does not say: random tensors, and all code of a user's own network.

    That is the code in its file, which `model` names, in what this imports of the user's, wherever the import stands,
    and in what was `imported` as the network was built. None where the weight file says it all.
    """
    own = network.source == "file"
    if network.weights_sha256 and not own:
        return None
    digest = hashlib.sha256()
    for name, tensor in network.module.state_dict().items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if own:
        named = Path(model.removeprefix("file:").rpartition(":")[0]).expanduser()
        files = {path.resolve() for path in (named, *_classes(network.module), *imported) if is_users(path)}
        for file in list(files):
            files |= _imports_of(file)
        for content in sorted({file.read_bytes() for file in files}):
            digest.update(content)
    return digest.hexdigest()


def is_users(path: Path) -> bool:
    """Whether a file is neither Python's, nor installed with pip, nor of this package."""
    path = path.resolve()
    places = (*INSTALLED, OURS)
    return path.is_file() and not {"site-packages", "dist-packages"} & set(path.parts) and not _below(path, places)


def _below(path: Path, folders: Iterable[Path]) -> bool:
    return any(folder in path.parents for folder in folders)


def _classes(net: nn.Module) -> Iterator[Path]:
    """The files in which the classes of a network stand."""
    for kind in {type(module) for module in net.modules()}:
        code = getattr(kind.forward, "__code__", None)
        if code:
            yield Path(code.co_filename)


def _imports_of(file: Path) -> set[Path]:
    """The user's files that a file's import statements lead to, also those within its functions."""
    if file.suffix != ".py":
        return set()
    places = [place for place in map(Path, sys.path) if place.is_dir() and not _below(place / "x", INSTALLED)]
    finder = ModuleFinder([str(file.parent), *map(str, places)])
    with suppress(Exception):  # what it cannot read, Python could not import either
        finder.run_script(str(file))
    found = {Path(path) for module in finder.modules.values() if (path := getattr(module, "__file__", None))}
    return {path.resolve() for path in found if is_users(path)}


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
