"""A user's own network, out of its wrappers: what `path/to/net.py:function` returns, or one that lives in memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from purity_cli.errors import PurityError, did_you_mean, said
from purity_cli.files import expanded
from purity_cli.models.base import IMAGENET_MEAN, IMAGENET_STD, ModelLibrary, ModelSpec, freeze, is_lazy, output_shape
from purity_cli.models.checkpoints import Checkpoint, fit
from purity_cli.models.from_timm import declared
from purity_cli.models.trial import USUAL_SIZES
from purity_cli.models.user_code import UserFolder, why
from purity_cli.plan import Preprocessing

REFERENCE = re.compile(r"(?P<path>.+\.py)(?::(?P<function>.*))?", re.DOTALL)


class UserFile(ModelLibrary):
    name = "file"
    about = "a function in a file of your own, net.py:function; what it returns is scored"
    own_weights = "as built"

    def find(self, text: str) -> tuple[str, str | None] | None:
        return (text, None) if REFERENCE.fullmatch(text) else None

    def shown(self, name: str) -> str:
        return name.rpartition(":")[2]

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        match = REFERENCE.fullmatch(name)
        assert match is not None, "as `find` gave it"
        path, function = expanded(match["path"]), match["function"] or ""
        if not path.is_file():
            raise PurityError(f"The model file {path} is not there: check the path given to --model.")
        path = path.resolve()
        folder = UserFolder.of(path)
        made = _make(folder, path, function)
        with folder.working(path):  # only the network itself can say what it takes
            preprocessing, note = _declared(made, function)

        def build(checkpoint: Checkpoint | None) -> nn.Module:
            with folder.working(path):
                return fit(made, checkpoint, f"{path.name}:{function}")

        return ModelSpec(build, preprocessing, None, note)


class InMemory(ModelLibrary):
    """One network that somebody has built, by a copy of it; no name finds it."""

    name = "memory"
    about = "a network that lives in memory"
    own_weights = "as given"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        try:
            made = copy.deepcopy(bare(self.module)).cpu()
        except Exception as error:  # of modules' own methods, and PyTorch's for tensors with a history
            raise PurityError(
                f"{name} cannot be copied, and is to stay as it is ({said(error)}): score what a function in a file "
                "builds, FILE.py:FUNCTION."
            ) from error
        made = unwrapped_module(made, name)
        freeze(made, name)
        preprocessing, note = _declared(made, name)
        return ModelSpec(lambda checkpoint: fit(made, checkpoint, name), preprocessing, None, note)


def name_in_memory(module: nn.Module) -> str:
    """What a network in memory is called: as timm says, or by its class."""
    return str(_cfg(bare(module)).get("architecture") or type(bare(module)).__name__)


def _cfg(module: nn.Module) -> Mapping[str, Any]:
    """What a network says of itself as timm's do; empty where it says nothing."""
    cfg: Any = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    cfg = cfg.to_dict() if hasattr(cfg, "to_dict") else cfg
    return cfg if isinstance(cfg, Mapping) else {}


def _make(folder: UserFolder, path: Path, function: str) -> nn.Module:
    module = folder.module(path)
    make = getattr(module, function, None) if function else None
    if not callable(make):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        found = [name for name in own if callable(getattr(module, name)) and not name.startswith("_")]
        wanted = f"has no function {function!r}" if function else "needs to be followed by a function's name"
        raise PurityError(
            f"{path} {wanted}: it has {', '.join(found) or 'none'}; write e.g. --model "
            f"{path}:{found[-1] if found else 'function'}.{did_you_mean(function, found)}"
        )
    try:
        with folder.working(path):
            made = make()
    except (Exception, SystemExit) as error:
        raise PurityError(f"{path}:{function}(), called without arguments, {why(error, 'as it is called')}") from error
    if not isinstance(made, nn.Module):
        raise PurityError(f"{path}:{function} returned a {type(made).__name__}: it must return a torch.nn.Module.")
    made = unwrapped_module(made, f"{path}:{function}")
    freeze(made, f"{path}:{function}")  # first of all: weights go into a network of float32, whatever it was built in
    folder.attach(made)
    return made


def unwrapped_module(module: nn.Module, name: str) -> nn.Module:
    """`module` without wrappers, around it or inside, and not compiled; PurityError for TorchScript."""
    module = bare(module)
    for part in list(module.modules()):
        if isinstance(part, torch.jit.ScriptModule):
            raise PurityError(
                f"{name} returned a TorchScript module, whose layers cannot be read: return the network as it was "
                "before torch.jit."
            )
        for child, inside in part._modules.items():
            part._modules[child] = None if inside is None else bare(inside)
        # Compiled code takes no notice of hooks that come later: `net.compile()`, and a compiled `forward`.
        part._compiled_call_impl = None
        original: Any = getattr(part.forward, "_torchdynamo_orig_callable", None)
        if original is not None:
            part.forward = original if isinstance(original, MethodType) else MethodType(original, part)
    return module


def bare(module: nn.Module) -> nn.Module:
    """`module` out of what runs another module and bears its keys and layers: parallel, averaged and compiled ones."""
    # By their names, because their imports take seconds.
    kinds = {kind.__name__ for kind in type(module).__mro__}
    for wrapper, inside in (
        ("DataParallel", "module"), ("DistributedDataParallel", "module"), ("AveragedModel", "module"),
        ("OptimizedModule", "_orig_mod"),
    ):  # fmt: skip
        if wrapper in kinds:
            return bare(module.get_submodule(inside))
    return module


def _declared(module: nn.Module, function: str) -> tuple[Preprocessing, str | None]:
    if cfg := _cfg(module):
        try:
            return declared(cfg)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise PurityError(
                f"The pretrained_cfg of {function} is not as timm's are ({said(error)}): mend or remove it."
            ) from None
    sizes = () if is_lazy(module) else USUAL_SIZES
    size = next((size for size in sizes if output_shape(module, (size, size)) is not None), 224)
    guess = Preprocessing(resize=256 if size == 224 else size, crop=(size, size), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    note = (
        f"{function} does not say how its pixels are prepared, so this is a guess: {guess.describe()}. Give --resize, "
        "--crop, --mean and --std, or the network a pretrained_cfg as timm's have."
    )
    return guess, note
