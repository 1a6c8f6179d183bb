"""What is kept with each rating, so that nobody looks for it: always what a look would find."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import store_exercise
from store_values import KEY, MODEL, NOON_MS, database_in, learnable, rating, record, version

from strop.proxy.store import database, feedback, feedback_queries
from strop.proxy.store.records import CompletionFilter, FeedbackFilter, Revision
from strop.proxy.store.store import Store

COUNTED = "SELECT sign, (SELECT count(*) FROM feedback AS f WHERE f.sign = c.sign AND f.state ="
LEARNED = """SELECT id, learned, EXISTS (SELECT 1 FROM version_feedback AS l
WHERE l.feedback = f.id AND l.revision = f.revision) FROM feedback AS f"""
# A rating that never found its completion has nothing of it.
KEPT = """SELECT f.id, f.sign, f.learned, f.latest_ms,
iif(f.state = 'standing', f.completion_ms, NULL), iif(f.state = 'standing', f.completion_num, NULL)
FROM feedback AS f ORDER BY f.num"""


@pytest.fixture
async def exercised(tmp_path: Path) -> Path:
    """A database in which all has happened that can."""
    store = await Store.open(database_in(tmp_path), synchronous="off", is_server=True)
    await store_exercise.everything(store)
    await store.close()
    return database_in(tmp_path)


def test_what_is_kept_is_what_a_look_finds(exercised: Path) -> None:
    """Counts, signs, what was learned, and where the completion stands, after all that happens."""
    with closing(sqlite3.connect(exercised)) as connection:

        def ask(sql: str) -> list[Any]:
            return connection.execute(sql).fetchall()

        counted = dict(ask(f"{COUNTED} 'standing') FROM rating_counts AS c"))
        assert counted == dict(ask("SELECT sign, num FROM rating_counts"))
        assert {-1, 0, 1} == set(counted)
        assert counted[1] > counted[-1] > 0

        flags = {id_: (kept, found) for id_, kept, found in ask(LEARNED)}
        assert {(0, 0), (1, 1)} == set(flags.values())

        signs = """SELECT f.sign, r.rating FROM feedback AS f JOIN feedback_revisions AS r
        ON r.feedback = f.id AND r.revision = f.revision"""
        pairs = ask(signs)
        assert {-1, 1} == {sign for sign, _ in pairs}
        assert all(sign == (rating > 0) - (rating < 0) for sign, rating in pairs)

        places = """SELECT f.completion_ms, f.completion_num, c.created_ms, c.num
        FROM feedback AS f JOIN completions AS c ON c.id = f.completion
        WHERE f.state = 'standing'"""
        rows = ask(places)
        assert rows
        assert all(row[:2] == row[2:] for row in rows)


def test_a_store_of_before_is_brought_up_to_date(exercised: Path) -> None:
    """The migration works out for old rows what new ones have from the beginning."""
    script = next(sql for sql in database.migrations() if "CREATE TABLE rating_counts" in sql)
    backfill = re.findall(r"^UPDATE .*?;$", script, flags=re.MULTILINE | re.DOTALL)
    count = re.findall(r"^INSERT .*?;$", script, flags=re.MULTILINE | re.DOTALL)
    with closing(sqlite3.connect(exercised, isolation_level=None)) as connection:
        kept = connection.execute(KEPT).fetchall()
        counts = connection.execute("SELECT * FROM rating_counts").fetchall()
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'"):
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM rating_counts")
        connection.execute(
            "UPDATE feedback SET sign = 0, learned = 0, latest_ms = 0, completion_ms = NULL,"
            " completion_num = NULL"
        )

        for statement in (*backfill, *count):
            connection.execute(statement)

        assert (3, 1) == (len(backfill), len(count))
        assert kept == connection.execute(KEPT).fetchall()
        assert counts == connection.execute("SELECT * FROM rating_counts").fetchall()


async def test_a_rating_is_fresh_again_once_it_says_something_else(tmp_path: Path) -> None:
    """What was learned is fresh no more, until it is revised; in words alone it stays learned."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    given = await learnable(store, 1)
    made = await version(store, given, is_active=True)

    async def num_fresh() -> int:
        found = await store.training.fresh_counts(made.id, base=MODEL)
        return found.total

    learned = await num_fresh()
    await store.revise(given[0], KEY, Revision(1.0, b'"good"', comment="in other words"))
    reworded = await num_fresh()
    await store.revise(given[0], KEY, Revision(-1.0, b'"bad"'))
    revised = await num_fresh()
    await store.close()

    assert [0, 0, 1] == [learned, reworded, revised]


async def test_what_only_others_learned_is_fresh(tmp_path: Path) -> None:
    """A version beside the active one has learned it, and its heirs; the active line has not."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    first, second, third = [await learnable(store, number) for number in (1, 2, 3)]
    active = await version(store, first, is_active=True)
    beside = await version(store, second, parent=active.id)
    await version(store, second, third, parent=beside.id)

    found = {
        each: (await store.training.fresh_counts(each, base=MODEL)).total
        for each in ("base", active.id, beside.id, "v3")
    }
    await store.close()

    assert {"base": 3, active.id: 2, beside.id: 1, "v3": 0} == found


def test_since_finds_what_came_while_the_clock_stood_back(tmp_path: Path) -> None:
    """Ratings of a time are found wherever they stand in the order of arrival."""
    with closing(database.connect(database_in(tmp_path), synchronous="off")) as connection:
        for number, offset_ms in enumerate((0, 900, 100, 500, 200)):
            feedback.add(
                connection, rating(f"cmp_{number}"), is_in_flight=True, now_ms=NOON_MS + offset_ms
            )
        found = {
            since: [
                one.completion
                for one in feedback_queries.newest(
                    FeedbackFilter(since_ms=NOON_MS + since), 10
                ).run(connection)
            ]
            for since in (0, 150, 500, 901)
        }

    assert {
        0: ["cmp_4", "cmp_3", "cmp_2", "cmp_1", "cmp_0"],
        150: ["cmp_4", "cmp_3", "cmp_1"],
        500: ["cmp_3", "cmp_1"],
        901: [],
    } == found


async def test_rated_completions_are_listed_in_order_whenever_they_were_rated(
    tmp_path: Path,
) -> None:
    """By their own time, each once, whoever rated it and in whatever order."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    for number in range(4):
        await record(store, f"cmp_{number}", created_ms=NOON_MS + number // 2)
    for number, rater in ((2, ""), (0, ""), (3, ""), (2, "ann"), (0, "ann")):
        await store.add_feedback(rating(f"cmp_{number}", rater=rater), lambda _: False)
    wanted = CompletionFilter(is_rated=True)
    whole = [one.id for one in (await store.list_completions(wanted)).data]
    rest = [one.id for one in (await store.list_completions(wanted, after="cmp_3")).data]
    await store.close()

    assert ["cmp_3", "cmp_2", "cmp_0"] == whole
    assert ["cmp_2", "cmp_0"] == rest
