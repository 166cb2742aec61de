"""The machine and what is installed on it: devices, versions, memory, the network. PyTorch is imported late."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from purity_cli import __version__
from purity_cli.errors import PurityError, first_line

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
LIBRARIES = ("torch", "torchvision", "timm", "pretrainedmodels", "pillow", "numpy")
SECONDS_TO_CONNECT = 15


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


def device_name(device: torch.device) -> str:
    """`cpu, 2 threads` or the GPU's own name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


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


@contextmanager
def usual_torch() -> Iterator[None]:
    """Undo what the caller's code has set around this call, because numbers must not depend on it.

    Inside, gradients are recorded, autocast and inference mode are off, and new tensors are float32 on the CPU.
    """
    import torch

    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


def versions() -> dict[str, str | None]:
    """The package's, its checkout's and its libraries' versions, for `run.json`; None for what is not installed."""
    installed: dict[str, str | None] = dict.fromkeys(LIBRARIES)
    for library in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            installed[library] = metadata.version(library)
    return {"purity": __version__, "git": commit(), "python": platform.python_version(), **installed}


@cache
def commit() -> str | None:
    """The commit of the checkout that this package lies in, `-dirty` where it was changed; None without one or git."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() or None


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

    Feature maps are tens of megabytes each, and getting such a block anew takes longer than most operations on it. This
    holds for the whole process, so the command line does it, and the library never does. Elsewhere than on glibc it
    does nothing.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_MAX_" not in os.environ:
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):
            return
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


@contextmanager
def impatient() -> Iterator[None]:
    """Give up a download where a firewall swallows connections; urllib would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or SECONDS_TO_CONNECT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def why_not(error: BaseException) -> str:
    """The first line of why a download failed, to stand in brackets."""
    reason = getattr(error, "reason", None)
    return first_line(reason if isinstance(reason, BaseException) else error).rstrip(".:")[:160]
