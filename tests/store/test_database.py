"""The database file: made, brought up to date, refused, kept private."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_values import KEY, MODEL, NOON_MS, completion, database_in, rate
from waiting import LIMIT_S, until

from strop.proxy.errors import ConfigError, StoreUnavailable
from strop.proxy.store import completions, database
from strop.proxy.store.database import Query
from strop.proxy.store.records import Completion
from strop.proxy.store.store import Store


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_file_is_made_with_the_newest_schema(tmp_path: Path) -> None:
    """Opening nothing gives an empty database with every migration applied."""
    connection = database.connect(database_in(tmp_path))

    version = connection.execute("PRAGMA user_version").fetchone()
    owner = connection.execute("PRAGMA application_id").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    connection.close()

    assert (len(database.migrations()),) == version
    assert (database.APPLICATION_ID,) == owner
    assert {"completions", "choices", "feedback", "feedback_revisions"} <= tables


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    """A database that is up to date keeps its rows and its schema."""
    path = database_in(tmp_path)
    first = database.connect(path)
    first.execute("INSERT INTO write_probe (payload) VALUES (x'01')")
    schema = first.execute("SELECT sql FROM sqlite_schema").fetchall()
    first.close()

    second = database.connect(path)
    rows = second.execute("SELECT payload FROM write_probe").fetchall()
    schema_again = second.execute("SELECT sql FROM sqlite_schema").fetchall()
    second.close()

    assert [(b"\x01",)] == rows
    assert schema == schema_again


def test_an_older_database_gets_only_the_newer_migrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Migrations are applied in order, from the version that the file has."""
    path = database_in(tmp_path)
    database.connect(path).close()
    scripts = [
        *database.migrations(),
        "ALTER TABLE completions ADD COLUMN mood TEXT;\nCREATE TABLE moods (mood TEXT) STRICT;\n",
        "INSERT INTO moods VALUES ('sharp');",
    ]
    monkeypatch.setattr(database, "migrations", lambda: scripts)

    connection = database.connect(path)
    moods = connection.execute("SELECT mood FROM moods").fetchall()
    version = connection.execute("PRAGMA user_version").fetchone()
    connection.close()

    assert [("sharp",)] == moods
    assert (len(scripts),) == version


async def test_a_database_from_before_versions_keeps_all_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completions and ratings are read as they were; no base is known, so none is trained on."""
    path = database_in(tmp_path)
    scripts = database.migrations()
    monkeypatch.setattr(database, "migrations", lambda: scripts[:1])
    connection = database.connect(path)
    made = completion("cmp_1", session="mine", prompt_ids=array("i", [1, 2]))
    known = dict(zip(completions.COMPLETION_COLUMNS, _rows(made), strict=True))
    del known["base"], known["prompt_text"]
    _insert(connection, "completions", known)
    choice_row = completions.pack_completion(made).choices[0]
    answered = dict(zip(completions.CHOICE_COLUMNS, choice_row, strict=True))
    del answered["token_texts"]
    _insert(connection, "choices", answered)
    rated = {
        "id": "fb_1", "created_ms": NOON_MS, "completion": "cmp_1", "choice": 0, "session": "mine",
        "key_id": KEY, "rater": "", "source": "api", "state": "standing", "revision": 1,
        "digest": b"",
    }  # fmt: skip
    _insert(connection, "feedback", rated)
    said = {
        "feedback": "fb_1", "revision": 1, "created_ms": NOON_MS, "rating": 1.0, "original": "1",
        "tags": "[]", "scope": "completion",
    }  # fmt: skip
    _insert(connection, "feedback_revisions", said)
    connection.close()
    monkeypatch.setattr(database, "migrations", lambda: scripts)

    store = await Store.open(path, is_server=True)
    found = await store.get_completion("cmp_1")
    (given,) = (await store.list_feedback()).data
    fresh = await store.training.fresh_counts("base", base=MODEL)
    active = await store.versions.activation()
    superseding = await rate(store, "cmp_1", -1.0)
    await store.close()

    assert found is not None
    assert made == found.completion
    assert ("fb_1", "standing", 1.0) == (given.id, given.state, given.rating)
    assert (0, "base", "created") == (fresh.total, active.version, superseding.outcome)


def _rows(made: Completion) -> tuple[object, ...]:
    link = (made.session, "client", made.id, None, None, None)
    return completions.pack_completion(made).row + link


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    places = ", ".join("?" * len(row))
    connection.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", tuple(row.values())
    )


def test_a_migration_that_fails_leaves_the_version_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration happens whole or not at all; the ones before it stay."""
    path = database_in(tmp_path)
    first = database.migrations()
    broken = "CREATE TABLE half (x TEXT) STRICT;\nINSERT INTO nowhere VALUES (1);"
    monkeypatch.setattr(database, "migrations", lambda: [*first, broken])

    with pytest.raises(StoreUnavailable, match="nowhere"):
        database.connect(path)

    monkeypatch.setattr(database, "migrations", lambda: first)
    connection = database.connect(path)
    version = connection.execute("PRAGMA user_version").fetchone()
    half = connection.execute("SELECT name FROM sqlite_schema WHERE name = 'half'").fetchall()
    connection.close()
    assert (len(first),) == version
    assert [] == half


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """A schema from the future is left alone, and the error says to upgrade."""
    path = database_in(tmp_path)
    connection = database.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()

    with pytest.raises(ConfigError, match="got 999: a newer strop has written it; upgrade"):
        database.connect(path)


