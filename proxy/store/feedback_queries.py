"""Feedback as it is read: one, a list, its revisions, the counts.

Pure: makes queries and decodes their rows; runs and changes nothing.
"""

from typing import Final

import orjson

from strop.proxy.store.database import Query, Row
from strop.proxy.store.records import Feedback, FeedbackFilter

NEWEST: Final = 2**63 - 1
"""The position that every feedback is older than."""

_COLUMNS: Final = """
f.id, r.revision, f.completion, f.choice, r.rating, r.original, r.comment, r.correction, r.tags,
f.rater, f.key_id, f.source, r.scope, f.state, f.created_ms, f.session, f.note"""
# CROSS JOIN keeps the order: the feedback by its filter first, then its current revision.
_CURRENT: Final = """
FROM feedback AS f CROSS JOIN feedback_revisions AS r
ON r.feedback = f.id AND r.revision = f.revision"""
_IS_SIGN: Final = {"good": "r.rating > 0", "bad": "r.rating < 0"}


def by_id(id_: str) -> Query[Feedback]:
    """Return the query for one feedback, as its current revision says."""
    return Query(f"SELECT {_COLUMNS} {_CURRENT} WHERE f.id = ?", (id_,), _decode)


def position(id_: str) -> Query[int]:
    """Return the query for a feedback's place in the order of arrival."""
    return Query("SELECT num FROM feedback WHERE id = ?", (id_,), lambda row: int(row[0]))


def revisions(id_: str) -> Query[Feedback]:
    """Return the query for all revisions of a feedback, the first one first."""
    sql = f"""SELECT {_COLUMNS} FROM feedback AS f
CROSS JOIN feedback_revisions AS r ON r.feedback = f.id WHERE f.id = ? ORDER BY r.revision"""
    return Query(sql, (id_,), _decode)


def newest(wanted: FeedbackFilter, limit: int, before: int = NEWEST) -> Query[Feedback]:
    """Return the query for up to `limit` feedback older than position `before`, newest first."""
    conditions, parameters = _conditions(wanted)
    sql = f"""SELECT {_COLUMNS} {_CURRENT}
WHERE {" AND ".join(["f.num < ?", *conditions])} ORDER BY f.num DESC LIMIT ?"""
    return Query(sql, (before, *parameters, limit), _decode)


def counts(wanted: FeedbackFilter) -> Query[tuple[int, int, int]]:
    """Return the query for how many are above 0, below 0, and there in all."""
    conditions, parameters = _conditions(wanted)
    sql = f"""SELECT count(*) FILTER (WHERE r.rating > 0), count(*) FILTER (WHERE r.rating < 0),
count(*) {_CURRENT} WHERE {" AND ".join(["f.num < ?", *conditions])}"""
    return Query(sql, (NEWEST, *parameters), lambda row: (row[0], row[1], row[2]))


def rated(wanted: FeedbackFilter, limit: int, after: str = "") -> Query[str]:
    """Return the query for up to `limit` completions with standing feedback, after id `after`."""
    conditions, parameters = _conditions(wanted)
    sql = f"""SELECT DISTINCT f.completion {_CURRENT}
WHERE {" AND ".join(["f.state = 'standing'", "f.completion > ?", *conditions])}
ORDER BY f.completion LIMIT ?"""
    return Query(sql, (after, *parameters, limit), lambda row: str(row[0]))


def standing(wanted: FeedbackFilter, completions: list[str]) -> Query[Feedback]:
    """Return the query for the standing feedback on some completions, in order of arrival."""
    conditions, parameters = _conditions(wanted)
    places = ", ".join("?" * len(completions))
    sql = f"""SELECT {_COLUMNS} {_CURRENT}
WHERE {" AND ".join(["f.state = 'standing'", f"f.completion IN ({places})", *conditions])}
ORDER BY f.num"""
    return Query(sql, (*completions, *parameters), _decode)


def _conditions(wanted: FeedbackFilter) -> tuple[list[str], list[object]]:
    asked: dict[str, object] = {
        "f.key_id = ?": wanted.key_id,
        "f.completion = ?": wanted.completion,
        "f.session = ?": wanted.session,
        "f.rater = ?": wanted.rater,
        "f.state = ?": wanted.state,
        "f.created_ms >= ?": wanted.since_ms,
    }
    given = {condition: value for condition, value in asked.items() if value is not None}
    conditions, parameters = list(given), list(given.values())
    if wanted.sign is not None:
        conditions.append(_IS_SIGN[wanted.sign])
    return conditions, parameters


def _decode(row: Row) -> Feedback:
    (
        id_, revision, completion, choice, rating, original, comment, correction, tags, rater,
        key_id, source, scope, state, created_ms, session, note,
    ) = row  # fmt: skip
    return Feedback(
        id_, revision, completion, choice, rating, original.encode(), comment, correction,
        tuple(orjson.loads(tags)), rater, key_id, source, scope, state, created_ms, session, note,
    )  # fmt: skip
