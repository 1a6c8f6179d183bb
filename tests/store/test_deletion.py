"""Completions that are deleted: what goes with them, and what others keep."""

import asyncio
import contextlib
import random
import resource
import sqlite3
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from store_values import (
    KEY,
    MODEL,
    NOON_MS,
    OTHER_KEY,
    always,
    choice,
    completion,
    database_in,
    first_of_session,
    learnable,
    never,
    rate,
    rating,
    record,
    version,
)
from waiting import until

from strop.proxy.errors import StoreUnavailable, UnknownCompletion
from strop.proxy.store import deletion, deletion_store, rated_turns, training_queries, writer
from strop.proxy.store.deletion_store import Deleted
from strop.proxy.store.records import CompletionFilter, FeedbackFilter, StoredCompletion
from strop.proxy.store.store import Store

SECRET = b"sk-do-not-keep"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def left(store: Store) -> list[str]:
    """The ids of what is recorded, the oldest first."""
    page = await store.list_completions(limit=1000)
    return [one.id for one in reversed(page.data)]


async def test_a_completion_is_deleted_with_its_choices(store: Store) -> None:
    """What isn't there is passed over; the others stay."""
    await record(store, "cmp_1", choices=(choice(0), choice(1)))
    await record(store, "cmp_2")

    done = await store.deletion.completions(["cmp_1", "cmp_no"])

    assert Deleted(1, 0, (), is_erased=True) == done
    assert ["cmp_2"] == await left(store)
    assert await store.get_completion("cmp_1") is None
    with pytest.raises(UnknownCompletion):
        await store.add_feedback(rating("cmp_1"), never)


async def test_its_ratings_are_withdrawn_and_keep_no_words(store: Store) -> None:
    """Each revision's, nor who rated; the note says why."""
    await record(store, "cmp_1")
    given = (await rate(store, "cmp_1", comment="why", correction="so", tags=("style",))).feedback
    other = (await rate(store, "cmp_1", -1.0, rater="ann")).feedback

    await store.deletion.completions(["cmp_1"])

    found = await store.get_feedback(given.id)
    assert found is not None
    assert ("withdrawn", "the completion was deleted") == (found.state, found.note)
    (said,) = await store.list_revisions(given.id)
    assert (None, None, ()) == (said.comment, said.correction, said.tags)
    assert (await store.feedback_counts()).total == 0
    assert {(given.id, ""), (other.id, "")} == {
        (one.id, one.rater)
        for one in (await store.list_feedback(FeedbackFilter(state="withdrawn"))).data
    }


def of_client(folder: Path) -> list[tuple[Any, ...]]:
    """What all feedback has of its client's words and ids."""
    with contextlib.closing(sqlite3.connect(database_in(folder))) as connection:
        sql = "SELECT completion, session, idempotency, digest FROM feedback ORDER BY num"
        return connection.execute(sql).fetchall()


async def test_its_ratings_keep_no_id_of_the_clients(store: Store, tmp_path: Path) -> None:
    """Nor the session's name, once nothing of that is left; the request can't be repeated."""
    sent: dict[str, Any] = {"idempotency": "my-id", "digest": b"of it"}
    theirs: tuple[Any, ...] = ("cmp_theirs", "mine", None, b"")
    for id_, key_id in (("cmp_1", KEY), ("cmp_2", KEY), ("cmp_theirs", OTHER_KEY)):
        await record(store, id_, session="mine", key_id=key_id)
    await rate(store, "cmp_1", **sent)
    await rate(store, "cmp_theirs", key_id=OTHER_KEY)

    await store.deletion.completions(["cmp_1"])
    while_some_is_left = of_client(tmp_path)
    await store.deletion.completions(["cmp_2"])
    in_the_end = of_client(tmp_path)

    assert [("cmp_1", "mine", None, b""), theirs] == while_some_is_left
    assert [("cmp_1", None, None, b""), theirs] == in_the_end
    with pytest.raises(UnknownCompletion):
        await store.add_feedback(rating("cmp_1", **sent), never)


async def test_a_session_stays_held_out_or_not_where_what_began_it_is_deleted(
    store: Store, tmp_path: Path
) -> None:
    """As long as anything of it is left."""
    for id_ in ("cmp_1", "cmp_2"):
        await record(store, id_, session="mine", base=MODEL)
    await rate(store, "cmp_1")

    await store.deletion.completions(["cmp_1"])
    await rate(store, "cmp_2")

    with contextlib.closing(sqlite3.connect(database_in(tmp_path))) as connection:
        roots = connection.execute("SELECT completion, root FROM feedback ORDER BY num").fetchall()
    assert [("cmp_1", "cmp_1"), ("cmp_2", "cmp_1")] == roots


