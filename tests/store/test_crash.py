"""What survives a process that is killed while it writes."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from store_values import database_in
from waiting import LIMIT_S

from strop.proxy.store.store import Store

pytestmark = pytest.mark.faults

SUPPORT = str(Path(__file__).parents[1] / "support")

# Writes completions, 16 at a time, and prints the id of each once it is acknowledged.
WRITER = """
import asyncio, sys
from functools import partial
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from store_values import choice, completion, rating, never
from strop.proxy.store.store import Store

async def write(store, lane):
    for number in range(1_000_000):
        id_ = f"cmp_{lane:02}{number:07}"
        body = b'{"n": %d, "pad": "%b"}' % (number, b"x" * (number % 5000))
        build = partial(completion, id_, request=body, choices=(choice(0), choice(1)))
        await store.commit_completion(build, len(body))
        await store.add_feedback(rating(id_), never)
        print(id_, flush=True)

async def main():
    store = await Store.open(Path(sys.argv[1]))
    await asyncio.gather(*(write(store, lane) for lane in range(16)))

asyncio.run(main())
"""


@pytest.mark.parametrize("num_seen", [1, 40, 400])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, num_seen: int) -> None:
    """After kill -9 the database is sound and holds each acknowledged completion and rating."""
    path = database_in(tmp_path)
    acknowledged = run_and_kill(path, num_seen)

    store = await Store.open(path)
    found = [await store.get_completion(id_) for id_ in acknowledged]
    num_standing = (await store.feedback_counts()).total
    await store.close()

    assert len(acknowledged) >= num_seen
    assert [2] * len(acknowledged) == [len(one.completion.choices) for one in found if one]
    assert num_standing >= len(acknowledged)
    with sqlite3.connect(path) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        assert [] == connection.execute("PRAGMA foreign_key_check").fetchall()
        assert (
            []
            == connection.execute(
                "SELECT id FROM completions AS c WHERE"
                " (SELECT count(*) FROM choices WHERE completion = c.id) <> 2"
            ).fetchall()
        )
        assert (
            []
            == connection.execute(
                "SELECT id FROM feedback WHERE id NOT IN (SELECT feedback FROM feedback_revisions)"
            ).fetchall()
        )
    connection.close()


def test_a_process_that_does_not_close_its_store_ends(tmp_path: Path) -> None:
    """Neither thread keeps a process alive whose loop is gone; what was acknowledged is there."""
    program = (
        "import asyncio, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from store_values import record; from strop.proxy.store.store import Store\n"
        "async def main():\n"
        "    store = await Store.open(Path(sys.argv[1]))\n"
        "    await record(store, 'cmp_1')\n"
        "    await store.list_completions()\n"
        "    raise SystemExit(3)\n"
        "asyncio.run(main())"
    )
    path = database_in(tmp_path)

    child = subprocess.run(
        [sys.executable, "-c", program, str(path), SUPPORT],
        timeout=LIMIT_S,
    )

    assert 3 == child.returncode
    with sqlite3.connect(path) as connection:
        assert [("cmp_1",)] == connection.execute("SELECT id FROM completions").fetchall()
    connection.close()


def run_and_kill(path: Path, num_seen: int) -> list[str]:
    """Run the writer, kill it once it has acknowledged `num_seen`, and return all that it did."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), SUPPORT], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(num_seen)]
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.readlines()
    child.stdout.close()
    assert -signal.SIGKILL == child.wait()
    return [line.decode().strip() for line in lines if line.endswith(b"\n")]
