"""Activation checkpointing off: what a network would compute again in the backward pass is kept instead.

Modules that run again there would be read twice, and `torch.autograd.grad` does not go through the reentrant kind. It
saves memory and changes no value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint as library


class _Plain:
    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *arguments: Any) -> Any:
        return function(*arguments)


def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


# What `torch.utils.checkpoint.checkpoint` looks up whenever it is called, under whichever name a network imported it.
STEPS = {
    "CheckpointFunction": _Plain,
    "_checkpoint_without_reentrant_generator": _nothing,
    "_checkpoint_without_reentrant_generator_impl": _nothing,  # from PyTorch 2.14 on
}
_originals: dict[str, Any] = {}
_inside: list[int] = []
"""The threads that are inside."""
_lock = threading.Lock()


@contextmanager
def without_activation_checkpointing() -> Iterator[None]:
    """Have `torch.utils.checkpoint` run its function and keep all it computes.

    The change holds for the whole process. Several threads may be inside at once: the first to enter makes it, and the
    last to leave undoes it.
    """
    with _lock:
        if not _inside:
            _originals.update((name, getattr(library, name)) for name in STEPS if hasattr(library, name))
            vars(library).update((name, STEPS[name]) for name in _originals)
        _inside.append(threading.get_ident())
    try:
        yield
    finally:
        with _lock:
            _inside.remove(threading.get_ident())
            if not _inside:
                vars(library).update(_originals)
                _originals.clear()
