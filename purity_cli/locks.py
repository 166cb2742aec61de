"""Who writes into a results folder: one process at a time, which others can see."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import TextIO

from purity_cli.errors import PurityError

LOCK = ".lock"
LEFTOVERS = ".*.[0-9]*.tmp"
"""What `store.write_bytes` leaves where it is killed; a folder that users name may hold temporary files of others."""
A_LOOK = 0.05
"""Seconds in which whoever only looks at a lock has let go of it again."""


class Held(PurityError):
    """Another process writes into the folder."""


@dataclass(frozen=True)
class Holder:
    """A process that writes into a folder."""

    command: str
    host: str
    pid: int
    since: str
    """ISO 8601."""


def prepare(folder: Path) -> Path:
    """Make sure that results can be written into `folder` before hours are spent on them; PurityError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PurityError(f"Cannot write results into {folder} ({error.strerror}): choose another --output.") from None
    return folder


def claim(folder: Path, command: str, *, wait: bool = False) -> TextIO:
    """Let no second process write into `folder`, until the file returned is closed or this process ends.

    What a killed process was just writing there is cleared away. Raises Held where another one holds the folder, or
    waits for it; `command` is what this one is called.
    """
    place = prepare(folder) / LOCK
    try:
        handle = place.open("a+")
    except PermissionError:  # another user's, which locks all the same; the folder itself can be written into
        handle = place.open()
    try:
        _lock(handle, wait)
    except BlockingIOError:
        holder = _written(handle)
        handle.close()
        raise Held(
            f"Another `{holder.command if holder else command}` is writing into {folder}: wait for it, or give "
            "--output."
        ) from None
    except (ImportError, OSError):
        pass  # a system or a file system without locks
    mine = Holder(command, socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
    with suppress(OSError):  # by whom it is held is a detail, that a full disk has no room for
        os.ftruncate(handle.fileno(), 0)
        os.write(handle.fileno(), f"{json.dumps(asdict(mine))}\n".encode())
    for leftover in folder.glob(LEFTOVERS):
        leftover.unlink(missing_ok=True)
    return handle


def _lock(handle: TextIO, wait: bool) -> None:
    import fcntl

    if wait:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sleep(A_LOOK)  # it may be that somebody looked, as `holder` does
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def holder(folder: Path) -> Holder | None:
    """Who writes into `folder` now; None where nobody does. Writes nothing. OSError where there are no locks."""
    try:
        handle = (folder / LOCK).open()
    except FileNotFoundError:
        return None
    with handle:
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _written(handle) or Holder("purity", "?", 0, "")
    return None


def there_are(folder: Path) -> bool:
    """Whether the file system of `folder` has locks, as far as it says so itself."""
    try:
        import fcntl

        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _written(handle: TextIO) -> Holder | None:
    """What the holder of a lock wrote; None where it has not yet, or was of another version."""
    handle.seek(0)
    try:
        return Holder(**json.loads(handle.readline()))
    except (ValueError, TypeError):
        return None
