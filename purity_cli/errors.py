"""The one error that users see, and how it finds near misses."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable

log = logging.getLogger("purity")
"""Warnings are for what changes how far a number can be trusted; the command line shows them on stderr."""

NO_MEMORY = (
    *("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc"),
    *("failed to map segment", "can't start new thread"),
)
"""In the words of PyTorch, CUDA, the loader and C++, none of which raises MemoryError."""


class PurityError(Exception):
    """One sentence that names the thing that is wrong and the way out.

    Raised anywhere in the package; the command line prints it without a traceback and exits with 1.
    """


class UnsuitableLayer(PurityError):
    """A tapped module that gives no (n, c, h, w) feature map, or not exactly one per forward pass."""


def _lines(error: BaseException) -> list[str]:
    """What an error says, without empty lines; nothing where it fails even at that."""
    try:
        return [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:  # an error of a user's own may raise anything as it is printed
        return []


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type's name where it says nothing."""
    return next(iter(_lines(error)), type(error).__name__)


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: it is then not the fault of what was running."""
    return isinstance(error, MemoryError) or any(words in first_line(error).lower() for words in NO_MEMORY)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean resnet50 or resnet34?"`, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def said(error: BaseException) -> str:
    """An error of somebody else's code in few words: its kind and what it said, of many lines the outer two."""
    lines = _lines(error)
    text = " ... ".join(line.rstrip(".")[:160] for line in (lines if len(lines) < 2 else [lines[0], lines[-1]]))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
