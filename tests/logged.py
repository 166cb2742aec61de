"""What the package logs while a test runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from purity_cli.errors import log


@contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[str]]:
    """The sentences of all messages of at least this level, while it is entered."""
    sentences: list[str] = []
    handler, before = logging.Handler(), log.level
    handler.emit = lambda record: sentences.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield sentences
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