def test_another_programs_database_is_refused_untouched(tmp_path: Path) -> None:
    """A SQLite file with tables that aren't strop's is never written to."""
    path = database_in(tmp_path)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="one of another program"):
        database.connect(path)

    assert before == path.read_bytes()


def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    """A file of something else is named, with what to do."""
    path = database_in(tmp_path)
    path.write_bytes(b"[server]\nport = 8484\n" * 100)

    with pytest.raises(StoreUnavailable, match="no SQLite database; move it away"):
        database.connect(path)

    assert b"[server]\nport = 8484\n" * 100 == path.read_bytes()


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    """The store makes its file, not the folder around it."""
    with pytest.raises(StoreUnavailable, match="its folder must exist"):
        database.connect(tmp_path / "nowhere" / "strop.db")


def test_its_files_are_the_owners_alone(tmp_path: Path) -> None:
    """The database, its WAL and its index are 0600."""
    path = database_in(tmp_path)

    connection = database.connect(path)
    modes = {file.name: mode_of(file) for file in tmp_path.iterdir()}
    connection.close()

    assert {"strop.db": 0o600, "strop.db-wal": 0o600, "strop.db-shm": 0o600} == modes


def test_a_file_that_others_can_read_is_made_private(tmp_path: Path) -> None:
    """An existing file with a wider mode is narrowed to 0600."""
    path = database_in(tmp_path)
    path.touch()
    path.chmod(0o644)

    database.connect(path).close()

    assert 0o600 == mode_of(path)


def test_a_file_that_is_open_to_others_and_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is wrong with it, its mode and its owner; its folder has no part in it."""
    path = database_in(tmp_path)
    path.touch()
    path.chmod(0o644)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    expected = r"db to be for its owner alone \(0600\), got 0644, .*run strop as its owner"
    with pytest.raises(StoreUnavailable, match=expected):
        database.connect(path)


def test_what_a_killed_process_left_is_made_private(tmp_path: Path) -> None:
    """SQLite goes on with a WAL and an index that are there, whatever their mode."""
    (tmp_path / "elsewhere").mkdir()
    there = database_in(tmp_path / "elsewhere")
    running = database.connect(database_in(tmp_path))
    running.execute("INSERT INTO write_probe (payload) VALUES (x'01')")
    for name in ("strop.db", "strop.db-wal", "strop.db-shm"):
        copy = there.with_name(name)
        copy.write_bytes(database_in(tmp_path).with_name(name).read_bytes())
        copy.chmod(0o644)
    running.close()
    link = tmp_path / "link.db"
    link.symlink_to(there)

    connection = database.connect(link)
    rows = connection.execute("SELECT payload FROM write_probe").fetchall()
    modes = {file.name: mode_of(file) for file in there.parent.iterdir()}
    connection.close()

    assert [(b"\x01",)] == rows
    assert {"strop.db": 0o600, "strop.db-wal": 0o600, "strop.db-shm": 0o600} == modes


def test_its_pragmas_are_set(tmp_path: Path) -> None:
    """WAL, the chosen synchronous level, foreign keys and the busy timeout hold on a connection."""
    connection = database.connect(database_in(tmp_path), synchronous="normal", busy_timeout_s=1.5)
    found = [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    ]
    connection.close()

    assert ["wal", 1, 1, 1500] == found


def test_what_is_to_survive_a_power_cut_leaves_the_drive_s_cache(tmp_path: Path) -> None:
    """On macOS that is asked for by itself."""
    found = []
    for synchronous in ("full", "normal"):
        connection = database.connect(database_in(tmp_path), synchronous=synchronous)
        found += connection.execute("PRAGMA fullfsync").fetchone()
        connection.close()

    assert [1, 0] == found


def test_processes_that_open_a_new_database_together_all_get_it(tmp_path: Path) -> None:
    """Several workers may start on an empty home at once."""
    path = database_in(tmp_path)
    program = (
        "import sys; from pathlib import Path; from strop.proxy.store import database;"
        "print('ready', flush=True); sys.stdin.readline();"
        "database.connect(Path(sys.argv[1]), busy_timeout_s=240).close(); print('done')"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]

    for worker in workers:
        assert worker.stdout is not None
        assert "ready\n" == worker.stdout.readline()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    ends = [worker.communicate()[0] for worker in workers]

    assert ["done\n"] * 6 == ends
    assert [0] * 6 == [worker.returncode for worker in workers]


def test_a_new_file_that_another_process_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself doesn't wait for the lock that the switch to WAL needs."""
    path = database_in(tmp_path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            other.execute("ROLLBACK")

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=wait)
    monkeypatch.setattr(database, "time", clock)

    database.connect(path).close()
    other.close()

    assert 2 == len(waits)


