"""The one writer: group commit, and what happens when the store fails."""

import asyncio
import fcntl
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from store_values import database_in
from waiting import LIMIT_S, until

from strop.proxy.errors import NotFound, StoreUnavailable
from strop.proxy.store import database, turns
from strop.proxy.store import writer as writing
from strop.proxy.store.turns import Turns
from strop.proxy.store.writer import Writer

Operation = Callable[[sqlite3.Connection], int]


@pytest.fixture
async def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Writer]:
    """A writer with a table of notes, that waits little and retries fast."""
    monkeypatch.setattr(writing, "RETRY_S", 0.02)
    made = Writer(
        database_in(tmp_path),
        busy_timeout_s=0.05,
        is_server=True,
        max_queued=50,
        max_queued_bytes=1000,
    )
    await made.open()
    await made.submit(lambda c: c.execute("CREATE TABLE notes (note INTEGER UNIQUE, text BLOB)"))
    yield made
    await made.aclose()


def note(number: int, num_bytes: int = 0) -> Operation:
    """An operation that writes one row and returns its number."""

    def run(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO notes VALUES (?, zeroblob(?))", (number, num_bytes))
        return number

    return run


def notes_in(folder: Path) -> list[int]:
    """The notes as another program sees them."""
    with sqlite3.connect(database_in(folder)) as other:
        found = [number for (number,) in other.execute("SELECT note FROM notes ORDER BY rowid")]
    other.close()
    return found


def hold(writer: Writer) -> Callable[[], None]:
    """Keep the writer's thread busy, so that what is submitted next is one batch."""
    released, is_held = threading.Event(), threading.Event()

    def prepare() -> Operation:
        is_held.set()
        released.wait(30)
        return lambda _: 0

    writer.submit_prepared(prepare)
    is_held.wait(30)
    return released.set


def damage(path: Path, table: str) -> None:
    """Overwrite the first page of a table."""
    connection = database.connect(path)
    (page,) = connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)
    ).fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


async def outcomes(*futures: "asyncio.Future[int]") -> list[object]:
    return await asyncio.gather(*futures, return_exceptions=True)


async def test_an_operation_is_durable_once_acknowledged(writer: Writer, tmp_path: Path) -> None:
    """A future has its operation's result, and by then others can read what was written."""
    result = await writer.submit(note(1))

    assert 1 == result
    assert [1] == notes_in(tmp_path)


async def test_operations_run_in_the_order_of_their_submission(
    writer: Writer, tmp_path: Path
) -> None:
    """First in, first written, across batches too."""
    futures = [writer.submit(note(number)) for number in range(40)]

    results = await asyncio.gather(*futures)

    assert list(range(40)) == results
    assert list(range(40)) == notes_in(tmp_path)


async def test_what_waits_is_one_transaction(writer: Writer, tmp_path: Path) -> None:
    """All that queued while the thread was busy becomes visible to others at once."""
    seen: list[list[int]] = []

    def look(_: sqlite3.Connection) -> int:
        seen.append(notes_in(tmp_path))
        return 0

    release = hold(writer)
    waiting = [writer.submit(op) for op in (note(1), look, note(2), look, note(3))]
    release()
    await asyncio.gather(*waiting)

    assert [[], []] == seen
    assert [1, 2, 3] == notes_in(tmp_path)


async def test_an_operation_that_fails_leaves_nothing_and_fails_alone(
    writer: Writer, tmp_path: Path
) -> None:
    """An error of ours undoes its own writes; the rest of the batch is written in order."""

    def half(connection: sqlite3.Connection) -> int:
        note(99)(connection)
        raise NotFound("nothing there")

    release = hold(writer)
    waiting = [writer.submit(op) for op in (note(1), half, note(2))]
    release()
    first, failed, second = await outcomes(*waiting)

    assert (1, 2) == (first, second)
    assert isinstance(failed, NotFound)
    assert [1, 2] == notes_in(tmp_path)
    assert writer.health.ok


