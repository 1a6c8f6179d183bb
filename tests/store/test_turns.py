"""Processes that write to one database take turns, and no turn is held by the dead."""

import asyncio
import fcntl
import signal
import sys
from pathlib import Path

import pytest
from waiting import until

from strop.proxy.store import turns
from strop.proxy.store.turns import Turns

TAKES_IT = """
import sys
from pathlib import Path
from strop.proxy.store.turns import Turns
with Turns(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database whose writers take turns."""
    found = tmp_path / "strop.db"
    turns.begin(found)
    return found


def test_turns_are_taken_where_several_serve(path: Path) -> None:
    """And where they have ended, no more; the files are their owner's alone."""
    files = sorted(path.parent.iterdir())
    found = Turns.at(path)
    assert found is not None
    found.close()
    turns.end(path)

    assert ["strop.db-next", "strop.db-turn"] == [one.name for one in files]
    assert Turns.at(path) is None
    assert [] == [*path.parent.iterdir()]


def is_awaited(path: Path) -> bool:
    """Whether somebody waits for the turn: who does holds the other lock."""
    with path.with_name("strop.db-next").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_who_has_waited_is_next(path: Path) -> None:
    """Before the one that had the turn, and wants it again at once."""
    greedy, patient = Turns(path), Turns(path)
    had: list[str] = []

    def take(who: Turns, name: str) -> None:
        with who:
            had.append(name)

    with greedy:
        waiting = asyncio.create_task(asyncio.to_thread(take, patient, "patient"))
        await until(lambda: is_awaited(path))
    take(greedy, "greedy")
    await waiting
    greedy.close()
    patient.close()

    assert ["patient", "greedy"] == had


async def test_the_turn_of_a_killed_process_is_free(path: Path) -> None:
    """The kernel frees it."""
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TAKES_IT, str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    said = await holder.stdout.readline()
    mine = Turns(path)
    waiting = asyncio.create_task(asyncio.to_thread(mine.__enter__))
    holder.send_signal(signal.SIGKILL)
    await waiting
    mine.__exit__()
    mine.close()
    await holder.communicate()

    assert b"mine\n" == said
