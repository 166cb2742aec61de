"""The machine and what is installed on it: devices, memory, versions, the environment. PyTorch is imported late."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from purity_cli import __version__
from purity_cli.errors import PurityError

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
LIBRARIES = ("torch", "torchvision", "timm", "pretrainedmodels", "pillow", "numpy")
TOLERANCE = 0.002
"""By which F may move for speed's sake, unasked: as near as two implementations have to come."""
PLAIN_CPU = "CPU without bfloat16"
MEASURED = {("CPU with AVX512-BF16", "bf16"): 0.25}
"""The largest |F - F in fp32| of all cells of results/benchmark/precision.csv, by kind of device and precision."""
PATIENCE_WITH_GIT = 2.0
"""Seconds: a checkout may lie on a disk that doesn't answer, and its version is a detail."""


def resolve_device(name: str, precision: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:i` -> a device that is there and can compute in `precision`."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in DEVICES:
        raise PurityError(f"--device {name} is not supported: use auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PurityError(
            "--device cuda needs an NVIDIA GPU that PyTorch can see, and there is none: use --device cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PurityError(
            f"--device {name} is not there: this machine has {torch.cuda.device_count()} GPU(s), from cuda:0."
        )
    if device.type == "cpu" and precision in ("tf32", "fp16"):
        raise PurityError(f"--precision {precision} needs a CUDA device: use fp32 or bf16 on the CPU.")
    return device


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those that are faster than fp32 on a device, by instructions of its own; the fastest first."""
    if device.type == "cuda":
        return ("bf16", "fp16", "tf32")
    return () if kind_of(device) == PLAIN_CPU else ("bf16",)


def kind_of(device: torch.device) -> str:
    """What kind of device it is, as far as its arithmetic goes: a GPU's own name, or what a CPU has for bfloat16."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if torch.cpu._is_amx_tile_supported():
        return "CPU with AMX"
    return "CPU with AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else PLAIN_CPU


def fastest(device: torch.device) -> tuple[str, str]:
    """The fastest precision that was measured to keep every F within `TOLERANCE` of fp32's on this kind of device, and
    why, in a clause."""
    kind, moved = kind_of(device), list[str]()
    for precision in precisions(device):
        largest = MEASURED.get((kind, precision))
        if largest is not None and largest <= TOLERANCE:
            return precision, f"it moved F by {largest:g} at most on this kind of device ({kind})"
        seen = "was not measured" if largest is None else f"moved F by up to {largest:g}"
        moved.append(f"{precision} {seen}")
    return "fp32", f"on this kind of device ({kind}) {', '.join(moved) or 'nothing else is faster'}"


@contextmanager
def float32_of(precision: str) -> Iterator[None]:
    """Have a GPU compute float32 as `precision` says: PyTorch lets convolutions use TensorFloat-32 unless told not to.

    Only `tf32` allows it; the process's settings are put back at the end.
    """
    import torch

    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def versions() -> dict[str, str | None]:
    """The package's, its checkout's and its libraries' versions, for `run.json`."""
    return {
        "purity": __version__,
        "git": commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


@cache
def commit() -> str | None:
    """The commit of the checkout that this package lies in, `-dirty` where it was changed.

    None where it lies in none, and where git is missing, fails or takes too long.
    """
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        git = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        return None
    with git:
        try:
            said, _ = git.communicate(timeout=PATIENCE_WITH_GIT)
        except subprocess.TimeoutExpired:
            # All that git started, for whatever of it lives on holds the pipe open, and that is waited for.
            with suppress(OSError):
                os.killpg(git.pid, signal.SIGKILL)
            return None
    return said.decode(errors="replace").strip() or None if git.returncode == 0 else None


def _version(library: str) -> str | None:
    """None where it is not installed: pretrainedmodels is needed for its own networks alone."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """`cpu, 2 threads` or the GPU's own name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def environment_number(name: str, least: int = 0) -> int | None:
    """The whole number in an environment variable, None where it is unset or empty; PurityError for anything else."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise PurityError(
            f"The environment variable {name} is {text!r}, and should be a whole number from {least}: unset it, or let "
            "torchrun set it."
        )
    return int(text)


def keep_freed_memory() -> None:
    """Have glibc keep freed buffers for the next batch instead of returning them to the system.

    It holds for the whole process, and so only programs do this, the command line among them, never the library.

    Feature maps are tens of megabytes each; getting such a block from the system anew, page by page, takes longer
    than most operations on it. Elsewhere than on glibc this does nothing.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_MAX_" not in os.environ:
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):
            return
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
