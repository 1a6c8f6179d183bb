"""Completions that are deleted, with what was said of them.

Does not know who wants it. Their ratings are withdrawn and keep no words, no rater and no id of the
client's, which makes the versions that learned from them stale; a rating's row stays, since these
versions name it. A session's name stays there until nothing of that session is left: what is rated
later in it is held out, or not, as it was before.
"""

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from strop.proxy.store import feedback, lineage
from strop.proxy.store.completion_queries import Position
from strop.proxy.store.database import storable

OLDEST: Final[Position] = (-1, -1)
"""The position that every completion is newer than."""

_NOTE: Final = "the completion was deleted"
_NOTE_OF_KEY: Final = "all that was said with the key was deleted"
_RATINGS: Final = "SELECT id, state FROM feedback WHERE completion = ?"
_FORGET: Final = """
UPDATE feedback_revisions SET comment = NULL, correction = NULL, tags = '[]' WHERE feedback = ?"""
_FORGET_CLIENT: Final = """
UPDATE feedback SET rater = '', idempotency = NULL, digest = x'' WHERE id = ?"""
# What is as long is written over what was there. Where SQLite moves rows from page to page, as it
# does when others beside them go, it leaves copies behind that nobody overwrites.
_BLANK: Final = """
UPDATE completions SET request = zeroblob(length(request)),
prompt_ids = zeroblob(length(prompt_ids)), prompt_text = zeroblob(length(prompt_text)),
sampling = printf('%*s', length(CAST(sampling AS BLOB)), ''),
error = printf('%*s', length(CAST(error AS BLOB)), ''),
request_id = printf('%*s', length(CAST(request_id AS BLOB)), '')
WHERE id = ?"""
_BLANK_CHOICES: Final = """
UPDATE choices SET message = zeroblob(length(message)), token_ids = zeroblob(length(token_ids)),
token_texts = zeroblob(length(token_texts))
WHERE completion = ?"""
_BLANK_WORDS: Final = """
UPDATE feedback_revisions SET comment = printf('%*s', length(CAST(comment AS BLOB)), ''),
correction = printf('%*s', length(CAST(correction AS BLOB)), ''),
tags = '[' || printf('%*s', length(CAST(tags AS BLOB)) - 2, '') || ']'
WHERE feedback = ?"""
# Each is unique: the end of the rating's own id stands in for it. Short ones may meet all the same.
_BLANK_CLIENT: Final = """
UPDATE OR IGNORE feedback SET
rater = substr(printf('%*s', length(CAST(rater AS BLOB)), id),
    -length(CAST(rater AS BLOB)), length(CAST(rater AS BLOB))),
idempotency = substr(printf('%*s', length(CAST(idempotency AS BLOB)), id),
    -length(CAST(idempotency AS BLOB)), length(CAST(idempotency AS BLOB)))
WHERE id = ?"""
# The plus: of a session there is less than of a key.
_FORGET_SESSION: Final = """
UPDATE feedback SET session = NULL WHERE session = ? AND +key_id = ?
AND NOT EXISTS (SELECT 1 FROM completions AS c WHERE c.session = ? AND +c.key_id = ?)"""
_KEPT_BY_KEY: Final = """
SELECT f.num, f.id FROM feedback AS f
WHERE f.key_id = ? AND f.num > ? AND f.state <> 'standing' AND (
    f.state = 'pending' OR f.rater <> '' OR f.idempotency IS NOT NULL OR EXISTS (
        SELECT 1 FROM feedback_revisions AS r WHERE r.feedback = f.id
        AND (r.comment IS NOT NULL OR r.correction IS NOT NULL OR r.tags <> '[]')
    )
)
ORDER BY f.num LIMIT ?"""
_DELETE: Final = "DELETE FROM completions WHERE id = ? RETURNING session, key_id"
_OF_SESSION: Final = "SELECT id FROM completions WHERE session = ? LIMIT ?"
_OF_KEY: Final = "SELECT c.id FROM completions AS c WHERE c.key_id = ? LIMIT ?"
_OF_BOTH: Final = "SELECT id FROM completions WHERE session = ? AND +key_id = ? LIMIT ?"
# A rated turn is learned from as a whole, and what is said later may be rated too. What another key
# has named alike is another conversation.
_UNRATED: Final = """
SELECT c.id, c.created_ms, c.num FROM completions AS c
WHERE c.created_ms < ? AND (c.created_ms, c.num) > (?, ?) AND NOT EXISTS
(SELECT 1 FROM feedback AS f
WHERE f.session = c.session AND +f.key_id = c.key_id AND f.state = 'standing')
ORDER BY c.created_ms, c.num LIMIT ?"""


