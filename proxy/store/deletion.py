"""Completions that are deleted, with what was said of them.

Does not know who wants it. Their ratings are withdrawn and keep no words, which makes the versions
that learned from them stale; a rating's row stays, since these versions name it.
"""

import sqlite3
from collections.abc import Iterable
from typing import Final

from strop.proxy.store import feedback
from strop.proxy.store.completion_queries import Position
from strop.proxy.store.database import storable

OLDEST: Final[Position] = (-1, -1)
"""The position that every completion is newer than."""

_NOTE: Final = "the completion was deleted"
_RATINGS: Final = "SELECT id FROM feedback WHERE completion = ?"
_FORGET: Final = """
UPDATE feedback_revisions SET comment = NULL, correction = NULL, tags = '[]' WHERE feedback = ?"""
_DELETE: Final = "DELETE FROM completions WHERE id = ?"
_OF_SESSION: Final = "SELECT id FROM completions WHERE session = ? LIMIT ?"
# A rated turn is learned from as a whole, and what is said later may be rated too.
_UNRATED: Final = """
SELECT c.id, c.created_ms, c.num FROM completions AS c
WHERE c.created_ms < ? AND (c.created_ms, c.num) > (?, ?) AND NOT EXISTS
(SELECT 1 FROM feedback AS f WHERE f.session = c.session AND f.state = 'standing')
ORDER BY c.created_ms, c.num LIMIT ?"""


def delete(connection: sqlite3.Connection, ids: Iterable[str], *, now_ms: int) -> int:
    """Delete the completions among `ids` that are there; return how many.

    Args:
        connection: in a transaction.
        ids: of completions.
        now_ms: the time, since the epoch.
    """
    num_deleted = 0
    for id_ in ids:
        if not connection.execute(_DELETE, (id_,)).rowcount:
            # What is said of one in flight waits for it.
            continue
        num_deleted += 1
        for (rating,) in connection.execute(_RATINGS, (id_,)).fetchall():
            feedback.withdraw(connection, rating, None, now_ms=now_ms, note=_NOTE)
            connection.execute(_FORGET, (rating,))
    return num_deleted


def delete_of_session(
    connection: sqlite3.Connection, session: str, limit: int, *, now_ms: int
) -> int:
    """Delete up to `limit` completions of a session; return how many."""
    found = connection.execute(_OF_SESSION, (storable(session), limit)).fetchall()
    return delete(connection, [id_ for (id_,) in found], now_ms=now_ms)


def delete_unrated(
    connection: sqlite3.Connection, before_ms: int, after: Position, limit: int, *, now_ms: int
) -> tuple[int, Position | None]:
    """Delete completions of sessions in which no rating stands, oldest first.

    Args:
        connection: in a transaction.
        before_ms: those that were made before, since the epoch.
        after: those that come after this position.
        limit: how many at most.
        now_ms: the time, since the epoch.

    Returns:
        How many, and the position of the last one; None where there were none.
    """
    found = connection.execute(_UNRATED, (before_ms, *after, limit)).fetchall()
    num_deleted = delete(connection, [id_ for id_, *_ in found], now_ms=now_ms)
    return num_deleted, found[-1][1:] if found else None
