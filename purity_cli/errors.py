"""The one error that users see, the messages that are no errors, and near misses of names."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

NO_MEMORY = (
    *("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc"),
    *("failed to map segment", "can't start new thread"),
)
"""In the words of PyTorch, CUDA, the loader and C++, none of which raises MemoryError."""

log = logging.getLogger("purity")
"""All messages: a warning is what changes how far a number can be trusted, an info is anything else. One sentence."""

_about: ContextVar[str] = ContextVar("about", default="")
_gathered: ContextVar[dict[str, list[str]] | None] = ContextVar("gathered", default=None)


def _prefix_or_hold(record: logging.LogRecord) -> bool:
    """A filter of `log`: what `about` and `gathered` promise."""
    subject, held = _about.get(), _gathered.get()
    if held is not None and record.levelno == logging.WARNING:
        held.setdefault(record.getMessage(), []).append(subject)
        return False
    if subject:
        record.msg, record.args = f"{subject}: {record.getMessage()}", ()
    return True


log.addFilter(_prefix_or_hold)


@contextmanager
def about(subject: str) -> Iterator[None]:
    """While this is entered, every message of this thread begins with `subject: `."""
    token = _about.set(subject)
    try:
        yield
    finally:
        _about.reset(token)


@contextmanager
def gathered(subjects: int) -> Iterator[None]:
    """Hold the warnings of this thread back, and give each of them once at the end, with all that it is `about`.

    A warning about all of so many `subjects` names none.
    """
    held: dict[str, list[str]] = {}
    token = _gathered.set(held)
    try:
        yield
    finally:
        _gathered.reset(token)
        for sentence, names in held.items():
            named = [name for name in dict.fromkeys(names) if name]
            log.warning(f"{', '.join(named)}: {sentence}" if 0 < len(named) < subjects else sentence)


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
