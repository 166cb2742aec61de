"""Activation checkpointing off: what a network would compute again in the backward pass is kept instead.

Modules that run again there would be read twice, and `torch.autograd.grad` does not go through the reentrant kind. It
saves memory and changes no value.
"""

from __future__ import annotations

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


@contextmanager
def kept() -> Iterator[None]:
    """Have `torch.utils.checkpoint` run its function and keep all it computes."""
    before = {name: value for name, value in vars(library).items() if name in STEPS}
    vars(library).update((name, STEPS[name]) for name in before)
    try:
        yield
    finally:
        vars(library).update(before)
