"""What one image costs a network, and whether it is a CNN: found from shapes, before anything is loaded, and kept."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache as remember
from importlib import metadata
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import purity_cli
from purity_cli import cache, locks, models, stages, store
from purity_cli.errors import PurityError
from purity_cli.models.base import ShapesOnly, seeded
from purity_cli.run.ranks import describe

FOLDER = "networks"
"""Within the cache of pixels, so that there is one place for what can be found again."""
EVERY = 10.0
"""Seconds after which what was found by then is written: a kill leaves no time for it."""
PARALLEL = 32
"""From so many networks on, several processes look at them: each takes seconds to start."""
SELF_ATTENTION = ("Transformer", "SelfAttention")
"""In the names of modules that mix places by attention without a product of two maps (MobileViT v2)."""

Named = tuple[str, int, int]
"""A network, and the height and width of an image."""


class Look(NamedTuple):
    """What is known of a network from shapes alone."""

    gmacs: float | None
    """10^9 multiplications with an addition in the forward pass of one image; None where they were not counted."""
    parameters: int | None
    lacks: str | None
    """Why it is no CNN whose stages can be read: `attention`, `no stages`, or what keeps it from running."""


def network(model: str) -> str:
    """A model without the tag of its weights, which costs the same with any."""
    return model.partition(".")[0] if model.startswith("timm:") else model


@remember
def operations(model: str, height: int, width: int) -> int | None:
    """Floating-point operations of the forward pass of one image; None where they can't be counted.

    A network of the user's is not asked, for its code should run once, when its job does.
    """
    if ".py" in model:
        return None
    found = known(model, height, width)
    if found and found.gmacs:
        return round(2e9 * found.gmacs)
    try:
        return _operations(models.sketch(model)[0], (height, width)) or None
    except Exception:  # whatever it is, the job itself will say
        return None


def known(model: str, height: int, width: int) -> Look | None:
    """What was found of a network before; None where nobody has looked."""
    return _kept(_file()).get((network(model), height, width))


def _operations(module: nn.Module, size: tuple[int, int], mode: TorchFunctionMode | None = None) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), _by_shapes(module), mode or nullcontext(), counter:
        module(torch.zeros(1, 3, *size))
    return counter.get_total_flops()


def _by_shapes(module: nn.Module) -> AbstractContextManager[Any]:
    """For a pass of a network without values, where it has none."""
    return ShapesOnly() if any(parameter.is_meta for parameter in module.parameters()) else nullcontext()


def looks(
    wanted: Iterable[Named], workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[Named, Look]:
    """Each of these, as kept from before or looked at now, by as many processes as `workers` where they are many."""
    names = list(dict.fromkeys(wanted))
    kept, path = dict(_kept(_file())), _file()
    if any(name not in kept for name in names):
        with _alone(path):
            kept |= _read(path)
            missing = [name for name in names if name not in kept]
            saved = monotonic()
            try:
                for done, (name, found) in enumerate(zip(missing, _each(missing, workers), strict=False), 1):
                    kept[name] = found
                    progress(done, len(missing))
                    if monotonic() - saved > EVERY:
                        _write(path, kept)
                        saved = monotonic()
            finally:
                _write(path, kept)
                _kept.cache_clear()
    return {name: kept[name] for name in names}


def look(named: Named) -> Look:
    """One network, from shapes; for real where it computes with values."""
    model, *size = named
    try:
        return _look(*models.sketch(model), (size[0], size[1]))
    except Exception:
        try:
            real = models.load(model, "none", headless=True)
            return _look(real.module, real.source, real.name, (size[0], size[1]))
        except Exception as error:  # a library's own network may raise anything
            return Look(None, None, f"does not run ({describe(error)})")


def _look(module: nn.Module, source: str, name: str, size: tuple[int, int]) -> Look:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if any(word in type(part).__name__ for part in module.modules() for word in SELF_ATTENTION):
        return Look(None, parameters, "attention")
    try:
        gmacs = _operations(module, size, _Products()) / 2e9
    except _Attends:
        return Look(None, parameters, "attention")
    try:
        with seeded(), _by_shapes(module):
            stages.stages(module, source, name, stages.probe(module, size))
    except stages.NoStages:
        return Look(gmacs, parameters, "no stages")
    return Look(gmacs, parameters, None)


class _Attends(Exception):
    """Raised out of a forward pass, the rest of which need not be looked at."""


class _Products(TorchFunctionMode):
    """Ends a pass in which two maps are multiplied as matrices. Convolutions and linear layers multiply a map with a
    parameter; attention, in whatever form, takes both from the image."""

    OF = frozenset({
        torch.matmul, torch.bmm, torch.baddbmm, torch.mm, torch.einsum, Tensor.matmul, Tensor.bmm, Tensor.mm,
        Tensor.__matmul__, Tensor.__rmatmul__, F.scaled_dot_product_attention, F.multi_head_attention_forward,
    })  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.OF:
            given = [one for each in args for one in (each if isinstance(each, (tuple, list)) else (each,))]
            if not any(isinstance(one, nn.Parameter) for one in given):
                raise _Attends
        return func(*args, **(kwargs or {}))


def _each(names: Sequence[Named], workers: int) -> Iterator[Look]:
    if len(names) < PARALLEL or workers < 2:
        yield from map(look, names)
        return
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap(look, names, chunksize=4)


# Kept on disk, for what the versions behind it say


def _file() -> Path | None:
    root = cache.default_root()
    versions = [purity_cli.__version__, *(metadata.version(name) for name in ("timm", "torch"))]
    return root / FOLDER / f"{'-'.join(versions)}.json" if root else None


@remember
def _kept(path: Path | None) -> dict[Named, Look]:
    return _read(path)


def _read(path: Path | None) -> dict[Named, Look]:
    try:
        return {tuple(name): Look(*found) for name, found in json.loads(path.read_text())} if path else {}
    except (OSError, ValueError, TypeError):
        return {}


def _write(path: Path | None, kept: dict[Named, Look]) -> None:
    if path:
        with suppress(PurityError):  # a full disk: it is found again
            store.write_text(path, json.dumps(list(kept.items())))


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Of several processes one looks at networks, and the others find what it kept."""
    try:
        handle = locks.claim(path.parent, "purity bench", wait=True) if path else nullcontext()
    except PurityError:  # a cache that cannot be written
        handle = nullcontext()
    with handle:
        yield
