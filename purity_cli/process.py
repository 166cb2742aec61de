"""The command line's own process: its streams never fail, signals are answered within two seconds, memory is kept."""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from purity_cli.errors import log
from purity_cli.machine import keep_freed_memory

INTERRUPTED = 130
PATIENCE, DEADLINE = 0.8, 1.3
"""Seconds after a signal in which a block may still end, and after which the process ends whatever it does."""

NOBODY_READS = (errno.EPIPE, errno.EBADF)


class Stream(io.FileIO):
    """stdout or stderr, whatever it is: what it does not take is dropped, and `failed` says why.

    A command thus comes to its end, with its results written, whether or not there is somewhere to print them.
    """

    failed: OSError | None = None

    def write(self, data: Any, /) -> int:
        while self.failed is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.failed = error
            else:
                if written is not None:  # it is None where it would block
                    return written
                select.select([], [self], [])
        return memoryview(data).nbytes


_saving: list[Callable[[], bool]] = []
"""What saves the jobs that are being scored."""


@contextmanager
def saving(save: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """While this is entered, a signal waits for the end of a block, which is where the function given is called.

    It waits no longer than `PATIENCE`. Where the process is then ended within one operation of PyTorch, `save` is
    called from another thread; it returns whether the same command can go on from something.
    """
    _saving.append(save)
    try:
        yield raise_if_asked
    finally:
        _saving.remove(save)
    raise_if_asked()


def raise_if_asked() -> None:
    """Raise KeyboardInterrupt where a signal has come and waits."""
    if Signals.asked and not Signals.raised:
        Signals.raised = True
        raise KeyboardInterrupt


class Signals:
    """SIGINT and SIGTERM raise KeyboardInterrupt, and end the process where that has not ended it within `DEADLINE`.

    It may not: a library may catch it, one operation of PyTorch may take a minute, and Python waits for threads at its
    end. A thread sees each signal at once, while the main one sees it only between two operations.
    """

    asked = False
    """Whether one has come."""
    raised = False
    """Whether it was raised, or need not be, since all is done: the next one ends the process."""

    def __init__(self) -> None:
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
        for number in numbers:
            signal.signal(number, self._handle)
        self._wakes, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        self._numbers = {*numbers}
        threading.Thread(target=self._watch, daemon=True, name="signals").start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if Signals.raised:
            leave("Interrupted.")
        again, Signals.asked = Signals.asked, True
        if again or not _saving:
            raise_if_asked()

    def _watch(self) -> None:
        while (number := os.read(self._wakes, 1)[0]) not in self._numbers:
            pass
        began = time.monotonic()
        # Messages of what is torn apart in the middle help nobody.
        sys.unraisablehook = lambda _: None
        threading.excepthook = lambda _: None
        if _saving:
            # In a thread of its own, since a terminal may be stopped.
            text = "Interrupted: stopping after this batch."
            threading.Thread(target=log.info, args=(text,), daemon=True).start()
        time.sleep(PATIENCE)
        if not Signals.raised:
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        time.sleep(max(0.0, DEADLINE - (time.monotonic() - began)))
        saved = False
        for save in [*_saving]:
            with suppress(Exception):  # the process ends now, whatever becomes of this
                saved |= save()
        leave("Interrupted. The same command goes on where this stopped." if saved else "Interrupted.")


def run(work: Callable[[], int]) -> NoReturn:
    """Do `work`, and end the process with the exit code that it returns.

    1 stands for 0 where not all of stdout could be written, unless nobody reads it: a closed one, or a pipe to `head`.
    """
    stdout = streams()
    try:
        Signals()
        keep_freed_memory()
        # It finds a place for its files where there is no home folder, and would say so at length.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        code = work()
        if code == INTERRUPTED:
            leave()
        Signals.raised = True
    except BaseException:
        if not Signals.asked:
            raise
        leave("Interrupted.")
    sys.stdout.flush()
    if code == 0 and stdout and stdout.failed and stdout.failed.errno not in NOBODY_READS:
        reason = stdout.failed.strerror
        print(
            f"Error: Not all of the output could be printed ({reason}): send it elsewhere. Files that were written "
            "are whole.",
            file=sys.stderr,
        )
        code = 1
    sys.exit(code)


def leave(text: str = "") -> NoReturn:
    """End the process as an interrupted one, at once: nothing is waited for."""
    if text:
        # Not by sys.stderr, whose lock another thread may hold. A bar has hidden the cursor.
        shown = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
        with suppress(OSError):
            os.write(2, f"{shown}{text}\n".encode())
    else:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(INTERRUPTED)


def streams() -> Stream | None:
    """Make stdout and stderr ones that do not fail, and that can print every name; the stdout, where that was done."""
    if os.name != "posix":
        return None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, and the next file opened would take its number
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    raws = []
    for name, number in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        raw = Stream(number, "w", closefd=False)
        text = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=before.encoding if before else "utf-8",
            errors="backslashreplace",
            line_buffering=before is None or before.line_buffering,
            write_through=before is not None and before.write_through,
        )
        setattr(sys, name, text)
        raws.append(raw)
    return raws[0]
