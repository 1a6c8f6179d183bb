"""Feedback as it is read: one, a list, its revisions, the counts.

Pure: makes queries and decodes their rows; runs and changes nothing.
"""

from collections.abc import Sequence
from typing import Final

import orjson

from strop.proxy.store import filters
from strop.proxy.store.database import Query, Row
from strop.proxy.store.records import Feedback, FeedbackFilter

NEWEST: Final = 2**63 - 1
"""The position that every feedback is older than."""

_COLUMNS: Final = """
f.id, r.revision, f.completion, f.choice, r.rating, r.original, r.comment, r.correction, r.tags,
f.rater, f.key_id, f.source, r.scope, f.state, f.created_ms, f.session, f.note,
f.held_out"""
# CROSS JOIN keeps the order: the feedback by its filter first, then its current revision.
_CURRENT: Final = """
FROM feedback AS f CROSS JOIN feedback_revisions AS r
ON r.feedback = f.id AND r.revision = f.revision"""
_SIGNS: Final = {"good": 1, "bad": -1}
# The first that could be so late: `latest_ms` never falls, as `created_ms` does with the clock.
_SINCE: Final = """f.num >= (SELECT num FROM feedback WHERE latest_ms >= ?
ORDER BY latest_ms, num LIMIT 1) AND f.created_ms >= ?"""
_BY_ANSWER: Final = ("f.completion = ?", "f.session = ?")


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
    by_state = () if wanted.state in (None, "standing") else ("f.state = ?",)
    leads = (
        *_BY_ANSWER, *by_state, *_by_rater(wanted), "f.key_id = ?", "f.sign = ?", "f.rater = ?",
    )  # fmt: skip
    conditions, parameters = _conditions(wanted, leads)
    if by_state:
        # What the partial index is over; the planner doesn't look into the parameter.
        conditions.append("f.state <> 'standing'")
    sql = f"""SELECT {_COLUMNS} {_CURRENT}
WHERE {" AND ".join(["f.num < ?", *conditions])} ORDER BY f.num DESC LIMIT ?"""
    return Query(sql, (before, *parameters, limit), _decode)


def counts(wanted: FeedbackFilter) -> Query[tuple[int, int, int]]:
    """Return the query for how many are above 0, below 0, and there in all."""
    conditions, parameters = _conditions(wanted, (*_BY_ANSWER, "f.key_id = ?"))
    sql = f"""SELECT count(*) FILTER (WHERE f.sign > 0), count(*) FILTER (WHERE f.sign < 0),
count(*) FROM feedback AS f WHERE {" AND ".join(["f.num < ?", *conditions])}"""
    return Query(sql, (NEWEST, *parameters), lambda row: (row[0], row[1], row[2]))


def standing_counts() -> Query[tuple[int, int, int]]:
    """Return the query for the same of all that stands, which is kept counted."""
    sql = """SELECT sum(num) FILTER (WHERE sign > 0), sum(num) FILTER (WHERE sign < 0), sum(num)
FROM rating_counts"""
    return Query(sql, (), lambda row: (row[0], row[1], row[2]))


def rated(wanted: FeedbackFilter, limit: int, after: str = "") -> Query[str]:
    """Return the query for up to `limit` completions with standing feedback, after id `after`."""
    leads = (*_BY_ANSWER, *_by_rater(wanted), "f.key_id = ?")
    conditions, parameters = _conditions(wanted, leads)
    sql = f"""SELECT DISTINCT f.completion FROM feedback AS f
WHERE {" AND ".join(["f.state = 'standing'", "f.completion > ?", *conditions])}
ORDER BY f.completion LIMIT ?"""
    return Query(sql, (after, *parameters, limit), lambda row: str(row[0]))


def rated_choices(completions: list[str]) -> Query[tuple[str, int, str]]:
    """Return the query for the choices of some completions with standing feedback, in order.

    Each is its completion, its index, and the first completion of its session.
    """
    places = ", ".join("?" * len(completions))
    sql = f"""SELECT f.completion, f.choice, f.root FROM feedback AS f
WHERE f.state = 'standing' AND f.completion IN ({places})
GROUP BY f.completion, f.choice ORDER BY f.completion, f.choice"""
    return Query(sql, completions, lambda row: (row[0], row[1], row[2]))


def standing(wanted: FeedbackFilter, completions: list[str]) -> Query[Feedback]:
    """Return the query for the standing feedback on some completions, in order of arrival."""
    conditions, parameters = _conditions(wanted, leads=())
    places = ", ".join("?" * len(completions))
    sql = f"""SELECT {_COLUMNS} {_CURRENT}
WHERE {" AND ".join(["f.state = 'standing'", f"f.completion IN ({places})", *conditions])}
ORDER BY f.num"""
    return Query(sql, (*completions, *parameters), _decode)


def _by_rater(wanted: FeedbackFilter) -> tuple[str, ...]:
    # Most ratings are of the rater without a name.
    return ("f.rater = ?",) if wanted.rater else ()


def _conditions(wanted: FeedbackFilter, leads: Sequence[str]) -> tuple[list[str], list[object]]:
    asked = {
        "f.key_id = ?": wanted.key_id,
        "f.completion = ?": wanted.completion,
        "f.session = ?": wanted.session,
        "f.rater = ?": wanted.rater,
        "f.state = ?": wanted.state,
        "f.sign = ?": None if wanted.sign is None else _SIGNS[wanted.sign],
        "f.source = ?": wanted.source,
    }
    conditions, parameters = filters.conditions(asked, leads)
    if wanted.since_ms is not None:
        conditions.append(_SINCE)
        parameters += [wanted.since_ms, wanted.since_ms]
    return conditions, parameters


def _decode(row: Row) -> Feedback:
    (
        id_, revision, completion, choice, rating, original, comment, correction, tags, rater,
        key_id, source, scope, state, created_ms, session, note, held_out,
    ) = row  # fmt: skip
    return Feedback(
        id_, revision, completion, choice, rating, original.encode(), comment, correction,
        tuple(orjson.loads(tags)), rater, key_id, source, scope, state, created_ms, session, note,
        bool(held_out),
    )  # fmt: skip
