"""The database of a home while one process rebuilds it: nobody else opens it meanwhile.

Does not know how it is rebuilt. The kernel lets go when that process dies.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from strop.proxy.errors import StoreUnavailable
from strop.proxy.store import file_lock, layout

LOCK_FILE: Final = "rebuild.lock"
UPGRADE: Final = "brought up to date"
COMPACTION: Final = "compacted"

# Most take less, and nobody needs to know.
_SILENT_S: Final = 1.0
_POLL_S: Final = 0.1


@contextlib.contextmanager
def hold(home: Path, how: str) -> Iterator[None]:
    """Hold the database of `home` for this process, by which it is `how`.

    Raises:
        file_lock.Held: another process rebuilds it.
        StoreUnavailable: the home can't be written to.
    """
    path = home / LOCK_FILE
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock.hold(path, how.encode()))
            # Made by root, it is still for the home's owner, as what SQLite makes is.
            if os.geteuid() == 0:
                owner = home.stat()
                os.chown(path, owner.st_uid, owner.st_gid)
        except OSError as error:
            raise _unusable(path, error) from error
        yield


async def wait(home: Path, say: Callable[[str], None]) -> None:
    """Return once no other process rebuilds the database of `home`; say once what is waited for.

    Raises:
        StoreUnavailable: that can't be told.
    """
    silent_until_s = time.monotonic() + _SILENT_S
    while (how := _said(home / LOCK_FILE)) is not None:
        if time.monotonic() >= silent_until_s:
            silent_until_s = float("inf")
            path = home / layout.DATABASE
            say(f"waiting: {path} is being {how.decode()} by another strop, which may take minutes")
        await asyncio.sleep(_POLL_S)


def _said(path: Path) -> bytes | None:
    try:
        return file_lock.said_by_holder(path)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(
        f"expected to use {path}: {error.strerror}; it must be yours, as its folder, and there must"
        " be room on its volume"
    )