@dataclass(frozen=True, slots=True)
class Gone:
    """What was deleted in one transaction.

    Attributes:
        num: how many completions.
        num_ratings: how many ratings of theirs stood.
        learners: the numbers of the versions that learned from them.
    """

    num: int
    num_ratings: int
    learners: set[int]


def delete(connection: sqlite3.Connection, ids: Collection[str], *, now_ms: int) -> Gone:
    """Delete the completions among `ids` that are there.

    Args:
        connection: in a transaction.
        ids: of completions.
        now_ms: the time, since the epoch.
    """
    # What is said of one in flight waits for it.
    there = [id_ for id_ in ids if connection.execute(_BLANK, (id_,)).rowcount]
    for id_ in there:
        connection.execute(_BLANK_CHOICES, (id_,))
    states: dict[str, str] = {}
    for id_ in there:
        states.update(connection.execute(_RATINGS, (id_,)).fetchall())
    ratings = list(states)
    _forget(connection, ratings, _NOTE, now_ms=now_ms)
    learners = set[int]().union(*(lineage.heirs(connection, rating) for rating in ratings))
    sessions = {named for id_ in there for named in connection.execute(_DELETE, (id_,)).fetchall()}
    for named in sorted(sessions):
        connection.execute(_FORGET_SESSION, (*named, *named))
    num_ratings = list(states.values()).count("standing")
    return Gone(len(there), num_ratings, learners)


def _forget(
    connection: sqlite3.Connection, ratings: Sequence[str], note: str, *, now_ms: int
) -> None:
    for rating in ratings:
        connection.execute(_BLANK_WORDS, (rating,))
        connection.execute(_BLANK_CLIENT, (rating,))
    for rating in ratings:
        feedback.withdraw(connection, rating, None, now_ms=now_ms, note=note)
        connection.execute(_FORGET, (rating,))
        connection.execute(_FORGET_CLIENT, (rating,))


def forget_said_with(
    connection: sqlite3.Connection, key_id: str, after: int, limit: int, *, now_ms: int
) -> int | None:
    """Withdraw what a key still says of completions that were never recorded; keep no words of it.

    Args:
        connection: in a transaction.
        key_id: a key; all its completions are deleted, but for those recorded since.
        after: those whose `num` is larger.
        limit: how many at most.
        now_ms: the time, since the epoch.

    Returns:
        The `num` of the last one; None where there were none.
    """
    found = connection.execute(_KEPT_BY_KEY, (storable(key_id), after, limit)).fetchall()
    _forget(connection, [rating for _, rating in found], _NOTE_OF_KEY, now_ms=now_ms)
    return found[-1][0] if found else None


def delete_all_of(
    connection: sqlite3.Connection,
    session: str | None,
    key_id: str | None,
    limit: int,
    *,
    now_ms: int,
) -> Gone:
    """Delete up to `limit` completions of a session, of a key, or of both.

    Raises:
        ValueError: neither is named.
    """
    if session is None and key_id is None:
        raise ValueError("expected a session or a key")
    sql = _OF_KEY if session is None else _OF_SESSION if key_id is None else _OF_BOTH
    named = [storable(one) for one in (session, key_id) if one is not None]
    found = connection.execute(sql, (*named, limit)).fetchall()
    return delete(connection, [id_ for (id_,) in found], now_ms=now_ms)


def delete_unrated(
    connection: sqlite3.Connection, before_ms: int, after: Position, limit: int, *, now_ms: int
) -> tuple[Gone, Position | None]:
    """Delete completions of sessions in which no rating stands, oldest first.

    Args:
        connection: in a transaction.
        before_ms: those that were made before, since the epoch.
        after: those that come after this position.
        limit: how many at most.
        now_ms: the time, since the epoch.

    Returns:
        What is gone, and the position of the last one; None where there were none.
    """
    found = connection.execute(_UNRATED, (before_ms, *after, limit)).fetchall()
    gone = delete(connection, [id_ for id_, *_ in found], now_ms=now_ms)
    return gone, found[-1][1:] if found else None
