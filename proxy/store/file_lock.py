"""A file that one process holds, and in which it says what for: freed by the kernel when it dies.

Does not know what is held with it, or what is said.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MAX_BYTES: Final = 2**24
# Whoever only asks who holds it has it for a moment.
_TRIES: Final = 20
_PAUSE_S: Final = 0.02


class Held(Exception):
    """Another process holds the file; `said` is what it says there."""

    def __init__(self, said: bytes) -> None:
        super().__init__(said)
        self.said = said


@contextlib.contextmanager
def hold(path: Path, said: bytes) -> Iterator[None]:
    """Hold the file at `path`, made if missing, and say `said` there.

    Raises:
        Held: another process holds it.
        OSError: it can't be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(file):
            raise Held(os.pread(file, _MAX_BYTES, 0))
        os.ftruncate(file, 0)
        os.pwrite(file, said, 0)
        yield
    finally:
        os.close(file)


def said_by_holder(path: Path) -> bytes | None:
    """Return what the process says that holds the file at `path`; None where none does."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # Who gets the lock knows that nobody holds it.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(file, _MAX_BYTES, 0)
    finally:
        os.close(file)
    return None


def _lock(file: int) -> bool:
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        else:
            return True
    return False
