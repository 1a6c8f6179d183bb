"""Turns at a database that several processes write to all the time: each gets one after the other.

Does not know what is written. SQLite lets who finds it locked sleep and look again, for up to a
tenth of a second: beside a writer that is never idle it may wait for seconds, and give up. Here the
kernel wakes it.

The lock files are there while several processes serve from the home; who opens the database and
finds none takes no turns, and waits as SQLite does.
"""

import fcntl
import os
from pathlib import Path

_TURN = "-turn"
_NEXT = "-next"


class Turns:
    """A turnstile of two locks, which the kernel frees when their holder dies.

    Who has had a turn must pass `next` before another, and that is held by the one that waits for
    the turn: so of two processes that want it all the time, each gets every second one.
    """

    def __init__(self, path: Path) -> None:
        self._turn = _open(path, _TURN)
        self._next = _open(path, _NEXT)

    @classmethod
    def at(cls, path: Path) -> "Turns | None":
        """Return the turns at the database `path`, if its writers take any."""
        return cls(path) if path.with_name(path.name + _TURN).exists() else None

    def __enter__(self) -> None:
        """Wait for a turn, and have it."""
        fcntl.flock(self._next, fcntl.LOCK_EX)
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        fcntl.flock(self._next, fcntl.LOCK_UN)

    def __exit__(self, *_: object) -> None:
        """Let the next one have it."""
        fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Wait for no turn any more."""
        os.close(self._turn)
        os.close(self._next)


def begin(path: Path) -> None:
    """Let whoever opens the database `path` from now on take turns."""
    Turns(path).close()


def end(path: Path) -> None:
    """Let nobody who opens the database `path` from now on take turns."""
    for suffix in (_TURN, _NEXT):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _open(path: Path, suffix: str) -> int:
    name = path.with_name(path.name + suffix)
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
