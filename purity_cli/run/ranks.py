"""Several processes under torchrun: which blocks are whose, and how an error of one becomes an error of all."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from purity_cli.errors import PurityError, first_line, log
from purity_cli.machine import environment_number

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

# Processes on unlike machines may be hours apart at the end of a job. One that has died is not waited for: its
# connections break, and torchrun ends the others.
PATIENCE = timedelta(days=7)
JOINING = timedelta(minutes=10)
"""For how long the processes look for each other: torchrun starts them together."""


class RankLost(PurityError):
    """Another process has ended, and nothing more can be done together."""


class Abandoned(PurityError):
    """Another process has failed at what this one is doing."""


@dataclass
class Ranks:
    """This process among its peers. Every process must come to the same `together` and `total`, in the same order."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Among the processes of this machine."""
    store: Store | None = None
    steps: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, blocks: Sequence[int]) -> Sequence[int]:
        """This process's blocks: of every `size`, the one at its rank."""
        return blocks[self.rank :: self.size]

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process, where the job runs on GPUs."""
        if self.size == 1 or device.type != "cuda":
            return device
        import torch

        if device.index is not None:
            raise PurityError(f"Under torchrun every process takes its own GPU: write cuda instead of {device}.")
        if self.local >= torch.cuda.device_count():
            raise PurityError(
                f"There are more processes on {socket.gethostname()} than its {torch.cuda.device_count()} GPU(s): "
                "give torchrun a smaller --nproc-per-node."
            )
        return torch.device("cuda", self.local)

    def check(self) -> None:
        """Raise Abandoned where another process has already failed at the current step."""
        if self.store is not None and self.store.check([self._alarm]):
            raise Abandoned("another process failed")

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do `work` on every process; what each of them returned, by rank, for all of them.

        What is returned must pickle and be small. An error on any process is raised on all of them, so that none goes
        on, or waits, alone.
        """
        value: T | None = None
        error: Exception | None = None
        try:
            value = work()
        except Exception as caught:
            error = caught
        if self.size == 1:
            if error is not None:
                raise error
            return [value]  # type: ignore[list-item]
        return self._exchange(value, error)

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` returns on the first process, which alone does it, for all of them; its error is one of all."""
        return self.together(lambda: work() if self.first else None)[0]  # type: ignore[return-value]

    def total(self, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, NDArray[Any]]:
        """The sum of everybody's arrays, whose names, shapes and types must be the same everywhere."""
        if self.size == 1:
            return dict(arrays)
        import torch
        import torch.distributed as dist

        summed = {}
        for name, array in arrays.items():
            flat = torch.from_numpy(np.array(array)).to(device)
            with _peers_alive():
                dist.all_reduce(flat)
            summed[name] = flat.cpu().numpy()
        return summed

    @property
    def _alarm(self) -> str:
        return f"purity/failed/{self.steps}"

    def _exchange(self, value: T | None, error: Exception | None) -> list[T]:
        import torch.distributed as dist

        said: list[Any] = [None] * self.size
        with _peers_alive():
            if error is not None and self.store is not None:
                self.store.set(self._alarm, "")
            dist.all_gather_object(said, (value, None if error is None else describe(error), _is_echo(error)))
        self.steps += 1
        if error is not None and not _is_echo(error):
            raise error
        for rank, (_, text, echo) in enumerate(said):
            if text is not None and not echo:
                raise PurityError(f"Process {rank} of {self.size} failed: {text}")
        return [theirs for theirs, _, _ in said]


def describe(error: BaseException) -> str:
    """An error in one line: a PurityError's sentence, anything else with its type."""
    if isinstance(error, PurityError):
        return str(error)
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f"{kind}: {text}"


def place() -> tuple[int, int, int]:
    """(rank, size, local rank) as torchrun's variables say; (0, 1, 0) where it did not start this process.

    What a cluster or a shell has left of them is taken for a single process where it can be; PurityError otherwise.
    """
    rank = environment_number("RANK")
    if rank is None:
        return 0, 1, 0
    size = environment_number("WORLD_SIZE", least=1) or 1
    if rank >= size:
        raise PurityError(
            f"RANK is {rank}, and WORLD_SIZE {os.environ.get('WORLD_SIZE') or 'is not set'}: start several processes "
            "with torchrun, and unset RANK for a single one."
        )
    if size == 1:
        return 0, 1, 0
    local = environment_number("LOCAL_RANK") or 0
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise PurityError(
                f"WORLD_SIZE is {size}, and {name} is not set: start several processes with torchrun, and unset RANK "
                "and WORLD_SIZE for a single one."
            )
    environment_number("MASTER_PORT", least=1)
    environment_number("LOCAL_WORLD_SIZE", least=1)
    return rank, size, local


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process's place among those that torchrun started; alone where it did not."""
    rank, size, local = place()
    if size == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=JOINING))
        store.set_timeout(PATIENCE)
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise PurityError(
            f"The {size} processes could not find each other ({describe(error)}): start them with torchrun, and leave "
            "RANK and WORLD_SIZE unset otherwise."
        ) from None
    if gpus:
        torch.cuda.set_device(local % torch.cuda.device_count())
    level = log.level
    if rank:
        log.setLevel(logging.ERROR)  # what the first process says holds for all
    try:
        yield Ranks(rank, size, local, store)
    finally:
        log.setLevel(level)
    # After an error the others may be gone already, and then this would wait for them.
    dist.destroy_process_group()


@contextmanager
def _peers_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            f"Another process of this run has ended ({describe(error)}): its own message stands above; the same "
            "command goes on where this one stopped."
        ) from None


def _is_echo(error: Exception | None) -> bool:
    return isinstance(error, Abandoned)
