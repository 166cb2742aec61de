"""A set of weights into a network: under the names that fit, and without leaving a part of the network over."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from purity_cli.errors import PurityError, said
from purity_cli.models.base import LAZY
from purity_cli.models.checkpoints import EXTRA, Checkpoint, StateDict, is_averaged, same, some

# A batch counter, which matters to training alone; files from before PyTorch 0.4.1 have none.
COUNTER = "num_batches_tracked"
# What profilers (thop) leave in a network, and so in what is saved of it.
PROFILED = ("total_ops", "total_params")
# What DataParallel, DistributedDataParallel, AveragedModel and torch.compile call the network inside them.
WRAPPERS = {"module", "_orig_mod"}


def fit(module: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Load a set of weights, every key and every shape; PurityError says what does not fit `name` and the way out.

    What fits is for the network's own `load_state_dict` to say. Where it refuses the file's keys, they are tried
    without a prefix that they have in common, or behind the network's; what belongs to no part of the network, such as
    the loss's weights, is left over and noted.
    """
    own = _OwnKeys(module)
    refused = _load(module, checkpoint.state, own)
    if not refused:
        _check_floats(own, checkpoint.state, checkpoint.file, name)
        return
    fits = _choose(list(_renamings(own, checkpoint.state)), checkpoint)
    if fits is None:
        raise PurityError(_misfit(own, checkpoint, name, refused)) from refused
    _check_floats(own, fits.state, checkpoint.file, name)
    reason = _load(module, own.completed(fits.state), own)
    if reason:
        raise PurityError(f"{name} does not take {checkpoint.file} ({said(reason)}): --debug shows where.") from reason
    if fits.averaged:
        checkpoint.notes.append(f"{checkpoint.file} holds averaged weights ({fits.prefix}): these are taken.")
    if fits.left:
        checkpoint.notes.append(f"{checkpoint.file} also holds {some(fits.left)}, which {name} has no part for.")


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

    def completed(self, state: StateDict) -> StateDict:
        """With what a file may lack: the other names of a shared tensor, batch counters, extra state."""
        found = {key: value for key, value in state.items() if key in self.values}
        for key, names in self.aliases.items():
            if key not in found:
                there = next((name for name in names if name in found), None)
                if there is not None:
                    found[key] = found[there]
                elif key.endswith((COUNTER, EXTRA)):
                    found[key] = self.values[key]
        return found

    def missing(self, state: StateDict) -> list[str]:
        return [key for key in self.needed if not any(name in state for name in self.aliases[key])]

    def wrong(self, state: StateDict) -> list[str]:
        return [key for key in self.needed if key in state and _differ(state[key], self.values[key])]


@dataclass(frozen=True)
class _Renaming:
    """The file's tensors by the network's keys; `prefix` stood before them, `left` are the keys that were not used."""

    state: StateDict
    prefix: str
    left: list[str]

    @property
    def averaged(self) -> bool:
        return is_averaged(self.prefix)


def _differ(theirs: Any, ours: Any) -> bool:
    if isinstance(ours, LAZY) or not isinstance(ours, Tensor):
        return False
    return not isinstance(theirs, Tensor) or theirs.shape != ours.shape


def _load(module: nn.Module, state: StateDict, own: _OwnKeys) -> Exception | None:
    """Have the network load it; why it does not."""
    # With the network's own metadata, which some networks need and safetensors does not keep.
    given: Any = OrderedDict(state)
    given._metadata = own.metadata
    other_keys = given.keys() != own.values.keys()
    before = {
        key: value.detach().clone()
        for key in (own.needed if other_keys else ())
        if isinstance(value := own.values[key], Tensor) and not isinstance(value, LAZY)
    }
    try:
        answer = module.load_state_dict(given)
    except Exception as error:  # a network may have its own hooks and its own way
        return error
    after = module.state_dict()
    untouched = [
        key for key, value in before.items() if torch.equal(value, after[key]) and not _among(value, state.values())
    ]
    lenient = [key for key in getattr(answer, "missing_keys", []) if not key.endswith((COUNTER, EXTRA))]
    if untouched or lenient:
        return KeyError(f"it leaves {some(untouched or lenient)} as it was")
    return None


def _check_floats(own: _OwnKeys, state: StateDict, file: str, name: str) -> None:
    """PyTorch copies the whole numbers of quantised weights into a network of floats as if they were the weights."""
    for key, value in state.items():
        ours = own.values.get(key)
        floats = isinstance(ours, nn.Parameter) and ours.is_floating_point()
        if floats and isinstance(value, Tensor) and not value.is_floating_point():
            raise PurityError(
                f"{file} holds {key} in {str(value.dtype).removeprefix('torch.')}, as quantised weights are, and "
                f"{name} computes with floats: take the weights from before that."
            )


def _among(value: Tensor, others: Iterable[Any]) -> bool:
    return any(isinstance(other, Tensor) and torch.equal(value, other.to(value.dtype)) for other in others)


