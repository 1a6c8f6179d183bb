"""Whether a command may bring an older strop's database up to date: never under that strop.

Does not know how that is done. An older strop that serves would write on, into tables that have
changed.
"""

from pathlib import Path

from strop.proxy.errors import ConfigError
from strop.proxy.store import database, file_lock, layout


def check(home: Path) -> str | None:
    """Return what to tell whoever opens the database of `home` next; None where it isn't older.

    Raises:
        ConfigError: an older strop serves from there.
    """
    path = home / layout.DATABASE
    if not database.is_older(path):
        return None
    if file_lock.said_by_holder(home / layout.SERVE_LOCK) is not None:
        raise ConfigError(
            f"an older strop serves from {home}, and couldn't use what this one would make of its"
            " database; stop that one first, and start this one in its place. (One that was started"
            " just now, and brings it up to date, is ready soon: try again then.)"
        )
    return (
        f"{path} is an older strop's, and is brought up to date now: that one can't open it any"
        " more"
    )