async def test_versions_that_learned_from_it_are_stale(store: Store) -> None:
    """They name the rating still."""
    learned = await learnable(store, 1)
    made = await version(store, learned)
    given = await store.get_feedback(learned[0])
    assert given is not None

    await store.deletion.completions([given.completion])

    found = await store.versions.get(made.id)
    assert found is not None
    assert f"{made.id} learned from {learned[0]}, which was withdrawn since" == found.stale
    assert [] == [t async for t in store.training.fresh_turns("base", base=MODEL)]


async def test_who_learned_from_it_is_named(store: Store) -> None:
    """Through an ancestor, too, and from a rating that was withdrawn before; not who is gone."""
    learned = await learnable(store, 1)
    await version(store, learned)
    await version(store, await learnable(store, 2))
    await version(store, parent="v1")
    await store.versions.remove((await version(store, learned)).id, actor="cli")
    await store.withdraw(learned[0], None)

    none = await store.deletion.completions(["cmp_no"])
    done = await store.deletion.completions([first_of_session(1)])

    assert Deleted(0, 0, (), is_erased=True) == none
    assert Deleted(1, 0, ("v1", "v3"), is_erased=True) == done


async def test_the_ratings_that_went_with_it_are_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that stood, of each transaction; not what was withdrawn or superseded before."""
    monkeypatch.setattr(deletion_store, "_BATCH", 1)
    for id_ in ("cmp_1", "cmp_2", "cmp_3"):
        await record(store, id_, session="mine")
    taken_back = (await rate(store, "cmp_1", rater="eve")).feedback
    await store.withdraw(taken_back.id, None)
    for id_, value, rater in (("cmp_1", 1.0, "ann"), ("cmp_1", -1.0, "ann"), ("cmp_1", 1.0, "bob")):
        await rate(store, id_, value, rater=rater)
    await rate(store, "cmp_3")

    assert Deleted(3, 3, (), is_erased=True) == await store.deletion.all_of(session="mine")


@pytest.fixture
async def large(tmp_path: Path) -> AsyncIterator[Store]:
    """A store of twenty completions that take some 500 kB, all of it in the file."""
    store = await Store.open(database_in(tmp_path))
    for number in range(20):
        request = random.Random(number).randbytes(20_000).hex().encode()
        await record(store, f"cmp_{number:02}", request=request, session="mine")
    await store.close()
    store = await Store.open(database_in(tmp_path))
    yield store
    await store.close()


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let no file grow, or be written, beyond that: to SQLite a volume that takes no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("how", ["named", "of a session", "of a key", "old"])
async def test_what_went_until_the_store_failed_is_told(
    large: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """With who learned from it, which nobody can tell later; the same again goes on from there."""
    monkeypatch.setattr(deletion_store, "_BATCH", 1)
    given = (await rate(large, "cmp_00")).feedback if how != "old" else None
    await version(large, *([] if given is None else [(given.id, given.revision)]))
    deletes: dict[str, Callable[[], Awaitable[Deleted]]] = {
        "named": lambda: large.deletion.completions([f"cmp_{n:02}" for n in range(20)]),
        "of a session": lambda: large.deletion.all_of(session="mine"),
        "of a key": lambda: large.deletion.all_of(key_id=KEY),
        "old": lambda: large.deletion.unrated(NOON_MS + 1),
    }

    with files_of_at_most(300_000):
        some = await deletes[how]()
    still_there = await left(large)
    rest = await deletes[how]()

    assert 0 < some.num == 20 - len(still_there) < 20
    assert (False, len(still_there), True) == (some.is_whole, rest.num, rest.is_whole)
    assert "strop.db can't be used: the disk gave an I/O error" in (some.failure or "")
    assert ((), 0) if given is None else (("v1",), 1) == (some.learners, some.num_ratings)
    assert (None, True) == (rest.failure, rest.is_erased)


async def test_a_store_that_fails_before_anything_went_deletes_nothing(large: Store) -> None:
    """That is an error like any other."""
    with files_of_at_most(1000), pytest.raises(StoreUnavailable, match="the disk gave an I/O err"):
        await large.deletion.all_of(session="mine")

    assert 20 == len(await left(large))


async def test_where_what_went_can_not_be_overwritten_why_is_told(
    large: Store, tmp_path: Path
) -> None:
    """Word is left, as where another program reads."""
    with files_of_at_most(200_000):
        done = await large.deletion.completions(["cmp_19"])

    assert (1, True, False) == (done.num, done.is_whole, done.is_erased)
    assert "the disk gave an I/O error" in (done.failure or "")
    assert (tmp_path / "strop.db-unerased").exists()


async def test_who_learned_from_any_of_it_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is more than what one transaction deletes."""
    monkeypatch.setattr(deletion_store, "_BATCH", 1)
    for number in range(1, 4):
        await version(store, await learnable(store, number))

    done = await store.deletion.completions([first_of_session(number) for number in (3, 1)])

    assert ("v1", "v3") == done.learners