def _renamings(own: _OwnKeys, state: StateDict) -> Iterator[_Renaming]:
    """Every way to read the file's keys in which all of the network is there."""
    seen = set()
    for names in (state, _unwrapped_keys(state)):
        for behind in _common_prefixes(own.needed):
            bare = {key: key.removeprefix(behind) for key in own.values}
            parts = {_part(name) for name in bare.values()}
            for prefix in _prefixes([bare[key] for key in own.needed], names):
                mapped = {key: names[prefix + name] for key, name in bare.items() if prefix + name in names}
                if prefix in seen or own.missing(mapped) or own.wrong(mapped):
                    continue
                seen.add(prefix)
                used = {prefix + bare[key] for key in mapped}
                left = [key for key, value in names.items() if key not in used and _is_weight(key, value)]
                # A part that the network has otherwise: the file is another network's.
                if not any(key.startswith(prefix) and _part(key.removeprefix(prefix)) in parts for key in left):
                    yield _Renaming(mapped, prefix, left)


def _unwrapped_keys(state: StateDict) -> StateDict:
    names = {".".join(part for part in key.split(".") if part not in WRAPPERS): value for key, value in state.items()}
    return names if len(names) == len(state) else state


def _common_prefixes(keys: list[str]) -> Iterator[str]:
    """Nothing, and the names that all of a network's keys begin with, as where it only wraps another."""
    prefix = ""
    yield prefix
    while keys and all("." in key[len(prefix) :] for key in keys):
        heads = {key[: key.index(".", len(prefix)) + 1] for key in keys}
        if len(heads) > 1:
            return
        prefix = heads.pop()
        yield prefix


def _prefixes(needed: list[str], names: Mapping[str, Any]) -> list[str]:
    """What may stand before the network's keys in the file, the likeliest first."""
    wanted, counts = set(needed), Counter[str]()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts[".".join([*parts[:start], ""])] += 1
    longest = max(needed, key=len, default="")
    counts.update(name.removesuffix(longest) for name in names if longest and name.endswith(longest))
    return [prefix for prefix, _ in counts.most_common()]


def _is_weight(key: str, value: Any) -> bool:
    """Not a counter: of batches, of steps averaged over, of operations."""
    return isinstance(value, Tensor) and value.ndim > 0 and not key.endswith((COUNTER, EXTRA, *PROFILED))


def _part(key: str) -> str:
    """The part of a network that a key is of. Numbers do not matter: `layer5` is no part beside a network's `layer4`,
    but of a larger network."""
    return re.sub(r"\d+", "#", key.partition(".")[0])


def _choose(fits: list[_Renaming], checkpoint: Checkpoint) -> _Renaming | None:
    """The one that is meant: averaged weights, else those without a prefix, else the only ones."""
    ranked = sorted(fits, key=lambda fit: (not fit.averaged, fit.prefix != ""))
    if len(ranked) > 1:
        first, second = ranked[:2]
        alike = (first.averaged, first.prefix == "") == (second.averaged, second.prefix == "")
        if alike and not same(first.state, second.state):
            raise PurityError(
                f"{checkpoint.file} holds two sets of weights that fit, under {first.prefix!r} and {second.prefix!r}: "
                "save those that are meant in a file of their own."
            )
    return ranked[0] if ranked else None


def _misfit(own: _OwnKeys, checkpoint: Checkpoint, name: str, refused: Exception) -> str:
    file = checkpoint.file
    own_wrappers = any(part in WRAPPERS for key in own.values for part in key.split("."))
    names = checkpoint.state if own_wrappers else _unwrapped_keys(checkpoint.state)
    prefixes, most = _prefixes(own.needed, names), len(names) / 2
    prefix = next((prefix for prefix in prefixes if sum(name.startswith(prefix) for name in names) > most), "")
    state = {key.removeprefix(prefix): value for key, value in names.items() if key.startswith(prefix)}
    missing = own.missing(state)
    unexpected = [key for key, value in state.items() if key not in own.values and _is_weight(key, value)]
    wrong = own.wrong(state)
    if wrong and not missing:
        return _wrong_shapes(wrong, own.values, state, file, name)
    if missing or unexpected:
        sides = [f"the network lacks the file's {some(unexpected)}"] if unexpected else []
        sides += [f"the file lacks the network's {some(missing)}"] if missing else []
        return f"{file} does not fit {name}: {', and '.join(sides)}; take weights of this architecture."
    return f"{name} does not take {file} ({said(refused)}): --debug shows where."


def _wrong_shapes(wrong: list[str], own: Mapping[str, Tensor], state: StateDict, file: str, name: str) -> str:
    heads = {key.rpartition(".")[0] for key in wrong}
    sizes = {(len(state[key]), len(own[key])) for key in wrong if state[key].ndim and own[key].ndim}
    only_rows = all(state[key].shape[1:] == own[key].shape[1:] for key in wrong)
    if len(sizes) == 1 and only_rows and all(head and f"{head}.weight" in wrong for head in heads) and len(heads) <= 3:
        theirs, ours = sizes.pop()
        return (
            f"{file} holds weights for {theirs} classes, and {name} has {ours}: pass --model FILE.py:FUNCTION with a "
            f"function that builds the network for {theirs} classes, or take weights for {ours}."
        )
    key = wrong[0]
    return (
        f"{file} does not fit {name}: {key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in "
        "the network; take weights of this architecture."
    )
