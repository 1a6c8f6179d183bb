"""The home folder while strop serves from it: held by one process, which says what it serves.

Does not make the folder or know what else is in it.
"""

import contextlib
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from strop.proxy.errors import ConfigError

log = logging.getLogger(__name__)

LOCK_FILE: Final = "serve.lock"
_MAX_BYTES = 2**24
_LOCK_TRIES = 20
_LOCK_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Serves:
    """What the process that serves from a home says of itself.

    Attributes:
        url: where it listens.
        asked: the settings that it was started with, as `told_settings` has them.
        found: those that it serves with: the same, with the engine that it found.
    """

    url: str
    asked: dict[str, object] = field(default_factory=dict)
    found: dict[str, object] = field(default_factory=dict)


@contextlib.contextmanager
def hold(home: Path, serves: Serves) -> Iterator[None]:
    """Hold `home` for this process, which serves from it. The kernel lets go when it dies.

    What others may do in it is taken away: its settings may hold keys.

    Raises:
        ConfigError: another process serves from it, or it can't be written to.
    """
    _close_to_others(home)
    with contextlib.ExitStack() as stack:
        try:
            file = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, file)
            if not _lock(file):
                raise ConfigError(
                    f"strop serves from {home} already, at {serving_url(home)}; stop it, or choose"
                    " another folder with --home"
                )
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({**asdict(serves), "pid": os.getpid()}).encode(), 0)
        except OSError as error:
            raise ConfigError(
                f"expected to write {home / LOCK_FILE}: {error.strerror}; mend that, or choose"
                " another folder with --home"
            ) from error
        yield


def _close_to_others(home: Path) -> None:
    mode = stat.S_IMODE(home.stat().st_mode)
    if not mode & 0o077:
        return
    reason = "it is a folder for all, as /tmp is"
    if not mode & stat.S_ISVTX:
        try:
            home.chmod(mode & 0o700)
            return
        except OSError as error:
            reason = str(error.strerror)
    log.warning(
        "others may enter the home, and read the settings in it",
        extra={"home": str(home), "mode": f"{mode:o}", "reason": reason},
    )


def _lock(file: int) -> bool:
    """Take the lock; whoever only asks who serves has it for a moment, so try more than once."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


def serving_url(home: Path) -> str | None:
    """Return where strop serves from `home`; None where it doesn't."""
    found = serving(home)
    return None if found is None else found.url


def serving(home: Path) -> Serves | None:
    """Return what serves from `home`; None where nothing does."""
    try:
        file = os.open(home / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # Who gets the lock knows that nobody serves.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(os.pread(file, _MAX_BYTES, 0))
            # An older strop that still runs says less.
            return Serves(str(said["url"]), said.get("asked", {}), said.get("found", {}))
    finally:
        os.close(file)
    return None