async def test_a_statement_that_fails_fails_alone(writer: Writer, tmp_path: Path) -> None:
    """A constraint or a mistake in an operation is no failure of the store."""

    def mistaken(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO nowhere VALUES (1)")
        return 0

    release = hold(writer)
    waiting = [writer.submit(op) for op in (note(1), note(1), mistaken, note(2))]
    release()
    first, twice, wrong, second = await outcomes(*waiting)

    assert (1, 2) == (first, second)
    assert isinstance(twice, sqlite3.IntegrityError)
    assert isinstance(wrong, sqlite3.OperationalError)
    assert [1, 2] == notes_in(tmp_path)
    assert writer.health.ok


async def test_what_cannot_be_prepared_fails_alone(writer: Writer, tmp_path: Path) -> None:
    """An exception while an operation is made reaches its submitter only."""

    def prepare() -> Operation:
        raise ValueError("no such thing")

    release = hold(writer)
    waiting = [writer.submit(note(1)), writer.submit_prepared(prepare), writer.submit(note(2))]
    release()
    first, failed, second = await outcomes(*waiting)

    assert (1, 2) == (first, second)
    assert isinstance(failed, ValueError)
    assert [1, 2] == notes_in(tmp_path)


async def test_a_commit_that_fails_acknowledges_nothing(writer: Writer, tmp_path: Path) -> None:
    """If COMMIT fails, each operation of the batch fails, and none of it is there."""

    def dangle(connection: sqlite3.Connection) -> int:
        connection.execute("PRAGMA defer_foreign_keys = ON")
        connection.execute(
            "INSERT INTO choices (completion, choice, created_ms, message)"
            " VALUES ('none', 0, 0, x'00')"
        )
        return 0

    release = hold(writer)
    waiting = [writer.submit(op) for op in (note(1), dangle, note(2))]
    release()
    found = await outcomes(*waiting)

    assert [StoreUnavailable] * 3 == [type(one) for one in found]
    assert [] == notes_in(tmp_path)


async def test_a_full_disk_fails_the_batch_and_says_so(writer: Writer, tmp_path: Path) -> None:
    """Once a page can't be had, the batch fails, health says why, and retries don't deny it."""
    tried: list[str] = []
    await writer.submit(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
    await writer.submit(lambda c: c.set_trace_callback(tried.append))

    release = hold(writer)
    waiting = [writer.submit(op) for op in (note(1), note(2, num_bytes=100_000))]
    release()
    found = await outcomes(*waiting)

    assert [StoreUnavailable] * 2 == [type(one) for one in found]
    assert "the disk is full; free space" in str(found[0])
    await until(lambda: sum("zeroblob" in sql for sql in tried) > 3)
    assert not writer.health.ok
    assert "the disk is full" in (writer.health.reason or "")
    assert [] == notes_in(tmp_path)


async def test_a_full_disk_that_is_freed_takes_writes_again(writer: Writer, tmp_path: Path) -> None:
    """What was refused can be submitted again and is then written once."""
    await writer.submit(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
    await outcomes(writer.submit(note(1, num_bytes=100_000)))

    await writer.submit(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
    result = await writer.submit(note(1, num_bytes=100_000))

    assert 1 == result
    assert [1] == notes_in(tmp_path)
    assert writer.health.ok


async def test_a_lock_held_by_another_program_fails_the_batch(
    writer: Writer, tmp_path: Path
) -> None:
    """A lock that outlasts the busy timeout is said; after it, health comes back."""
    other = sqlite3.connect(database_in(tmp_path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    since_ms = writer.health.since_ms

    (found,) = await outcomes(writer.submit(note(1)))
    locked = writer.health
    other.execute("ROLLBACK")
    other.close()
    await until(lambda: writer.health.ok)

    assert "another program holds its write lock" in str(found)
    assert not locked.ok
    assert locked.since_ms >= since_ms
    assert writer.health.reason is None
    assert 2 == await writer.submit(note(2))
    assert [2] == notes_in(tmp_path)
    with sqlite3.connect(database_in(tmp_path)) as reader:
        assert [] == reader.execute("SELECT * FROM write_probe").fetchall()
    reader.close()


async def test_a_damaged_database_is_said(tmp_path: Path) -> None:
    """A page that can't be read fails the batch with what to do about it."""
    damage(database_in(tmp_path), "completions")
    writer = Writer(database_in(tmp_path))
    await writer.open()

    try:
        (found,) = await outcomes(
            writer.submit(lambda c: c.execute("DELETE FROM completions WHERE num = 1").rowcount)
        )
    finally:
        await writer.aclose()

    assert isinstance(found, StoreUnavailable)
    assert "the file is damaged" in found.message


async def test_a_queue_that_is_too_long_refuses_at_once(writer: Writer, tmp_path: Path) -> None:
    """Beyond the count, a write is refused where it is submitted; what was accepted is written."""
    release = hold(writer)
    accepted = [writer.submit(note(number)) for number in range(49)]

    with pytest.raises(StoreUnavailable, match="50 of 50 writes"):
        writer.submit(note(50))
    full = writer.health
    release()
    await asyncio.gather(*accepted)

    assert 50 == full.num_queued
    assert list(range(49)) == notes_in(tmp_path)
    assert 0 == writer.health.num_queued


async def test_a_queue_that_holds_too_much_refuses_at_once(writer: Writer) -> None:
    """Beyond the bytes, a write is refused; once what waits is written there is room again."""
    release = hold(writer)
    accepted = writer.submit(note(1), size_bytes=900)

    with pytest.raises(StoreUnavailable, match="900 of 1000 bytes"):
        writer.submit(note(2), size_bytes=101)
    release()
    await accepted

    assert 0 == writer.health.queued_bytes
    assert 2 == await writer.submit(note(2), size_bytes=1000)


async def test_a_submitter_that_gives_up_does_not_undo_its_write(
    writer: Writer, tmp_path: Path
) -> None:
    """A cancelled future cancels nothing."""
    release = hold(writer)
    waiting = writer.submit(note(1))
    waiting.cancel()
    release()
    await writer.submit(note(2))

    assert [1, 2] == notes_in(tmp_path)


async def test_a_batch_is_bounded_by_bytes(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large operations don't keep many others waiting: a batch ends once it holds enough."""
    monkeypatch.setattr(writing, "MAX_BATCH_BYTES", 200)
    done: list[str] = []
    await writer.submit(lambda c: c.set_trace_callback(done.append))

    release = hold(writer)
    waiting = [writer.submit(note(number), size_bytes=100) for number in range(5)]
    release()
    await asyncio.gather(*waiting)

    # The one that held the thread, then two by two.
    assert 4 == done.count("BEGIN IMMEDIATE")
    assert list(range(5)) == notes_in(tmp_path)


@pytest.mark.parametrize(("bound", "value"), [("CHECKPOINT_JOBS", 3), ("CHECKPOINT_BYTES", 300)])
async def test_a_checkpoint_comes_after_so_many_writes(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    """The WAL goes into the database after every so many operations, or bytes."""
    monkeypatch.setattr(writing, bound, value)
    done: list[str] = []
    # The writer has made its table by now, which counts too.
    await writer.submit(lambda c: c.set_trace_callback(done.append))

    for number in range(8):
        await writer.submit(note(number), size_bytes=100)
    await writer.submit(lambda c: c.set_trace_callback(None))

    kinds = ["checkpoint" if "checkpoint" in sql else sql for sql in done]
    order = [kind for kind in kinds if kind in ("checkpoint", "COMMIT")]
    assert order.count("checkpoint") in (2, 3)
    assert "COMMIT" == order[order.index("checkpoint") - 1]


async def test_a_stall_ends_though_nothing_is_written(writer: Writer) -> None:
    """It may be said when all is written, and where answers must be recorded none comes then."""
    seen = threading.Event()
    seen.set()
    # The thread waits before each of its statements until the reason was seen.
    await writer.submit(lambda c: c.set_trace_callback(lambda _: seen.wait(LIMIT_S)))
    number = writer._thread.ident
    assert number is not None
    await until(lambda: sys._current_frames()[number].f_code.co_name == "_work")
    seen.clear()

    writer.stall("the disk is too slow")
    said = writer.reason
    seen.set()

    assert "the disk is too slow" == said
    await until(lambda: writer.reason is None)


async def test_emptying_the_wal_waits_no_longer_than_it_may(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of another program keeps it; the writer waits for locks as long as before."""
    monkeypatch.setattr(writing, "EMPTYING_S", 0.01)
    wal = tmp_path / "strop.db-wal"
    other = sqlite3.connect(database_in(tmp_path), isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM notes").fetchall()
    await writer.submit(note(1))
    writer.leave_word()

    kept = await writer.empty_wal()
    size_bytes = wal.stat().st_size
    is_left = (tmp_path / "strop.db-unerased").exists()
    other.close()
    emptied = await writer.empty_wal()

    assert is_left
    assert (False, True) == (kept, emptied)
    assert size_bytes > 0 == wal.stat().st_size
    assert [1] == notes_in(tmp_path)
    assert (50,) == await writer.submit(lambda c: c.execute("PRAGMA busy_timeout").fetchone())


async def test_a_wal_that_cannot_be_emptied_is_said(writer: Writer) -> None:
    """The error is the store's own."""

    def refuse(_: int, pragma: str | None, *__: object) -> int:
        return sqlite3.SQLITE_DENY if pragma == "wal_checkpoint" else sqlite3.SQLITE_OK

    await writer.submit(lambda c: c.set_authorizer(refuse))
    with pytest.raises(StoreUnavailable, match="not authorized"):
        await writer.empty_wal()
    await writer.submit(lambda c: c.set_authorizer(None))


async def test_the_wal_is_emptied_where_word_was_left_by_who_serves_alone(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: what is written in place of what was there takes less time."""
    monkeypatch.setattr(writing, "EMPTYING_EVERY_S", 0.0)
    monkeypatch.setattr(writer, "_emptying_due_s", 0.0)
    unerased = tmp_path / "strop.db-unerased"
    emptied: list[str] = []
    await writer.submit(lambda c: c.set_trace_callback(emptied.append))

    # Once a batch is acknowledged, what came after the one before it is over.
    for number in range(3):
        await writer.submit(note(number))
    undisturbed = len([sql for sql in emptied if "TRUNCATE" in sql])
    writer.leave_word()
    await until(lambda: not unerased.exists())
    for number in range(3, 6):
        await writer.submit(note(number))
    await writer.submit(lambda c: c.set_trace_callback(None))

    assert (0, 1) == (undisturbed, len([sql for sql in emptied if "TRUNCATE" in sql]))

    worker = Writer(database_in(tmp_path))
    await writer.aclose()
    await worker.open()
    worker.leave_word()
    for number in range(6, 9):
        await worker.submit(note(number))
    await worker.aclose()

    assert unerased.exists()
    assert 0o600 == unerased.stat().st_mode & 0o777


async def test_word_that_cannot_be_left_is_said(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the store's own."""
    monkeypatch.setattr(writer, "_unerased", tmp_path / "nowhere" / "strop.db-unerased")

    with pytest.raises(StoreUnavailable, match="its folder must be writable"):
        writer.leave_word()


async def test_emptying_waits_briefly_and_writing_as_long_as_before(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can write while it waits."""
    monkeypatch.setattr(writing, "EMPTYING_S", 0.013)
    asked: list[str] = []
    await writer.submit(lambda c: c.set_trace_callback(asked.append))

    await writer.empty_wal()
    await writer.submit(lambda c: c.set_trace_callback(None))

    assert [
        "PRAGMA busy_timeout = 13",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA busy_timeout = 50",
    ] == [sql for sql in asked if sql.startswith("PRAGMA")]


async def test_the_wal_is_emptied_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several write."""
    monkeypatch.setattr(writing, "RETRY_S", 0.02)
    path = database_in(tmp_path)
    turns.begin(path)
    writer, other = Writer(path, is_server=True), Turns(path)
    await writer.open()
    with other:
        writer.leave_word()
        monkeypatch.setattr(writer, "_emptying_due_s", 0.0)
        await until(lambda: _is_held(path.with_name("strop.db-next")))
        is_left = (tmp_path / "strop.db-unerased").exists()
    await until(lambda: not (tmp_path / "strop.db-unerased").exists())
    other.close()
    await writer.aclose()

    assert is_left


def _is_held(lock: Path) -> bool:
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_a_wal_that_cannot_be_emptied_unasked_hinders_nobody(
    writer: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged and tried again, also while nothing is written."""
    monkeypatch.setattr(writing, "EMPTYING_EVERY_S", 0.01)

    def refuse(_: int, pragma: str | None, *__: object) -> int:
        return sqlite3.SQLITE_DENY if pragma == "wal_checkpoint" else sqlite3.SQLITE_OK

    await writer.submit(lambda c: c.set_authorizer(refuse))
    monkeypatch.setattr(writer, "_emptying_due_s", 0.0)
    writer.leave_word()
    await until(lambda: caplog.text.count("a checkpoint failed") > 1)
    noted = await writer.submit(note(1))
    await writer.submit(lambda c: c.set_authorizer(None))
    await until(lambda: (tmp_path / "strop.db-wal").stat().st_size == 0)

    assert 1 == noted
    assert (50,) == await writer.submit(lambda c: c.execute("PRAGMA busy_timeout").fetchone())


async def test_closing_writes_what_waits(writer: Writer, tmp_path: Path) -> None:
    """Everything accepted before the close is written by it, and acknowledged."""
    release = hold(writer)
    waiting = [writer.submit(note(number)) for number in range(10)]
    release()

    await writer.aclose()

    assert list(range(10)) == [future.result() for future in waiting]
    assert list(range(10)) == notes_in(tmp_path)


async def test_closing_twice_is_closing(writer: Writer) -> None:
    """A closed writer closes again without a word, and refuses writes."""
    await writer.aclose()
    await writer.aclose()

    with pytest.raises(StoreUnavailable, match="the store is closed"):
        writer.submit(note(1))


async def test_closing_leaves_one_file(tmp_path: Path) -> None:
    """The last connection to close brings the WAL into the database."""
    writer = Writer(database_in(tmp_path))
    await writer.open()
    await writer.submit(lambda c: c.execute("CREATE TABLE notes (note INTEGER)"))

    await writer.aclose()

    assert ["strop.db"] == files_in(tmp_path)


def test_closing_works_when_the_loop_is_gone(tmp_path: Path) -> None:
    """What waits is written even if nobody is left to be told."""

    async def leave() -> Writer:
        writer = Writer(database_in(tmp_path))
        await writer.open()
        await writer.submit(lambda c: c.execute("CREATE TABLE notes (note INTEGER, text BLOB)"))
        hold(writer)()
        for number in range(5):
            writer.submit(note(number))
        return writer

    writer = asyncio.run(leave())
    writer.close()
    writer.close()

    assert list(range(5)) == notes_in(tmp_path)


async def test_closing_a_locked_store_gives_up_after_one_wait(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first batch of the close fails, the others fail with it and don't wait again."""
    monkeypatch.setattr(writing, "MAX_BATCH", 2)
    begun: list[str] = []
    await writer.submit(lambda c: c.set_trace_callback(begun.append))
    other = sqlite3.connect(database_in(tmp_path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    release = hold(writer)
    waiting = [writer.submit(note(number)) for number in range(8)]

    closing = asyncio.create_task(writer.aclose())
    await until(lambda: "closed" in _refusal(writer))
    release()
    found = await outcomes(*waiting)
    await closing
    other.close()

    assert [StoreUnavailable] * 8 == [type(one) for one in found]
    assert 1 == sum("BEGIN" in sql for sql in begun)


def _refusal(writer: Writer) -> str:
    try:
        writer.submit(lambda _: 0, size_bytes=10**9)
    except StoreUnavailable as error:
        return error.message
    return ""


async def test_a_database_that_cannot_be_opened_is_said_by_open(tmp_path: Path) -> None:
    """Opening fails where it is awaited, and closing afterwards is quiet."""
    writer = Writer(tmp_path / "nowhere" / "strop.db")

    with pytest.raises(StoreUnavailable, match="its folder must exist"):
        await writer.open()
    await writer.aclose()


async def test_opening_can_be_given_up(tmp_path: Path) -> None:
    """The thread finds out by itself, and ends when it is told to."""
    other = sqlite3.connect(database_in(tmp_path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = Writer(database_in(tmp_path), busy_timeout_s=LIMIT_S)
    opening = asyncio.create_task(writer.open())
    await until(lambda: "strop-writer" in [one.name for one in threading.enumerate()])

    opening.cancel()
    other.close()
    await writer.aclose()

    assert opening.cancelled()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        writer.submit(note(1))
