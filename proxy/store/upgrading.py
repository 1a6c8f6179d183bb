"""Who may open a home's database, and bring an older strop's up to date: one at a time.

Never under that strop, which would write on, into tables that have changed. Does not know how it is
done.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from strop.proxy.errors import ConfigError
from strop.proxy.store import database, file_lock, layout, rebuilding


@contextlib.asynccontextmanager
async def opening(
    home: Path, say: Callable[[str], None], *, is_server: bool = False
) -> AsyncIterator[None]:
    """Lend the moment to open the database of `home`: while no other process rebuilds it.

    Where it is an older strop's, whoever opens it has it alone until it is open, and up to date.

    Args:
        home: strop's home.
        say: takes what a person is told: what is waited for, and that an older strop can't go on.
        is_server: whether this process is of the strop that serves from there.

    Raises:
        ConfigError: an older strop serves from there.
        StoreUnavailable: the home can't be written to.
    """
    path = home / layout.DATABASE
    with contextlib.ExitStack() as stack:
        while True:
            await rebuilding.wait(home, say)
            if not database.is_older(path):
                break
            if not is_server and file_lock.said_by_holder(home / layout.SERVE_LOCK) is not None:
                raise ConfigError(
                    f"an older strop serves from {home}, and couldn't use what this one would make"
                    " of its database; stop that one first, and start this one in its place. (One"
                    " that was started just now, and brings it up to date, is ready soon: try again"
                    " then.)"
                )
            with contextlib.suppress(file_lock.Held):
                stack.enter_context(rebuilding.hold(home, rebuilding.UPGRADE))
                # Another may have done it just before.
                if database.is_older(path):
                    say(
                        f"{path} is an older strop's, and is brought up to date now: that one can't"
                        " open it any more"
                    )
                break
        yield