async def test_what_is_named_twice_counts_once(store: Store) -> None:
    """However it is named."""
    await record(store, "cmp_1")

    assert 1 == (await store.deletion.completions(["cmp_1", "cmp_1"])).num


async def test_a_session_is_deleted_whole(store: Store) -> None:
    """Also where it is longer than what one transaction deletes."""
    for number in range(150):
        await record(store, f"cmp_{number}", session="mine")
    await record(store, "cmp_else", session="another")

    assert 150 == (await store.deletion.all_of(session="mine")).num

    assert ["cmp_else"] == await left(store)


async def test_what_one_key_asked_is_deleted_whole_or_of_one_session(store: Store) -> None:
    """What others asked stays, of a session that they named alike too."""
    for number in range(150):
        await record(store, f"cmp_{number}", session="project")
    await record(store, "cmp_alone")
    await record(store, "cmp_theirs", session="project", key_id=OTHER_KEY)

    assert 150 == (await store.deletion.all_of(session="project", key_id=KEY)).num
    assert ["cmp_alone", "cmp_theirs"] == await left(store)
    assert 1 == (await store.deletion.all_of(key_id=KEY)).num
    assert ["cmp_theirs"] == await left(store)
    with pytest.raises(ValueError, match="a session or a key"):
        await store.deletion.all_of()


async def test_what_one_key_said_of_no_completion_loses_its_words_too(
    store: Store, tmp_path: Path
) -> None:
    """It waits, or was withdrawn since it waited for nothing; what others said stays."""
    words: dict[str, Any] = {
        "comment": SECRET.decode(),
        "correction": "so",
        "tags": ("style",),
        "rater": "ann",
    }
    waits, lost, theirs = [
        (await store.add_feedback(rating("cmp_no", key_id=key, **words), always)).feedback.id
        for key in (KEY, KEY, OTHER_KEY)
    ]
    await store.withdraw_lost([lost])
    many = [
        (await store.add_feedback(rating(f"cmp_{n}", comment="why"), always)).feedback.id
        for n in range(100)
    ]
    little: list[dict[str, Any]] = [
        {}, {"rater": "ann"}, {"comment": "why"}, {"idempotency": "my-id", "digest": b"of it"},
    ]  # fmt: skip
    few = [
        (await store.add_feedback(rating(f"cmp_few_{n}", **said), always)).feedback.id
        for n, said in enumerate(little)
    ]
    await store.withdraw_lost(few[1:])

    await store.deletion.all_of(session="mine", key_id=KEY)
    before = await store.get_feedback(waits)
    num = (await store.deletion.all_of(key_id=KEY)).num

    found = [await store.get_feedback(one) for one in (waits, lost, many[-1], *few)]
    kept = await store.get_feedback(theirs)
    assert before is not None
    assert kept is not None
    assert (0, "pending", "ann", "so") == (num, before.state, before.rater, before.correction)
    assert [("withdrawn", "", None, None, ())] * 7 == [
        (one.state, one.rater, one.comment, one.correction, one.tags) for one in found if one
    ]
    assert [
        "all that was said with the key was deleted",
        "the completion was never recorded",
    ] == [one.note for one in found[:2] if one]
    assert ("pending", "ann", SECRET.decode()) == (kept.state, kept.rater, kept.comment)
    assert {(None, b"")} == {(id_, digest) for _, _, id_, digest in of_client(tmp_path)}


async def test_what_a_key_says_of_what_is_recorded_since_stays(store: Store) -> None:
    """Its deletion goes on for a while, a few at a time."""
    await record(store, "cmp_1")
    given = (await rate(store, "cmp_1", comment="why")).feedback

    assert [] == [some async for some in store.deletion._said_with(KEY)]

    assert given == await store.get_feedback(given.id)


