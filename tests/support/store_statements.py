"""Every SQL statement that a store runs, taken down as it runs; and how SQLite would find its rows.

Knows no statement: it sees what goes through sqlite3.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

VERBS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")

# Columns that few rows share, however many there are.
SELECTIVE: Final = frozenset(
    {
        "rowid", "id", "num", "completion", "session", "chain", "tail", "upstream_id", "feedback",
        "idempotency", "run", "engine", "version", "parent",
    }
)  # fmt: skip
# What doesn't grow with what is recorded, and what a statement itself has put together.
SMALL: Final = frozenset(
    {
        "rating_counts", "pairings", "sqlite_master", "lineage", "heirs", "stack", "steps", "fresh",
        "CONSTANT", "pragma_page_count", "pragma_page_size", "pragma_freelist_count",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """One statement, with the parameters that it was run with."""

    sql: str
    parameters: tuple[object, ...]

    @property
    def is_paged(self) -> bool:
        """Whether the number of its rows is limited."""
        return re.search(r"LIMIT (\?|\d+)\s*$", self.sql) is not None


class Taken(list[Statement]):
    """The statements so far."""

    def distinct(self) -> list[Statement]:
        """Return each once."""
        return list({one.sql: one for one in self}.values())


def take_down(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Take down what each connection runs that is opened from now on."""
    taken = Taken()

    def note(sql: str, parameters: Any = ()) -> None:
        if sql.lstrip().startswith(VERBS):
            taken.append(Statement(sql, tuple(parameters)))

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = (), /) -> "Cursor":
            note(sql, parameters)
            super().execute(sql, parameters)
            return self

        def executemany(self, sql: str, rows: Any, /) -> "Cursor":
            given = list(rows)
            for row in given[:1]:
                note(sql, row)
            super().executemany(sql, given)
            return self

    class Connection(sqlite3.Connection):
        # A connection's own calls make a plain cursor.
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            return Cursor(self).execute(sql, parameters)

        def executemany(self, sql: str, rows: Any, /) -> sqlite3.Cursor:
            return Cursor(self).executemany(sql, rows)

    connect = sqlite3.connect

    def connect_noting(*args: Any, **options: Any) -> sqlite3.Connection:
        return connect(*args, **options, factory=Connection)

    monkeypatch.setattr(sqlite3, "connect", connect_noting)
    return taken


def of_triggers(connection: sqlite3.Connection) -> Iterator[Statement]:
    """Yield the statements inside the triggers, NEW and OLD as parameters."""
    for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'"):
        body = sql.partition("BEGIN")[2].rpartition("END")[0]
        for part in filter(None, map(str.strip, body.split(";"))):
            bare, count = re.subn(r"\b(NEW|OLD)\.\w+", "?", part)
            yield Statement(bare, (None,) * count)


def plan(connection: sqlite3.Connection, statement: Statement) -> list[str]:
    """Return the steps in which SQLite carries out a statement, alike by all its releases.

    From 3.42 on it sees in more cases that an index covers what is read.
    """
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters)
    return [step.replace(" COVERING INDEX", " INDEX") for *_, step in rows]


def unbounded(connection: sqlite3.Connection, statement: Statement) -> list[str]:
    """Return the steps that take longer the more is recorded.

    A step is bounded if it finds its rows by a column that few share, or takes the first or last
    of an index. Where it finds them by a range, or by a column that many share, the statement must
    end after a page of them, have them in its order (what it sorts it has read whole), and find
    them by what it is filtered by: else it may pass over all others.
    """
    steps = plan(connection, statement)
    is_sorted_after = any("TEMP B-TREE" in step for step in steps)
    ends_early = statement.is_paged and not is_sorted_after
    filters = set(re.findall(r"(?<!\+)\b(\w+)\.(\w+) = \?", statement.sql))
    return [step for step in steps if not _is_bounded(step, filters, ends_early=ends_early)]


def _is_bounded(step: str, filters: set[tuple[str, str]], *, ends_early: bool) -> bool:
    if not step.startswith(("SCAN ", "SEARCH ")):
        return True
    how, table, *_ = step.split()
    if how == "SCAN":
        return table in SMALL
    if "AUTOMATIC" in step or "USING" not in step:
        return False
    if "(" not in step:
        return True
    columns = set(re.findall(r"(\w+)=\?", step))
    asked = {column for alias, column in filters if alias == table}
    is_filtered = bool(columns & asked) or not asked
    return bool(columns & SELECTIVE) or (ends_early and is_filtered)


def violations(
    connection: sqlite3.Connection,
    statements: Sequence[Statement],
    is_allowed: Callable[[Statement, str], bool],
) -> dict[str, list[str]]:
    """Return the steps that are neither bounded nor allowed, by statement."""
    found = {}
    for one in statements:
        try:
            steps = [step for step in unbounded(connection, one) if not is_allowed(one, step)]
        except sqlite3.OperationalError as error:
            # Its index is named in the statement, and gone.
            steps = [str(error)]
        if steps:
            found[one.sql] = steps
    return found
