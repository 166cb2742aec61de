"""Who writes into a results folder: one process at a time, which others can see."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from contextlib import AbstractContextManager, suppress
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


@dataclass(frozen=True)
class Holder:
    """A process that writes into a folder."""

    command: str
    host: str
    pid: int
    since: str
    """ISO 8601."""


class Held(PurityError):
    """Another process writes into the folder."""

    def __init__(self, folder: Path, command: str) -> None:
        holder = written(folder)
        other = holder.command if holder else command
        super().__init__(f"Another `{other}` is writing into {folder}: wait for it, or give --output.")


class Lock(AbstractContextManager["Lock"]):
    """That this process alone writes into a folder, until it is closed or the process ends."""

    def __init__(self, file: TextIO, holder: Holder) -> None:
        self.holder, self._file = holder, file

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(folder: Path) -> Path:
    """Make sure that results can be written into `folder` before hours are spent on them; PurityError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PurityError(f"Cannot write results into {folder} ({error.strerror}): choose another --output.") from None
    return folder


def claim(folder: Path, command: str, *, wait: bool = False) -> Lock:
    """Let no second process write into `folder`.

    What a killed process was just writing there is cleared away. Raises Held where another one holds the folder, or
    waits for it; `command` is what this one is called.
    """
    path = prepare(folder) / LOCK
    try:
        file = path.open("a+")
    except OSError as error:
        raise PurityError(f"Cannot write {path} ({error.strerror}): choose another --output.") from None
    try:
        _lock(file, wait)
    except BlockingIOError:
        file.close()
        raise Held(folder, command) from None
    except (ImportError, OSError):
        pass  # a system or a file system without locks
    holder = Holder(command, socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
    with suppress(OSError):  # by whom it is held is a detail, that a full disk has no room for
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"{json.dumps(asdict(holder))}\n".encode())
    for leftover in folder.glob(LEFTOVERS):
        leftover.unlink(missing_ok=True)
    return Lock(file, holder)


def _lock(file: TextIO, wait: bool) -> None:
    import fcntl

    if wait:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sleep(A_LOOK)  # it may be that somebody looked, as `holder` does
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def holder(folder: Path) -> Holder | None:
    """Who writes into `folder` now; None where nobody does. Writes nothing. OSError where there are no locks."""
    try:
        file = (folder / LOCK).open()
    except FileNotFoundError:
        return None
    with file:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return written(folder) or Holder("purity", "?", 0, "")
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


def written(folder: Path) -> Holder | None:
    """Whom the last holder of a lock wrote that it is; None where there is no lock, or one of another version."""
    try:
        return Holder(**json.loads((folder / LOCK).read_text()))
    except (OSError, ValueError, TypeError):
        return None