async def test_what_is_old_goes_unless_its_session_is_rated(store: Store) -> None:
    """A rating that was withdrawn keeps nothing."""
    for number in range(150):
        await record(store, f"cmp_{number:03}", session="old", created_ms=NOON_MS - 1)
    await record(store, "cmp_kept", session="rated", created_ms=NOON_MS - 3)
    await record(store, "cmp_rated", session="rated", created_ms=NOON_MS - 2)
    await record(store, "cmp_undone", session="undone", created_ms=NOON_MS - 2)
    await record(store, "cmp_new", session="old", created_ms=NOON_MS)
    await rate(store, "cmp_rated")
    undone = (await rate(store, "cmp_undone")).feedback
    await store.withdraw(undone.id, None)

    assert 151 == (await store.deletion.unrated(NOON_MS)).num

    assert ["cmp_kept", "cmp_rated", "cmp_new"] == await left(store)


async def test_a_rating_keeps_nothing_of_what_another_key_named_alike(store: Store) -> None:
    """That is a conversation of its own."""
    await record(store, "cmp_rated", session="project", created_ms=NOON_MS - 1)
    await record(store, "cmp_theirs", session="project", created_ms=NOON_MS - 1, key_id=OTHER_KEY)
    await rate(store, "cmp_rated")

    assert 1 == (await store.deletion.unrated(NOON_MS)).num

    assert ["cmp_rated"] == await left(store)


async def test_what_was_said_is_not_left_in_the_file(tmp_path: Path) -> None:
    """Freed pages are overwritten; while they are there, they can be found."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    await record(store, "cmp_1", request=b'{"prompt": "%b"}' % SECRET)
    await record(store, "cmp_2", choices=(choice(message=b'{"text": "%b"}' % SECRET),))
    await record(store, "cmp_3", request=b'{"prompt": "other"}')
    await rate(store, "cmp_1", comment=SECRET.decode())
    await store.close()
    before = database_in(tmp_path).read_bytes().count(SECRET)

    store = await Store.open(database_in(tmp_path), synchronous="off")
    await store.deletion.completions(["cmp_1", "cmp_2"])
    await store.close()

    assert 3 == before
    assert SECRET not in database_in(tmp_path).read_bytes()
    assert not Path(f"{database_in(tmp_path)}-wal").exists()
    with sqlite3.connect(database_in(tmp_path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()


async def test_nor_where_rows_were_moved_while_others_went(tmp_path: Path) -> None:
    """SQLite leaves copies behind; which of them, depends on the order."""
    left = []
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        store = await Store.open(database_in(folder), synchronous="off")
        ids = [f"cmp_{number:032}" for number in range(200)]
        deleted = ids[:40]
        secret = {
            "request": b'{"prompt": "%b"}' % SECRET,
            "sampling": b'{"stop": "%b"}' % SECRET,
            "error": SECRET.decode(),
        }
        said: list[dict[str, Any]] = [secret] * 40 + [{}] * 160
        await asyncio.gather(
            *(record(store, id_, **one) for id_, one in zip(ids, said, strict=True))
        )
        for number, id_ in enumerate(deleted):
            await rate(store, id_, rater=SECRET.decode(), comment=SECRET.decode() * number)
        random.Random(seed).shuffle(deleted)
        await store.deletion.completions(deleted)
        await store.close()
        left.append(traces(folder)["strop.db"])

    assert [0] * 8 == left


@pytest.mark.parametrize("has_more", [True, False])
async def test_it_is_overwritten_before_anything_goes(store: Store, has_more: bool) -> None:
    """All of it, as long as it was: SQLite may copy what stands beside what goes."""
    said: dict[str, Any] = {"rater": "ann", "idempotency": "my-id", "comment": "why"}
    more: dict[str, Any] = {"error": "h\u00e9", "request_id": "r-1", "prompt_text": "so"}
    some: dict[str, Any] = {"correction": "s\u00f6", "tags": ("style",)}
    texts = ("so",) * 3 if has_more else None
    answer = choice(token_ids=array("i", [1, 2, 3]) if has_more else None, token_texts=texts)
    for id_ in ("cmp_1", "cmp_2"):
        await record(store, id_, choices=(answer,), **(more if has_more else {}))
        await rate(store, id_, **said | {"idempotency": id_}, **(some if has_more else {}))
    as_it_was = await store._writer.submit(columns)
    seen: list[list[bytes | None]] = []

    def watch(connection: sqlite3.Connection) -> None:
        connection.create_function("look", 0, lambda: seen.append(columns(connection)))
        connection.execute(
            "CREATE TEMP TRIGGER watch BEFORE UPDATE OF state ON main.feedback"
            " BEGIN SELECT look(); END"
        )

    await store._writer.submit(watch)
    await store.deletion.completions(["cmp_1", "cmp_2"])

    before = list(map(_num_bytes, as_it_was))
    assert before == list(map(_num_bytes, seen[0]))
    assert [] == [one for one, was in zip(seen[0], as_it_was, strict=True) if one == was and was]


async def test_raters_of_short_names_hinder_nothing(store: Store) -> None:
    """What stands in for one may stand in for another, and each rates an answer once."""
    await record(store, "cmp_1")
    for rater in "abcdefghijklmnopqrst":
        await rate(store, "cmp_1", rater=rater)

    assert 1 == (await store.deletion.completions(["cmp_1"])).num

    withdrawn = (await store.list_feedback(FeedbackFilter(state="withdrawn"))).data
    assert [""] * 20 == [one.rater for one in withdrawn]


def columns(connection: sqlite3.Connection) -> list[bytes | None]:
    """What of people's words and ids is kept of anything."""
    found: list[bytes | None] = []
    for table, names in (
        ("completions", "request prompt_ids prompt_text sampling error request_id"),
        ("choices", "message token_ids token_texts"),
        ("feedback", "rater idempotency"),
        ("feedback_revisions", "comment correction"),
    ):
        held = ", ".join(f"CAST({name} AS BLOB)" for name in names.split())
        found += [one for row in connection.execute(f"SELECT {held} FROM {table}") for one in row]
    return found


