"""Fetching over a network that may not be there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_TO_CONNECT = 15


@contextmanager
def impatient() -> Iterator[None]:
    """Give up where a firewall swallows connections; urllib would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or SECONDS_TO_CONNECT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def why_not(error: BaseException) -> str:
    """The first line of why a download failed, to stand in brackets."""
    lines = str(getattr(error, "reason", None) or error).strip().splitlines()
    return lines[0].rstrip(".:")[:160] if lines else type(error).__name__
