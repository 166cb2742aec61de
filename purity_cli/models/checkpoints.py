"""Weight files: to tensors, without running code, and into a network, all of it or not at all."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from purity_cli.errors import PurityError, first_line, said

StateDict = dict[str, Any]
"""Tensors by key, and what a network's `get_extra_state` put beside them."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
LAZY = (UninitializedParameter, UninitializedBuffer)

# Where a training script's file keeps the weights. As in timm, averaged weights go before the last step's.
AVERAGED = {"ema", "averaged", "average", "avg", "swa", "shadow", "polyak"}
PLAIN = {"state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params"}
NO_WEIGHTS = re.compile(r"optim|lr_sched|sched|scaler|hyper_|rng|args|config|_extra_state", re.IGNORECASE)
DEEPEST = 4
# What DataParallel, DistributedDataParallel, AveragedModel and torch.compile call the network inside them.
WRAPPERS = {"module", "_orig_mod"}
# Keys that a file may lack: what `get_extra_state` gave, and a batch counter, which matters to training alone.
EXTRA, COUNTER = "_extra_state", "num_batches_tracked"
# What profilers (thop) leave in a network, and so in what is saved of it.
PROFILED = ("total_ops", "total_params")

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
    """One set of weights in a file."""

    state: StateDict
    file: str
    part: str = ""
    """Where in the file it stands, with dots; empty where it is all of the file."""
    beside: tuple[str, ...] = ()
    """Where the file holds other weights."""
    notes: list[str] = field(default_factory=list)
    """What has to be said of how the file was understood, one sentence each."""

    @property
    def is_named(self) -> bool:
        """Whether results have to say which part of the file was taken."""
        return bool(self.beside) and self.part != "" and self.part.partition(".")[0] not in PLAIN


def looks_like_file(text: str) -> bool:
    """Whether `--weights text` means a file rather than the name of some weights."""
    return text.endswith(SUFFIXES) or "/" in text or Path(text).is_file()


def read(path: Path) -> list[Checkpoint]:
    """The sets of weights in a .safetensors file, or in a pickle that holds nothing but tensors and plain values:
    averaged ones first, then those where training scripts keep them, then others.

    Raises PurityError for a file that is missing, unreadable, of another kind, or that would have to run code.
    """
    if not path.is_file():
        there = "is a folder: give the file in it" if path.is_dir() else "is not there: check the path"
        raise PurityError(f"The weight file {path} {there}.")
    if not path.name.endswith(SUFFIXES):
        raise PurityError(f"{path} has no known suffix for weights: it must be one of {', '.join(SUFFIXES)}.")
    advice = "save torch.save(model.state_dict(), FILE) where it was made and pass that"
    try:
        content = _content(path)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and blocked:
            raise PurityError(
                f"{path} holds a pickled {blocked[1]}, not only tensors, and purity runs no code from a weight file: "
                f"{advice}."
            ) from None
        # PyTorch talks of its options, and then of the file.
        told = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        reason = f"{type(error).__name__}: {re.split(r'[.:] ', told[1] if told else first_line(error))[0]}".rstrip(".")
        raise PurityError(f"{path} cannot be read as a file of tensors ({reason}): {advice}.") from None
    if not isinstance(content, Mapping):
        raise PurityError(f"{path} holds no state dict but a {type(content).__name__}: {advice}.")
    found = sorted(_sets(content), key=lambda each: (_rank(each[0]), len(each[0])))
    if not found:
        raise PurityError(f"{path} holds no state dict (its keys: {some(content) or 'none'}): {advice}.")
    # Averaged weights that are a list, or of no known form, cannot be loaded, but the user may expect them.
    tops = {place[0] for place, _ in found if place}
    unread = [key for key, value in content.items() if is_averaged(str(key)) and key not in tops and _holds(value)]
    names = [*(".".join(place) for place, _ in found), *map(str, unread)]
    return [
        Checkpoint(state, path.name, names[i], tuple(name or "no name" for name in names[:i] + names[i + 1 :]))
        for i, (_, state) in enumerate(found)
    ]


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with torch.serialization.safe_globals(SAFE):
        return torch.load(path, map_location="cpu", weights_only=True)


def _holds(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) and len(value) > 0