def test_a_file_that_stays_locked_is_said(tmp_path: Path) -> None:
    """After the busy timeout the switch to WAL gives up."""
    other = sqlite3.connect(database_in(tmp_path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailable, match="another program holds its write lock"):
        database.connect(database_in(tmp_path), busy_timeout_s=0.02)
    other.close()


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    """The connection that reads refuses every write."""
    path = database_in(tmp_path)
    database.connect(path).close()
    reader = await database.connect_reader(path)

    try:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await reader.execute_fetchall("DELETE FROM completions")
    finally:
        await reader.close()


def test_what_is_said_of_any_path_can_be_sent() -> None:
    """A folder's name may be no UTF-8; errors and health are."""
    error = sqlite3.OperationalError("disk I/O error")

    said = database.unavailable(error, Path("/home/\udcff/strop.db")).message

    assert "the database /home/?/strop.db can't be used" in said
    assert said == said.encode().decode()


def test_text_that_sqlite_cannot_hold_is_replaced() -> None:
    """Lone surrogates, which JSON can smuggle in, become question marks; all else stays."""
    assert "a?b" == database.storable("a\ud800b")
    assert "naïve 日本 😀" == database.storable("naïve 日本 😀")
    assert database.storable(None) is None


def threads() -> set[threading.Thread]:
    """Those that run, but for the ones that asyncio lends."""
    return {one for one in threading.enumerate() if not one.name.startswith("asyncio")}


async def test_a_store_whose_opening_is_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither the writer's thread nor the reader's, though it is as good as open."""
    await (await Store.open(database_in(tmp_path))).close()
    before = threads()
    other = sqlite3.connect(database_in(tmp_path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    opening = asyncio.create_task(
        Store.open(database_in(tmp_path), busy_timeout_s=LIMIT_S, is_server=True)
    )
    await until(lambda: len(threads() - before) == 2)

    opening.cancel()
    other.close()
    await asyncio.wait([opening])

    assert opening.cancelled()
    await until(lambda: not threads() - before)


async def test_a_reader_whose_opening_is_given_up_is_closed(tmp_path: Path) -> None:
    """Its thread opens it all the same; from Python 3.13 on, one that is left open is an error."""
    path = database_in(tmp_path)
    database.connect(path).close()
    before = threads()
    opening = asyncio.create_task(database.connect_reader(path))
    for _ in range(2):
        await asyncio.sleep(0)

    opening.cancel()
    await asyncio.wait([opening])

    assert opening.cancelled()
    await until(lambda: not threads() - before)


async def test_a_store_whose_closing_is_given_up_still_writes_what_waits(tmp_path: Path) -> None:
    """A long read must not keep it from that."""
    store = await Store.open(database_in(tmp_path))
    endless = Query(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n LIMIT ?",
        (300_000,),
        tuple,
    )
    reading = asyncio.create_task(store._reader.all(endless))
    await asyncio.sleep(0)

    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing, reading])

    assert store.health.ok
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await store.withdraw("fb_1", None)
    await store.close()