def _num_bytes(held: bytes | None) -> int:
    return len(held or b"")


def traces(folder: Path) -> dict[str, int]:
    """How often the secret stands in each of the files."""
    return {file.name: file.read_bytes().count(SECRET) for file in folder.iterdir()}


async def test_nor_beside_the_file_while_strop_runs(tmp_path: Path) -> None:
    """The WAL holds pages as they were before; it is emptied, whoever else has it open."""
    server = await Store.open(database_in(tmp_path), is_server=True)
    await record(server, "cmp_1", request=b'{"prompt": "%b"}' % SECRET, session="mine")
    await record(server, "cmp_2", request=b'{"prompt": "%b"}' % SECRET, created_ms=NOON_MS - 1)
    await record(server, "cmp_3", choices=(choice(message=b'{"text": "%b"}' % SECRET),))
    before = traces(tmp_path)
    left: list[bool] = []

    command = await Store.open(database_in(tmp_path))
    for deleting in (
        command.deletion.all_of(session="mine"),
        command.deletion.unrated(NOON_MS),
        command.deletion.completions(["cmp_3"]),
    ):
        await deleting
        left.append((tmp_path / "strop.db-wal").stat().st_size > 0)
    after = traces(tmp_path)
    await record(server, "cmp_4")
    found = await command.get_completion("cmp_4")
    await command.close()
    await server.close()

    assert before["strop.db-wal"] > 2
    assert [False] * 3 == left
    assert {"strop.db": 0, "strop.db-wal": 0, "strop.db-shm": 0} == after
    assert found is not None


async def test_what_a_reader_keeps_goes_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said that it is there; the process that serves overwrites it, and is busy meanwhile."""
    monkeypatch.setattr(writer, "EMPTYING_S", 0.01)
    monkeypatch.setattr(writer, "EMPTYING_EVERY_S", 0.01)
    monkeypatch.setattr(writer, "RETRY_S", 0.01)
    monkeypatch.setattr(deletion_store, "_PAUSE_S", 0)
    server = await Store.open(database_in(tmp_path), is_server=True)
    await record(server, "cmp_1", request=b'{"prompt": "%b"}' % SECRET)
    wal = tmp_path / "strop.db-wal"
    command = await Store.open(database_in(tmp_path))
    with contextlib.closing(sqlite3.connect(database_in(tmp_path), isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM completions").fetchall()

        done = await command.deletion.completions(["cmp_1"])
        await command.close()
        size_bytes = wal.stat().st_size
        await record(server, "cmp_2")

    await until(lambda: not (tmp_path / "strop.db-unerased").exists())
    size_in_the_end = wal.stat().st_size
    after = traces(tmp_path)
    await server.close()

    assert Deleted(1, 0, (), is_erased=False) == done
    assert size_bytes > 0 == size_in_the_end
    assert {"strop.db": 0, "strop.db-wal": 0, "strop.db-shm": 0} == after


async def test_what_a_command_deleted_that_was_killed_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves word before it commits."""
    monkeypatch.setattr(writer, "EMPTYING_EVERY_S", 0.01)
    unerased = tmp_path / "strop.db-unerased"
    command = await Store.open(database_in(tmp_path))
    await record(command, "cmp_1", request=b'{"prompt": "%b"}' % SECRET)

    await command.deletion._delete(partial(deletion.delete, ids=["cmp_no"], now_ms=0))
    without_any = unerased.exists()
    await command.deletion._delete(partial(deletion.delete, ids=["cmp_1"], now_ms=0))
    is_left = unerased.exists()
    server = await Store.open(database_in(tmp_path), is_server=True)
    await until(lambda: not unerased.exists())
    after = traces(tmp_path)
    await server.close()
    await command.close()

    assert (False, True) == (without_any, is_left)
    assert {"strop.db": 0, "strop.db-wal": 0, "strop.db-shm": 0} == after


