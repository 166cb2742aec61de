"""Weight files: to tensors, without running code. Which of a file's sets fit a network, and how: `fitting`."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from purity_cli.errors import PurityError, first_line

StateDict = dict[str, Any]
"""Tensors by key, and what a network's `get_extra_state` put beside them."""

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", *PICKLES)

# Where a training script's file keeps the weights. As in timm, averaged weights go before the last step's.
AVERAGED = {"ema", "averaged", "average", "avg", "swa", "shadow", "polyak"}
PLAIN = {"state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params"}
NO_WEIGHTS = re.compile(r"optim|lr_sched|sched|scaler|hyper_|rng|args|config|_extra_state", re.IGNORECASE)
DEEPEST = 4
EXTRA = "_extra_state"
"""Under which PyTorch keeps what `get_extra_state` gave."""

# Plain values that training scripts keep beside the weights; making one runs nothing of the file's.
SAFE: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    *((getattr(import_module("numpy._core.multiarray"), name), f"numpy.{package}.multiarray.{name}")
      for package in ("core", "_core") for name in ("scalar", "_reconstruct")),
]  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights in a file. `part` says where it stands, where the file holds others too."""

    state: StateDict
    file: str
    part: str | None = None
    notes: list[str] = field(default_factory=list)
    """What has to be said of how the file was understood, one sentence each."""
    twin: str | None = None
    """Where the file holds other weights for the same keys that may be meant as well."""

    def stripped(self) -> StateDict:
        """Keys as the bare network has them, whatever it was wrapped in when it was saved."""
        state = {key: tensor for key, tensor in self.state.items() if key != "n_averaged"}
        for prefix in ("module.", "_orig_mod.") * 2:  # a compiled network in a parallel one, or the other way round
            if state and all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        return state


def is_averaged(name: str) -> bool:
    """Whether a container's name, or a prefix of keys, says that it holds averaged weights."""
    return not AVERAGED.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def looks_like_file(text: str) -> bool:
    """Whether `--weights text` means a file rather than the name of some weights."""
    return text.endswith(SUFFIXES) or "/" in text or Path(text).is_file()


def read(path: Path) -> list[Checkpoint]:
    """The sets of weights in a .safetensors file, or in a pickle that holds nothing but tensors and plain values;
    those that are meant first.

    Raises PurityError for a file that is missing, damaged, of another kind, or that would have to run code.
    """
    if not path.is_file():
        raise PurityError(f"There is no weight file {path}: check the path given to --weights.")
    if not path.name.endswith(SUFFIXES):
        raise PurityError(f"{path} has no known suffix for weights: it must be one of {', '.join(SUFFIXES)}.")
    try:
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as error:
        raise PurityError(f"{path} cannot be opened ({error.strerror}): check its permissions.") from None
    if start.startswith(b"version https://git-lfs"):
        raise PurityError(f"{path} is only a Git LFS pointer to the weights: fetch them with `git lfs pull`.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _sets(content, path)


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise PurityError(
            f"{path} cannot be read as safetensors ({first_line(error).rstrip('.:')[:120]}): fetch it again."
        ) from None


def _read_pickle(path: Path) -> Any:
    advice = "save torch.save(model.state_dict(), FILE) where it was made and pass that"
    if _is_torchscript(path):
        raise PurityError(f"{path} is a TorchScript archive, which holds code besides its weights: {advice}.")
    try:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and blocked:
            raise PurityError(
                f"{path} holds a pickled {blocked[1]}, not only tensors, and purity runs no code from a weight file: "
                f"{advice}."
            ) from None
        if ".tar" in str(error):
            raise PurityError(f"{path} is in PyTorch's old tar format, which is unsafe to read: {advice}.") from None
        # PyTorch talks of its options first, and then of the file.
        told = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        reason = (told[1] if told else first_line(error)).rstrip(".: ")[:120]
        raise PurityError(f"{path} is damaged or no PyTorch weight file ({reason}): get it anew.") from None


def _is_torchscript(path: Path) -> bool:
    with suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
    return False  # no zip, or a damaged one, of which PyTorch says what is wrong


def _sets(content: Any, path: Path) -> list[Checkpoint]:
    """Every state dict in a file: averaged ones, those where training scripts keep them, then others."""
    if not isinstance(content, Mapping) or not content:
        shown = "an empty one" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise PurityError(f"{path} holds no state dict but {shown}: save model.state_dict().")
    found = sorted(_walk(content), key=lambda each: (_rank(each[0]), len(each[0])))
    if not found:
        raise PurityError(f"{path} holds no state dict: its keys are {some(content)}; save model.state_dict().")
    sets = [Checkpoint(state, path.name, ".".join(place) or None) for place, state in found]
    ranks = [_rank(place) for place, _ in found]
    unread = [
        key
        for key, value in content.items()
        if isinstance(key, str) and is_averaged(key) and not isinstance(value, Tensor | None)
    ]
    return [_understood(i, sets, ranks, unread) for i in range(len(sets))]


def _understood(i: int, sets: list[Checkpoint], ranks: list[int], unread: list[str]) -> Checkpoint:
    """The i-th set of a file, with what has to be said of it beside the others."""
    one, notes = sets[i], []
    others = [k for k, other in enumerate(sets) if k != i and other.stripped().keys() == one.stripped().keys()]
    others = [k for k in others if not same(sets[k].stripped(), one.stripped())]
    twin = next((sets[k].part for k in others if ranks[k] == ranks[i]), None)
    if ranks[i] == 0 and max(ranks) > 0:
        notes.append(f"{one.file} holds averaged weights ({one.part}) beside others: the averaged ones are taken.")
    elif ranks[i] and unread:
        notes.append(f"The averaged weights in {one.file} ({unread[0]}) are none that fit: the others are taken.")
    elif others:
        notes.append(f"{one.file} also holds weights under {sets[others[0]].part}: those under {one.part} are taken.")
    part = one.part if twin or ranks[i] == 2 or (ranks[i] == 0 and max(ranks) > 0) else None
    return Checkpoint(one.state, one.file, part, notes, twin)


def same(first: StateDict, second: StateDict) -> bool:
    """Whether two sets hold the same tensors under the same keys."""
    return first.keys() == second.keys() and all(
        not isinstance(value, Tensor) or (isinstance(second[key], Tensor) and torch.equal(value, second[key]))
        for key, value in first.items()
    )


def _walk(content: Mapping[Any, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    state = {key: value for key, value in named.items() if isinstance(value, Tensor) or key.endswith(EXTRA)}
    if any(isinstance(value, Tensor) and value.ndim for value in state.values()):
        yield place, state
    for key, value in named.items() if len(place) < DEEPEST else ():
        if isinstance(value, Mapping) and not NO_WEIGHTS.match(key) and not key.endswith(EXTRA):
            yield from _walk(value, (*place, key))


def _rank(place: tuple[str, ...]) -> int:
    if any(map(is_averaged, place)):
        return 0
    return 1 if not place or place[0] in PLAIN else 2


def some(keys: Any) -> str:
    """The first three of them, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(str(key) for key in keys[:3]) + more
