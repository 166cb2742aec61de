"""Ctrl-C and SIGTERM between two blocks instead of within one, where the end of a block is near."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 0.8
"""Seconds that a signal waits for the end of a block."""

_entered: list[Interrupts] = []


class Interrupts:
    """While it is entered, a signal waits for `check`, or for the end, but no longer than `PATIENCE`.

    Then, and at once for a second signal, KeyboardInterrupt is raised wherever Python code runs next: between two
    modules of a network at the latest. Where even that takes too long, `last_word` is for whoever ends the process: it
    calls `save`, from another thread and once, which is to keep what was whole before the block, and to return whether
    there was something.

    Only the main thread receives signals; in another this does nothing.
    """

    def __init__(self, save: Callable[[], bool] = lambda: False) -> None:
        self.asked = False
        self._save = save
        self._impatient: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            known = {number: signal.getsignal(number) for number in SIGNALS}
            # What is ignored stays so, as under nohup.
            self._before = {number: handler for number, handler in known.items() if handler != signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._note)
        _entered.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._impatient:
            self._impatient.cancel()
        _entered.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # A handler runs in the main thread, whichever thread raises the signal.
        self._impatient = threading.Timer(PATIENCE, signal.raise_signal, (number,))
        self._impatient.daemon = True
        self._impatient.start()


def waiting() -> bool:
    """Whether a signal would wait for the end of a block now."""
    return bool(_entered)


def last_word() -> bool:
    """Save what can be saved before the process ends, from another thread than the main one; whether that was done."""
    saved = False
    for entered in _entered:
        with suppress(Exception):  # the process ends now, whatever becomes of this
            saved |= entered._save()
    return saved