async def test_nothing_is_to_be_erased_where_nothing_was_deleted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads meanwhile; words that are forgotten count."""
    monkeypatch.setattr(writer, "EMPTYING_S", 0.01)
    monkeypatch.setattr(deletion_store, "_PAUSE_S", 0)
    with contextlib.closing(sqlite3.connect(database_in(tmp_path), isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM completions").fetchall()
        await record(store, "cmp_1")

        nothing = [
            await store.deletion.completions(["cmp_no"]),
            await store.deletion.unrated(0),
            await store.deletion.all_of(key_id=OTHER_KEY),
        ]
        await store.add_feedback(rating("cmp_no", key_id=OTHER_KEY, comment="why"), always)
        words = await store.deletion.all_of(key_id=OTHER_KEY)
        # Another process has emptied the WAL, before the last of this was in it.
        (tmp_path / "strop.db-unerased").unlink()
        await store.deletion._erase()

    assert (tmp_path / "strop.db-unerased").exists()
    assert [Deleted(0, 0, (), is_erased=True)] * 3 == nothing
    assert Deleted(0, 0, (), is_erased=False) == words


async def test_what_is_said_of_an_answer_in_flight_waits_for_it(store: Store) -> None:
    """There is nothing to delete yet."""
    given = (await store.add_feedback(rating("cmp_1"), always)).feedback

    assert 0 == (await store.deletion.completions(["cmp_1"])).num
    await record(store, "cmp_1")

    found = await store.get_feedback(given.id)
    assert found is not None
    assert ("standing", None) == (found.state, found.note)


async def test_a_label_is_found_as_it_was_written(store: Store) -> None:
    """What SQLite can't hold is replaced on both ways."""
    await record(store, "cmp_1", session="mine \udcff")
    await record(store, "cmp_2")

    page = await store.list_completions(CompletionFilter(session="mine \udcff"))
    num = (await store.deletion.all_of(session="mine \udcff")).num

    assert ["cmp_1"] == [one.id for one in page.data]
    assert (1, ["cmp_2"]) == (num, await left(store))


def stored(id_: str, *indices: int) -> StoredCompletion:
    """A completion as read back."""
    made = completion(id_, base=MODEL, choices=tuple(choice(index) for index in indices))
    return StoredCompletion(made, "ses", "cmp_1", None, None, None)


async def test_what_goes_while_it_is_read_is_left_out(store: Store) -> None:
    """A rated choice, its ratings, and a step before it, each by itself."""
    given = []
    for id_ in ("cmp_1", "cmp_2", "cmp_3", "cmp_4"):
        await record(store, id_, base=MODEL)
        given.append((await rate(store, id_, scope="turn")).feedback)
    rated = [training_queries.Rated(f"cmp_{n}", 0, "cmp_1") for n in (1, 2, 3, 4)]
    steps = [training_queries.Step("cmp_4", "cmp_0", 0), training_queries.Step("cmp_4", "cmp_x", 0)]
    there = {"cmp_1": stored("cmp_1"), "cmp_3": stored("cmp_3", 0), "cmp_4": stored("cmp_4", 0)}

    read = rated_turns.assemble(
        rated,
        [one for one in given if one.completion != "cmp_3"],
        steps,
        {**there, "cmp_0": stored("cmp_0", 0)},
    )

    (turn,) = read
    assert ["cmp_0", "cmp_4"] == [one.completion.id for one in turn.completions]
