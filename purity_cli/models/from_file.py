"""A user's own network, out of its wrappers: what `path/to/net.py:function` returns, or one that lives in memory."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from purity_cli.errors import PurityError, did_you_mean, said
from purity_cli.files import expanded
from purity_cli.models.base import IMAGENET_MEAN, IMAGENET_STD, ModelLibrary, ModelSpec, freeze, is_lazy, output_shape
from purity_cli.models.checkpoints import Checkpoint
from purity_cli.models.fitting import fit
from purity_cli.models.from_timm import declared
from purity_cli.models.user_code import UserCode
from purity_cli.plan import Preprocessing

REFERENCE = re.compile(r"(?P<path>.+\.py)(?::(?P<function>.*))?", re.DOTALL)
# Tried in this order where the network does not say what it takes.
USUAL_SIZES = (224, 32, 64, 28, 96, 299, 384)
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""Modules that run another, their `module`, whose keys and layers are the ones that people name."""


class PrintsAside:
    """Hooks around a network's forward: what it prints goes to stderr, lest it end up among the results."""

    def __init__(self) -> None:
        self._before: list[Any] = []

    def begin(self, *_: object) -> None:
        self._before.append(sys.stdout)
        sys.stdout = sys.stderr

    def end(self, *_: object) -> None:
        if self._before:
            sys.stdout = self._before.pop()


class UserFile(ModelLibrary):
    name = "file"
    about = "a function in a file of your own, net.py:function; what it returns is scored"
    own_weights = "as built"

    def find(self, text: str) -> tuple[str, str | None] | None:
        return (text, None) if REFERENCE.fullmatch(text) else None

    def shown(self, name: str) -> str:
        return name.rpartition(":")[2]

    def recipe(self, name: str, tag: str | None) -> ModelSpec:
        match = REFERENCE.fullmatch(name)
        assert match is not None, "as `find` gave it"
        path, function = expanded(match["path"]), match["function"] or ""
        code = UserCode.of(path)
        made = code.working(partial(_make, code, path, function))
        # Only the network itself can say what it takes.
        preprocessing, note = code.working(partial(_declared, made, function))
        build = partial(_fill, made, code, f"{path.name}:{function}")
        return ModelSpec(build, preprocessing, None, note, code=partial(code.code, made))


class InMemory(ModelLibrary):
    """One network that somebody has built, by a copy of it; no name finds it."""

    name = "memory"
    about = "a network that lives in memory"
    own_weights = "as given"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def recipe(self, name: str, tag: str | None) -> ModelSpec:
        try:
            made = copy.deepcopy(bare(self.module)).cpu()
        except Exception as error:  # of modules' own methods, and PyTorch's for tensors with a history
            raise PurityError(
                f"{name} cannot be copied, and is to stay as it is ({said(error)}): score what a function in a file "
                "builds, FILE.py:FUNCTION."
            ) from error
        made = unwrapped(made, name)
        freeze(made, name)
        preprocessing, note = _declared(made, name)

        def fill(checkpoint: Checkpoint | None) -> nn.Module:
            if checkpoint is not None:
                fit(made, checkpoint, name)
            return made

        return ModelSpec(fill, preprocessing, None, note)


def called(module: nn.Module) -> str:
    """What a network in memory is called: as timm says, or by its class."""
    return str(_cfg(bare(module)).get("architecture") or type(bare(module)).__name__)


def _cfg(module: nn.Module) -> Mapping[str, Any]:
    """What a network says of itself as timm's do; empty where it says nothing."""
    cfg: Any = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    cfg = cfg.to_dict() if hasattr(cfg, "to_dict") else cfg
    return cfg if isinstance(cfg, Mapping) else {}


def _make(code: UserCode, path: Path, function: str) -> nn.Module:
    make = _function(code.module, path, function)
    try:
        module = make()
    except (Exception, SystemExit) as error:
        called = f"{path}:{function}()"
        if isinstance(error, TypeError) and error.__traceback__ and error.__traceback__.tb_next is None:
            raise PurityError(
                f"{called} failed ({said(error)}): give a function that works without arguments."
            ) from error
        raise PurityError(f"{called} {code.why(error, 'as it is called')}") from error
    if not isinstance(module, nn.Module):
        raise PurityError(f"{path}:{function} returned a {type(module).__name__}: it must return a torch.nn.Module.")
    module = unwrapped(module, f"{path}:{function}")
    freeze(module, f"{path}:{function}")  # first of all: weights go into a network of float32, whatever it was built in
    module.register_forward_pre_hook(code.folder.enter)
    prints = PrintsAside()
    module.register_forward_pre_hook(prints.begin)
    module.register_forward_hook(prints.end, always_call=True)
    return module


def unwrapped(module: nn.Module, name: str) -> nn.Module:
    """`module` without WRAPPERS, around it or inside, and not compiled; PurityError for TorchScript."""
    module = bare(module)
    for part in list(module.modules()):
        if isinstance(part, torch.jit.ScriptModule):
            raise PurityError(
                f"{name} returned a TorchScript module, whose layers cannot be read: return the network as it was "
                "before torch.jit."
            )
        for child, inside in part._modules.items():
            part._modules[child] = None if inside is None else bare(inside)
        _undo_compile(part)
    return module


def bare(module: nn.Module) -> nn.Module:
    """`module` out of what is around it: WRAPPERS, and torch.compile's."""
    if isinstance(module, WRAPPERS):
        return bare(module.get_submodule("module"))
    if type(module).__name__ == "OptimizedModule":  # torch.compile's, whose import takes seconds
        return bare(module.get_submodule("_orig_mod"))
    return module


def _undo_compile(module: nn.Module) -> None:
    """Compiled code takes no notice of hooks that come later: `net.compile()`, and a compiled `forward`."""
    if module._compiled_call_impl is not None:
        module._compiled_call_impl = None
    original: Any = getattr(module.forward, "_torchdynamo_orig_callable", None)
    if original is not None:
        module.forward = original if isinstance(original, MethodType) else MethodType(original, module)


def _fill(module: nn.Module, code: UserCode, name: str, checkpoint: Checkpoint | None) -> nn.Module:
    if checkpoint is not None:
        code.working(lambda: fit(module, checkpoint, name))
    return module


def _function(module: ModuleType, path: Path, function: str) -> Any:
    found = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    make = getattr(module, function, None) if function else None
    if callable(make):
        return make
    wanted = f"no function {function!r}" if function else "to be followed by a function's name"
    there = f"it has {', '.join(found)}" if found else "it defines none"
    example = f"{path}:{found[-1] if found else 'function'}"
    verb = "has" if function else "needs"
    raise PurityError(f"{path} {verb} {wanted}: {there}; write e.g. --model {example}.{did_you_mean(function, found)}")


def _declared(module: nn.Module, function: str) -> tuple[Preprocessing, str | None]:
    if cfg := _cfg(module):
        try:
            return declared(cfg)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise PurityError(
                f"The pretrained_cfg of {function} is not as timm's are ({said(error)}): mend or remove it."
            ) from None
    module.eval()
    sizes = () if is_lazy(module) else USUAL_SIZES
    size = next((size for size in sizes if output_shape(module, (size, size)) is not None), 224)
    guess = Preprocessing(resize=256 if size == 224 else size, crop=(size, size), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    note = (
        f"{function} does not say how its pixels are prepared, so this is a guess: {guess.describe()}. Give --resize, "
        "--crop, --mean and --std, or the network a pretrained_cfg as timm's have."
    )
    return guess, note
