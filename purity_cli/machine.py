"""The machine and what is installed on it: devices, memory, versions."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from purity_cli import __version__
from purity_cli.errors import PurityError

DEVICES = ("cpu", "cuda")
LIBRARIES = ("torch", "torchvision", "timm", "pretrainedmodels", "pillow", "numpy")


def resolve_device(name: str, precision: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:i` -> a device that is there and can compute in `precision`."""
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


@contextmanager
def float32_of(precision: str) -> Iterator[None]:
    """Have a GPU compute float32 as `precision` says: PyTorch lets convolutions use TensorFloat-32 unless told not to.

    Only `tf32` allows it; the process's settings are put back at the end.
    """
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
    here = Path(__file__).resolve().parent
    git = (
        subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
        )
        if (here.parent / ".git").exists()
        else None
    )
    return {
        "purity": __version__,
        "git": git.stdout.strip() or None if git else None,
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def _version(library: str) -> str | None:
    """None where it is not installed: pretrainedmodels is needed for its own networks alone."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """`cpu, 2 threads` or the GPU's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def keep_freed_memory() -> None:
    """Have glibc keep freed buffers for the next batch instead of returning them to the system.

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
