"""Who may open a database: while another process rebuilds it, and where it is an older strop's."""

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from store_values import database_in
from waiting import until

from strop.proxy.errors import StoreUnavailable
from strop.proxy.store import database, file_lock, layout, rebuilding, upgrading


@pytest.fixture
def older_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose database an older strop wrote."""
    monkeypatch.setattr(rebuilding, "_SILENT_S", 0)
    monkeypatch.setattr(rebuilding, "_POLL_S", 0)
    scripts = database.migrations()
    with monkeypatch.context() as older:
        older.setattr(database, "migrations", lambda: scripts[:2])
        database.connect(database_in(tmp_path)).close()
    return tmp_path


def is_older(said: str) -> bool:
    return "is an older strop's, and is brought up to date now" in said


async def opened(home: Path, said: list[str], *, is_server: bool = False) -> None:
    """Open the database, and close it."""
    async with upgrading.opening(home, said.append, is_server=is_server):
        database.connect(database_in(home)).close()


async def test_of_several_that_open_an_older_database_one_brings_it_up_to_date(
    older_home: Path,
) -> None:
    """The others wait, and say so once; also those that find a strop serving, or are that one."""
    first: list[str] = []
    others: list[list[str]] = [[], [], []]
    with file_lock.hold(older_home / layout.SERVE_LOCK, b""):
        async with upgrading.opening(older_home, first.append, is_server=True):
            waiting = [
                asyncio.create_task(opened(older_home, said, is_server=not number))
                for number, said in enumerate(others)
            ]
            await until(lambda: all(others))
            database.connect(database_in(older_home)).close()
        await asyncio.gather(*waiting)

    path = database_in(older_home)
    told = f"waiting: {path} is being brought up to date by another strop, which may take minutes"
    assert [True] == [is_older(one) for one in first]
    assert [[told]] * 3 == others


async def test_who_waits_for_one_that_dies_takes_its_place(older_home: Path) -> None:
    """The kernel says that nobody upgrades it any more."""
    program = (
        "import sys, time; from pathlib import Path; from strop.proxy.store import rebuilding\n"
        "with rebuilding.hold(Path(sys.argv[1]), rebuilding.UPGRADE):\n"
        "    print('held', flush=True); time.sleep(10_000)"
    )
    said: list[str] = []
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(older_home), stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert b"held\n" == await other.stdout.readline()
    waiting = asyncio.create_task(opened(older_home, said))
    await until(lambda: said)
    other.kill()
    await other.communicate()
    await waiting

    assert [False, True] == [is_older(one) for one in said]
    assert not database.is_older(database_in(older_home))


async def test_who_waits_can_be_stopped(older_home: Path) -> None:
    """By Ctrl-C, as it cancels a command; it leaves nothing held."""
    said: list[str] = []
    with rebuilding.hold(older_home, rebuilding.COMPACTION):
        waiting = asyncio.create_task(opened(older_home, said))
        await until(lambda: said)
        waiting.cancel()
        await asyncio.wait([waiting])

    assert waiting.cancelled()
    await opened(older_home, said)
    assert "is being compacted by another strop" in said[0]
    assert is_older(said[1])


async def test_what_takes_a_moment_is_waited_for_without_a_word(tmp_path: Path) -> None:
    """As most upgrades do."""
    said: list[str] = []
    with rebuilding.hold(tmp_path, rebuilding.UPGRADE):
        waiting = asyncio.create_task(opened(tmp_path, said))
        await asyncio.sleep(0)
    await waiting

    assert [] == said


def test_a_new_database_is_never_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would pass for an older strop's, which another process then refuses to touch."""
    path, seen = database_in(tmp_path), []
    statements = database._statements

    def looking(script: str) -> Iterator[str]:
        for statement in statements(script):
            seen.append(database.is_older(path))
            yield statement

    monkeypatch.setattr(database, "_statements", looking)
    database.connect(path).close()

    assert {False} == set(seen)


async def test_a_lock_that_can_not_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that another user has made, which root may open all the same."""

    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    said = "rebuild.lock: Permission denied; it must be yours"

    with pytest.raises(StoreUnavailable, match=said):
        await rebuilding.wait(tmp_path, print)
    with pytest.raises(StoreUnavailable, match=said), rebuilding.hold(tmp_path, "x"):
        pass


def test_what_root_makes_is_the_homes_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sudo strop compact` must not keep the owner's own commands from the home."""
    given: list[tuple[object, int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda *what: given.append(what))

    with rebuilding.hold(tmp_path, rebuilding.COMPACTION):
        pass

    owner = tmp_path.stat()
    assert [(tmp_path / rebuilding.LOCK_FILE, owner.st_uid, owner.st_gid)] == given
