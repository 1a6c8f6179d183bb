"""The home folder while strop serves from it: held by one process, which says what it serves.

Does not make the folder or know what else is in it.
"""

import contextlib
import json
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from strop.proxy.errors import ConfigError
from strop.proxy.store import file_lock, layout

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serves:
    """What the process that serves from a home says of itself.

    Attributes:
        url: where it listens.
        asked: the settings that it was started with, as `settings/told` has them.
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
    path = home / layout.SERVE_LOCK
    said = json.dumps({**asdict(serves), "pid": os.getpid()}).encode()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock.hold(path, said))
        except file_lock.Held:
            raise ConfigError(
                f"strop serves from {home} already, at {serving_url(home)}; stop it, or choose"
                " another folder with --home"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"expected to write {path}: {error.strerror}; mend that, or choose another folder"
                " with --home"
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


def serving_url(home: Path) -> str | None:
    """Return where strop serves from `home`; None where it doesn't."""
    found = serving(home)
    return None if found is None else found.url


def serving(home: Path) -> Serves | None:
    """Return what serves from `home`; None where nothing does."""
    text = file_lock.said_by_holder(home / layout.SERVE_LOCK)
    if text is None:
        return None
    try:
        said = json.loads(text)
        # An older strop that still runs says less.
        return Serves(str(said["url"]), said.get("asked", {}), said.get("found", {}))
    except (ValueError, KeyError, TypeError):
        return None
