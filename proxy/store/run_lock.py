"""One run at a time in a home: a lock that the kernel frees when its holder dies.

Does not know what a run does, or its row.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LOCK_FILE: Final = "lock"
PROBE: Final = "the probe of an import"
"""What holds the lock instead of a run while an imported adapter's probe is made."""

# Whoever only asks who holds it has it for a moment.
_TRIES: Final = 20
_PAUSE_S: Final = 0.02


class AlreadyRunning(Exception):
    """Another process trains in this home; `run` is what it works on."""

    def __init__(self, run: str) -> None:
        super().__init__(
            f"{run or 'another run'} is under way in this home already; one goes at a time: wait"
            " for it, or cancel it"
        )
        self.run = run


@contextlib.contextmanager
def hold(folder: Path, run: str) -> Iterator[None]:
    """Hold `folder`, that of all runs, for the run with the id `run`.

    Raises:
        AlreadyRunning: another process holds it.
    """
    file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(file):
            raise AlreadyRunning(os.pread(file, 256, 0).decode())
        os.ftruncate(file, 0)
        os.pwrite(file, run.encode(), 0)
        yield
    finally:
        os.close(file)


def is_held(folder: Path) -> bool:
    """Whether a process trains in the home of this folder of all runs."""
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _lock(file: int) -> bool:
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        else:
            return True
    return False
