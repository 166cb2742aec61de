"""Weight files: to tensors without running code, and into a network without leaving a key over."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from purity_cli.errors import PurityError

StateDict = dict[str, Tensor]

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", *PICKLES)

# Where a training script's file keeps the weights. As in timm, averaged weights go before the last step's.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module")
# What DistributedDataParallel, torch.compile and torch.optim.swa_utils put before every key.
PREFIXES = ("module.", "_orig_mod.")

# A batch counter, which matters to training alone; files from before PyTorch 0.4.1 have none.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weight file. `part` names those that were taken where the file holds two sets."""

    state: StateDict
    file: str
    part: str | None = None

    def stripped(self) -> Checkpoint:
        """Keys as the bare network has them, whatever it was wrapped in when it was saved."""
        state = {key: tensor for key, tensor in self.state.items() if key != "n_averaged"}
        for prefix in PREFIXES * 2:  # a compiled network inside a parallel one, or the other way round
            if state and all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        return replace(self, state=state)


def looks_like_file(text: str) -> bool:
    """Whether `--weights text` means a file rather than the name of some weights."""
    return text.endswith(SUFFIXES) or "/" in text or Path(text).is_file()


def read(path: Path) -> Checkpoint:
    """The state dict in a .safetensors file, or in a pickle that holds nothing but tensors and plain containers.

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
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise PurityError(f"{path} cannot be read as safetensors ({_first_line(error)}): fetch it again.") from None


def _read_pickle(path: Path) -> Any:
    advice = "save torch.save(model.state_dict(), FILE) where it was made and pass that"
    if _is_torchscript(path):
        raise PurityError(f"{path} is a TorchScript archive, which holds code besides its weights: {advice}.")
    try:
        # As timm allows: its training script keeps its options, plain values, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
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
        raise PurityError(f"{path} is damaged or no PyTorch weight file ({_first_line(error)}): get it anew.") from None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unwrap(content: Any, path: Path) -> Checkpoint:
    part = None
    while True:
        if not isinstance(content, Mapping) or not content:
            raise PurityError(f"{path} holds no state dict but {_describe(content)}: save model.state_dict().")
        if all(isinstance(value, Tensor) for value in content.values()):
            return Checkpoint(dict(content), path.name, part)
        inside = [key for key in (*AVERAGED, *PLAIN) if isinstance(content.get(key), Mapping)]
        if not inside:
            raise PurityError(f"{path} holds no state dict: its keys are {_some(content)}; save model.state_dict().")
        if inside[0] in AVERAGED and any(key in PLAIN for key in inside):
            part = inside[0]
        content = content[inside[0]]


def fit(module: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Load a checkpoint, every key and every shape; PurityError says what does not fit `name` and the way out."""
    own, file = module.state_dict(), checkpoint.file
    state = checkpoint.state if own.keys() == checkpoint.state.keys() else checkpoint.stripped().state
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in own and not key.endswith(COUNTER)]
    if missing or unexpected:
        sides = [f"the network lacks the file's {_some(unexpected)}"] if unexpected else []
        sides += [f"the file lacks the network's {_some(missing)}"] if missing else []
        raise PurityError(f"{file} does not fit {name}: {', and '.join(sides)}; take weights of this architecture.")
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if wrong:
        raise PurityError(_wrong_shapes(wrong, own, state, file, name))
    # Into the network's own dict, whose metadata some networks need and safetensors does not keep.
    own.update((key, tensor) for key, tensor in state.items() if key in own)
    module.load_state_dict(own)


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


def _some(keys: Iterable[Any]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(str(key) for key in keys[:3]) + more


def _describe(content: Any) -> str:
    return "an empty one" if isinstance(content, Mapping) else f"a {type(content).__name__}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:")[:120] if lines else type(error).__name__
