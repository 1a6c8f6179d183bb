"""`strop compact`: makes the database as small as what is in it.

Does not know how SQLite does that.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from strop.proxy.cli import terminal
from strop.proxy.cli.options import examples, home_of, home_option, open_store
from strop.proxy.errors import Conflict, StoreUnavailable
from strop.proxy.home import serving_url
from strop.proxy.store import file_lock, layout, rebuilding, run_lock

if TYPE_CHECKING:
    from strop.proxy.store.database import Room


@click.command(epilog=examples("strop compact"))
@home_option
def compact(home: Path | None) -> None:
    """Give back the room in the database that is not in use.

    What was deleted leaves room that is used again, in a file as large as before. This makes the
    file smaller, while strop is stopped and no training run is under way; other commands wait for
    it. Until then it takes twice what is in use of the disk. Ctrl-C leaves the database as it was;
    in the second half of the work, it waits for the end of that.
    """
    folder = home_of(home)
    path = folder / layout.DATABASE
    before = asyncio.run(_room(folder))
    with _alone(folder):
        _check_volume(path, before)
        free = terminal.size(before.free_bytes)
        click.echo(f"{path}: {terminal.size(before.total_bytes)}, {free} of it free")
        # SQLite costs more than all of --help.
        from strop.proxy.store import database

        is_smaller = database.compact(path)
    if not is_smaller:
        raise click.ClickException(
            f"another program reads {path}; once it has ended, the next command makes it smaller"
        )
    after = asyncio.run(_room(folder))
    click.echo(f"Compacted: {terminal.size(after.total_bytes)}")


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the database, where neither a strop that serves nor a run can be writing to it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(rebuilding.hold(home, rebuilding.COMPACTION))
        except file_lock.Held as held:
            raise Conflict(
                f"the database is being {held.said.decode()} already; wait for that"
            ) from None
        # Who holds one of these from now on waits before it opens the database.
        if file_lock.said_by_holder(home / layout.SERVE_LOCK) is not None:
            raise Conflict(
                f"strop serves from {home}, at {serving_url(home)}, and could record nothing"
                " meanwhile; stop it first"
            )
        if run_lock.is_held(home / layout.RUNS):
            raise Conflict("a training run, or an import, is under way; wait for it, or cancel it")
        yield


def _check_volume(path: Path, room: "Room") -> None:
    """Refuse what the disk has no room for: a copy beside the database, and that in its WAL."""
    needed = 2 * (room.total_bytes - room.free_bytes) * 1.02
    free = shutil.disk_usage(os.path.realpath(path)).free
    if free < needed:
        raise StoreUnavailable(
            f"expected {terminal.size(needed)} free on the volume of {path}, twice what is in use"
            f" there, got {terminal.size(free)}; free some"
        )


async def _room(home: Path) -> "Room":
    async with open_store(home) as store:
        return await store.room()


COMMANDS: Final = (compact,)