def _sets(content: Mapping[Any, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """Every mapping with tensors in it, at whatever place in the file."""
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    state = {key: value for key, value in named.items() if isinstance(value, Tensor) or key.endswith(EXTRA)}
    if any(isinstance(value, Tensor) and value.ndim for value in state.values()):
        yield place, state
    for key, value in named.items() if len(place) < DEEPEST else ():
        if isinstance(value, Mapping) and not NO_WEIGHTS.match(key) and not key.endswith(EXTRA):
            yield from _sets(value, (*place, key))


def _rank(place: tuple[str, ...]) -> int:
    if any(map(is_averaged, place)):
        return 0
    return 1 if not place or place[0] in PLAIN else 2


def is_averaged(name: str) -> bool:
    """Whether a container's name, or a prefix of keys, says that it holds averaged weights."""
    return not AVERAGED.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def some(keys: Iterable[Any]) -> str:
    """The first three of them, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(str(key) for key in keys[:3]) + more


def fit(module: nn.Module, checkpoint: Checkpoint | None, name: str) -> nn.Module:
    """`module` with a set of weights, every key and every shape; as it is without one.

    PurityError says what does not fit `name` and the way out.

    What fits is for the network's own `load_state_dict` to say. Where it refuses the file's keys, these are tried
    without a prefix that they have in common, or behind a prefix of the network's.
    """
    if checkpoint is None:
        return module
    own = _OwnKeys(module)
    file, state = checkpoint.file, checkpoint.state
    refused = own.load(module, state)
    if refused:
        renamed = next(_renamed(own, state), None)
        if renamed is None:
            raise PurityError(_misfit(own, checkpoint, name, refused)) from refused
        state, prefix, left = renamed
        if reason := own.load(module, state):
            raise PurityError(f"{name} does not take {file} ({said(reason)}): --debug shows where.") from reason
        if left:
            checkpoint.notes.append(f"{file} also holds {some(left)}: only what is under {prefix} is taken.")
    for key, value in state.items():
        # PyTorch copies the whole numbers of quantised weights into a network of floats as if they were the weights.
        ours = own.values.get(key)
        if isinstance(ours, nn.Parameter) and isinstance(value, Tensor) and not value.is_floating_point():
            raise PurityError(
                f"{file} holds {key} in {str(value.dtype).removeprefix('torch.')} and {name} computes with floats: "
                "pass weights that are floats."
            )
    if checkpoint.beside:
        others = some(checkpoint.beside)
        checkpoint.notes.append(
            f"{file} holds weights under {checkpoint.part or 'no name'} and under {others}: the former are taken."
        )
    return module


class _OwnKeys:
    """What a network's state dict holds: tensors, by several names where they are shared, and the rest."""

    def __init__(self, module: nn.Module) -> None:
        state = module.state_dict(keep_vars=True)
        self.metadata = getattr(state, "_metadata", None)
        self.values: dict[str, Any] = dict(state)
        by_tensor: dict[int, list[str]] = {}
        for key, value in state.items():
            by_tensor.setdefault(id(value), []).append(key)
        self.aliases = {key: names for names in by_tensor.values() for key in names}
        self.needed = [key for key in state if not key.endswith((COUNTER, EXTRA))]

    def missing(self, state: Mapping[str, Any]) -> list[str]:
        return [key for key in self.needed if not any(name in state for name in self.aliases[key])]

    def wrong(self, state: Mapping[str, Any]) -> list[str]:
        """The keys of tensors that have another shape in the network."""
        ours = ((key, self.values[key]) for key in self.needed if isinstance(state.get(key), Tensor))
        return [key for key, own in ours if not isinstance(own, LAZY) and own.shape != state[key].shape]

    def load(self, module: nn.Module, state: StateDict) -> Exception | None:
        """Have the network load it; why it does not, or left something as it was."""
        # With the network's own metadata, which some networks need and safetensors does not keep.
        given: Any = OrderedDict(state)
        given._metadata = self.metadata
        lacking = self.missing(state)  # unless a hook of the network's renames the file's keys
        before = {key: self.values[key].detach().clone() for key in lacking if not isinstance(self.values[key], LAZY)}
        try:
            answer = module.load_state_dict(given)
        except Exception as error:  # a network may have its own hooks and its own way
            return error
        after = module.state_dict()
        kept = [key for key, value in before.items() if torch.equal(value, after[key]) and not _among(value, state)]
        kept += [key for key in getattr(answer, "missing_keys", []) if not key.endswith((COUNTER, EXTRA))]
        return KeyError(f"it leaves {some(kept)} as it was") if kept else None


def _among(value: Tensor, state: StateDict) -> bool:
    return any(isinstance(other, Tensor) and torch.equal(value, other.to(value.dtype)) for other in state.values())


def _renamed(own: _OwnKeys, state: StateDict) -> Iterator[tuple[StateDict, str, list[str]]]:
    """The ways to read a file's keys in which the network takes all under one prefix: its tensors by the network's
    keys, the prefix, and the keys that stand elsewhere; averaged weights first."""
    names = unwrapped(state)
    readings = [(prefix, inner) for inner in _common_prefixes(own.needed) for prefix in _prefixes(own, names, inner)]
    for prefix, inner in sorted(readings, key=lambda reading: not is_averaged(reading[0])):
        found = {inner + key.removeprefix(prefix): value for key, value in names.items() if key.startswith(prefix)}
        taken = {key: value for key, value in found.items() if key in own.values}
        if own.missing(taken) or own.wrong(taken) or _weights(found.keys() - taken.keys(), found):
            continue
        for key, value in own.values.items():  # what a file may lack: other names of a shared tensor, counters
            there = next((name for name in own.aliases[key] if name in taken), None)
            if key not in taken:
                taken[key] = taken[there] if there else value
        yield taken, prefix, _weights((key for key in names if not key.startswith(prefix)), names)


def unwrapped(state: StateDict) -> StateDict:
    """Keys as the bare network has them, whatever it was wrapped in when it was saved."""
    names = {".".join(part for part in key.split(".") if part not in WRAPPERS): value for key, value in state.items()}
    return names if len(names) == len(state) else state


def _common_prefixes(keys: list[str]) -> list[str]:
    """Nothing, and the names that all of a network's keys begin with, as where it only wraps another."""
    heads = [key.split(".")[:-1] for key in keys]
    shared = next((i for i, parts in enumerate(zip(*heads, strict=False)) if len(set(parts)) > 1), None)
    common = heads[0][: shared if shared is not None else min(map(len, heads))] if heads else []
    return ["".join(f"{part}." for part in common[:k]) for k in range(len(common) + 1)]


def _prefixes(own: _OwnKeys, names: Mapping[str, Any], inner: str) -> list[str]:
    """What may stand before the network's keys in a file: whatever stands there before the longest of them."""
    longest = max((key.removeprefix(inner) for key in own.needed), key=len, default="")
    aliases = [key.removeprefix(inner) for key in own.aliases.get(inner + longest, ())]
    return list(dict.fromkeys(name[: -len(key)] for name in names for key in aliases if key and name.endswith(key)))


def _weights(keys: Iterable[str], state: Mapping[str, Any]) -> list[str]:
    """Those that are weights, and no counters: of batches, of steps averaged over, of operations."""
    no_weight = (COUNTER, EXTRA, *PROFILED)
    return [key for key in keys if isinstance(state[key], Tensor) and state[key].ndim and not key.endswith(no_weight)]


def _misfit(own: _OwnKeys, checkpoint: Checkpoint, name: str, refused: Exception) -> str:
    """What does not fit, under the prefix with which the most keys do."""
    file, names = checkpoint.file, unwrapped(checkpoint.state)
    fitting = Counter[str]()
    for key in names:
        parts = key.split(".")
        cuts = [k for k in range(len(parts)) if ".".join(parts[k:]) in own.values]
        fitting.update("".join(f"{part}." for part in parts[:k]) for k in cuts)
    prefix = next((prefix for prefix, _ in fitting.most_common(1)), "")
    state = {key.removeprefix(prefix): value for key, value in names.items() if key.startswith(prefix)}
    way_out = "pass the whole weights of this network, or --model FILE.py:FUNCTION that builds the file's"
    missing, wrong = own.missing(state), own.wrong(state)
    unexpected = _weights((key for key in state if key not in own.values), state)
    if missing or unexpected:
        sides = [f"the network lacks the file's {some(unexpected)}"] if unexpected else []
        sides += [f"the file lacks the network's {some(missing)}"] if missing else []
        return f"{file} does not fit {name}: {', and '.join(sides)}; {way_out}."
    if not wrong:
        return f"{name} does not take {file} ({said(refused)}): --debug shows where."
    key = wrong[-1]
    theirs, ours = tuple(state[key].shape), tuple(own.values[key].shape)
    return f"{file} does not fit {name}: {key} is {theirs} in the file and {ours} in the network; {way_out}."
