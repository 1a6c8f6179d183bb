"""How the store's statements find their rows: as fast in a million as in a thousand.

The statements are those that a real store runs while every public call is made; the plans are
SQLite's own, which has no statistics and so plans alike for every size.
"""

import ast
import importlib
import inspect
import pkgutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import store_exercise
from store_statements import VERBS, Statement, of_triggers, take_down, violations
from store_values import database_in

from strop.proxy import store as store_package
from strop.proxy.store import database
from strop.proxy.store.deletion_store import DeletionStore
from strop.proxy.store.run_store import RunStore
from strop.proxy.store.store import Store
from strop.proxy.store.training_store import TrainingStore
from strop.proxy.store.version_store import VersionStore

PARTS: Final = (Store, VersionStore, RunStore, TrainingStore, DeletionStore)
NOT_CALLED: Final = {"open", "close", "health", "reason", "stall"}

# What may look at more than it gives back, each for its reason. Where a part of the statement
# stands beside it, only in a statement with that part.
ALLOWED: Final = (
    # What waits for a completion in flight: few, and gone in a while.
    ("SCAN feedback USING INDEX feedback_pending", ""),
    # The one run that isn't over, the one version that is active, the newest activation.
    ("SCAN runs USING INDEX runs_unfinished", ""),
    ("SEARCH versions USING INDEX versions_active (state=?)", ""),
    ("SEARCH activations", "(SELECT max(num) FROM activations)"),
    # The first so late, no more.
    (
        "SEARCH feedback USING INDEX feedback_latest (latest_ms>?)",
        "ORDER BY latest_ms, num LIMIT 1)",
    ),
    # Versions: one for each training run, and all of those that weren't removed are asked for.
    ("SEARCH versions USING INTEGER PRIMARY KEY (rowid<?)", "removed_ms IS NULL ORDER BY"),
    ("SCAN v", "v.num NOT IN (SELECT version FROM lineage)"),
    # What no version has learned is what is asked for; the next run learns it.
    ("SEARCH f USING INDEX feedback_lessons (base=? AND held_out=? AND learned=?)", "fresh"),
    ("SCAN answers", "fresh"),
    ("SCAN rated", "fresh"),
    # How people like each version: all of their ratings are counted.
    ("SEARCH f USING INDEX feedback_lessons (base=?)", "GROUP BY c.version"),
    # The ratings next to a switch, up to so many; where a version has fewer, all on its side.
    ("SEARCH f USING INDEX feedback_liked (base=? AND completion_ms<?)", "LIMIT ?"),
    ("SEARCH f USING INDEX feedback_liked (base=? AND completion_ms>?)", "LIMIT ?"),
    ("SCAN rated", "ORDER BY f.completion_ms"),
    ("SCAN answers", "ORDER BY f.completion_ms"),
    # A training run, which is a process of its own, reads all that stands, a page at a time.
    ("SCAN f USING INDEX feedback_standing", "avg(r.rating)"),
    ("SCAN (subquery-1)", "avg(r.rating)"),
    (
        "SEARCH f USING INDEX feedback_standing ((completion,choice)<(?,?))",
        "INDEXED BY feedback_standing",
    ),
)


@pytest.fixture
async def statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Statement]:
    """Every statement that a store runs in serving, those of its triggers too."""
    await (await Store.open(database_in(tmp_path))).close()
    taken = take_down(monkeypatch)
    store = await Store.open(database_in(tmp_path), synchronous="off", is_server=True)
    await store_exercise.everything(store)
    await store.close()
    monkeypatch.undo()
    with database_of(tmp_path) as connection:
        return [*taken.distinct(), *of_triggers(connection)]


class database_of:  # noqa: N801  it is used as a function
    """Opens the database of a test."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(database_in(folder), isolation_level=None)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def is_allowed(statement: Statement, step: str) -> bool:
    """Whether a step stands in the list above."""
    return any(step == allowed and part in statement.sql for allowed, part in ALLOWED)


def sql_of_modules() -> Iterator[str]:
    """Yield each statement in the store's modules; where values are put in, the parts between."""
    for module in pkgutil.iter_modules(store_package.__path__):
        source = inspect.getsource(importlib.import_module(f"strop.proxy.store.{module.name}"))
        for node in ast.walk(ast.parse(source)):
            nodes = node.values if isinstance(node, ast.JoinedStr) else [node]
            values = [one.value for one in nodes if isinstance(one, ast.Constant)]
            texts = [" ".join(one.split()) for one in values if isinstance(one, str)]
            if texts and texts[0].startswith(VERBS):
                yield from (text for text in texts if len(text.split()) > 2)


def test_every_public_call_is_made() -> None:
    """A call that is added must be made in the exercise too."""
    made = inspect.getsource(store_exercise)
    calls = [
        name
        for part in PARTS
        for name, _ in inspect.getmembers(part)
        if not name.startswith("_") and name not in NOT_CALLED
    ]

    assert 40 < len(calls)
    assert [] == [name for name in calls if f".{name}(" not in made and name != "commit_completion"]


async def test_nothing_that_grows_is_walked_or_sorted(
    statements: list[Statement], tmp_path: Path
) -> None:
    """Each statement finds its rows by an index that leads to few, or reads a page in its order."""
    with database_of(tmp_path) as connection:
        found = violations(connection, statements, is_allowed)

    assert 150 < len(statements)
    assert {} == found


async def test_every_statement_in_the_code_was_run(statements: list[Statement]) -> None:
    """One that no call has reached would escape the check."""
    run = " ".join(" ".join(one.sql.split()) for one in statements)
    # Tried on a disk that was full; and what `format` takes stands there in part.
    written = [text.partition("{")[0] for text in sql_of_modules() if "write_probe" not in text]

    assert 60 < len(written)
    assert [] == [text for text in written if text not in run]


async def test_every_exception_is_needed(statements: list[Statement], tmp_path: Path) -> None:
    """What is allowed without need would hide what it isn't meant for."""
    used: set[tuple[str, str]] = set()

    def note(statement: Statement, step: str) -> bool:
        used.update(one for one in ALLOWED if step == one[0] and one[1] in statement.sql)
        return True

    with database_of(tmp_path) as connection:
        violations(connection, statements, note)

    assert set(ALLOWED) == used


async def test_no_index_can_go(statements: list[Statement], tmp_path: Path) -> None:
    """Without any one of the indexes some statement would walk a table, and the check sees it."""
    unseen = []
    with database_of(tmp_path) as connection:
        indexes = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
            )
        ]
        for index in indexes:
            connection.execute("BEGIN")
            connection.execute(f"DROP INDEX {index}")
            if not violations(connection, statements, is_allowed):
                unseen.append(index)
            connection.execute("ROLLBACK")

    assert 20 < len(indexes)
    assert [] == unseen


def test_a_plan_does_not_depend_on_the_size(tmp_path: Path) -> None:
    """SQLite plans by statistics where there are any: strop must never make some."""
    database.connect(database_in(tmp_path)).close()
    with database_of(tmp_path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'sqlite_stat%'")
        found = tables.fetchall()

    assert [] == found
    assert [] == [
        text for text in sql_of_modules() if text.upper().startswith(("ANALYZE", "PRAGMA OPTIMIZE"))
    ]
