"""A user's own network: `path/to/net.py:function`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from purity_cli.errors import PurityError, did_you_mean
from purity_cli.models.base import Recipe, Source, output_shape
from purity_cli.models.checkpoints import Checkpoint, fit
from purity_cli.models.declared import IMAGENET_MEAN, IMAGENET_STD, from_timm
from purity_cli.plan import Preprocessing

REFERENCE = re.compile(r"(?P<path>.+\.py)(?::(?P<function>.*))?")
OWN_NAME = "purity_user_"
# Tried in this order where the network does not say what it takes.
USUAL_SIZES = (224, 32, 64, 28, 96, 299, 384)


class UserFile(Source):
    name = "file"

    def names(self) -> list[str]:
        return []

    def find(self, text: str) -> tuple[str, str | None] | None:
        return (text, None) if REFERENCE.fullmatch(text) else None

    def tags(self, name: str) -> list[str]:
        return []

    def recipe(self, name: str, tag: str | None) -> Recipe:
        match = REFERENCE.fullmatch(name)
        if match is None:
            raise PurityError(f"{name!r} does not name a function in a file: write FILE.py:FUNCTION.")
        path, function = Path(match["path"]).expanduser(), match["function"] or ""
        # Only the network itself can say what it takes.
        module = _build(path, function)
        preprocessing, note = _declared(module, function)
        return Recipe(partial(_fill, module, f"{path.name}:{function}"), preprocessing, None, note)


def bare_name(name: str) -> str:
    """The function of `path/to/net.py:function`."""
    return name.rpartition(":")[2]


def _build(path: Path, function: str) -> nn.Module:
    with _importable(path.parent):
        make = _function(path, function)
        try:
            module = make()
        except (Exception, SystemExit) as error:
            raise PurityError(
                f"{path}:{function}() failed ({_said(error)}): give a function that works without arguments."
            ) from None
    if not isinstance(module, nn.Module):
        raise PurityError(f"{path}:{function} returned a {type(module).__name__}: it must return a torch.nn.Module.")
    return module


def _fill(module: nn.Module, name: str, checkpoint: Checkpoint | None) -> nn.Module:
    if checkpoint is not None:
        fit(module, checkpoint, name)
    return module


def _function(path: Path, function: str) -> Any:
    module = _import(path)
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


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise PurityError(f"The model file {path} is not there: check the path given to --model.")
    # A name of its own, so that a user's torch.py or timm.py hides nothing.
    name = f"{OWN_NAME}{path.stem}"
    loader = SourceFileLoader(name, str(path))
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up while it is being executed
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PurityError(f"{path} cannot be imported ({_said(error)}): make `python {path}` run first.") from None
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the file import its neighbours, as it could if Python ran it; last, so that they hide no library.

    They are forgotten afterwards, lest the next file be given a neighbour of this one.
    """
    folder = folder.resolve()
    before = set(sys.modules)
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name not in before and _lies_in(folder, name)]:
            del sys.modules[name]


def _lies_in(folder: Path, name: str) -> bool:
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    places = [Path(file).parent] if file else [Path(place) for place in getattr(module, "__path__", [])]
    return not name.startswith(OWN_NAME) and any(place in (folder, folder / top) for place in places)


def _declared(module: nn.Module, function: str) -> tuple[Preprocessing, str | None]:
    cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if cfg:
        return from_timm(cfg if isinstance(cfg, dict) else cfg.to_dict())
    module.eval()
    size = next((size for size in USUAL_SIZES if output_shape(module, (size, size)) is not None), 224)
    guess = Preprocessing(resize=256 if size == 224 else size, crop=(size, size), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    note = (
        f"{function} does not say how its pixels are prepared, so this is a guess: {guess.describe()}. Give --resize, "
        "--crop, --mean and --std, or the network a pretrained_cfg as timm's have."
    )
    return guess, note


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
