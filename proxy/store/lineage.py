"""What versions have learned, themselves and through their ancestors, and what makes them stale.

Does not know what a rating says, or how a version is made. Nothing is marked as consumed: what is
fresh follows from here and from the version that is active.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

from strop.proxy.errors import NotFound
from strop.proxy.store import events, feedback_queries
from strop.proxy.store.records import Feedback
from strop.proxy.store.version_records import version_id

# The plus: the few that learned a rating are looked up in the lineage, not the lineage in them.
LEARNED: Final = """
EXISTS (SELECT 1 FROM version_feedback AS l WHERE l.feedback = f.id AND l.revision = f.revision
AND +l.version IN (SELECT version FROM lineage))"""
"""Whether a version of `lineage` has learned the feedback `f`, as its current revision says."""

# UNION: each once.
OF_VERSION: Final = """
WITH RECURSIVE lineage (version) AS (
    SELECT num FROM versions WHERE num = ?
    UNION
    SELECT v.parent FROM lineage CROSS JOIN versions AS v ON v.num = lineage.version
    WHERE v.parent IS NOT NULL
)"""
"""Begins a query over `lineage`, a version and its ancestors; its parameter is its number."""

_OF_HEIRS: Final = """
WITH RECURSIVE heirs (version) AS (
    SELECT version FROM version_feedback WHERE feedback = ?
    UNION
    SELECT v.num FROM heirs CROSS JOIN versions AS v ON v.parent = heirs.version
)"""
_HEIRS: Final = f"""{_OF_HEIRS}
SELECT num FROM heirs CROSS JOIN versions ON num = version WHERE removed_ms IS NULL"""
_MARK_STALE: Final = f"""{_OF_HEIRS}
UPDATE versions SET stale = ?
WHERE num IN (SELECT version FROM heirs) AND stale IS NULL AND removed_ms IS NULL
RETURNING num"""
_LEARNERS: Final = "SELECT version FROM version_feedback WHERE feedback = ? ORDER BY version"
_CARRY_OVER: Final = """
INSERT OR REPLACE INTO version_feedback (feedback, version, revision)
SELECT ?, version, ? FROM version_feedback WHERE feedback = ? AND revision = ?"""
_LEARN: Final = "INSERT INTO version_feedback (feedback, version, revision) VALUES (?, ?, ?)"
_LEARN_INSTEAD: Final = """
INSERT OR REPLACE INTO version_feedback (feedback, version, revision) VALUES (?, ?, ?)"""
_BEGINS_TURN: Final = "SELECT 1 FROM completions WHERE id = ? AND turn = id"
# What is not as it was learned, and what stands in its place.
_CHANGED: Final = """
SELECT f.id, l.revision, f.state, s.id FROM version_feedback AS l
CROSS JOIN feedback AS f ON f.id = l.feedback
LEFT JOIN feedback AS s ON s.state = 'standing' AND s.completion = f.completion
AND s.choice = f.choice AND s.rater = f.rater AND s.key_id = f.key_id
WHERE l.version = ? AND (f.state <> 'standing' OR f.revision <> l.revision)
ORDER BY f.num"""


def hand_over(connection: sqlite3.Connection, old: Feedback, new: Feedback, *, now_ms: int) -> None:
    """Take note that `new` stands now where `old` did: another revision, or another feedback.

    Where it says the same, in other words perhaps, whoever learned `old` has learned `new`. Else
    they are stale.
    """
    if _says_the_same(connection, old, new):
        connection.execute(_CARRY_OVER, (new.id, new.revision, old.id, old.revision))
    else:
        how = "revised" if new.id == old.id else "superseded"
        mark_stale(connection, old.id, how, now_ms=now_ms)


def _says_the_same(connection: sqlite3.Connection, one: Feedback, other: Feedback) -> bool:
    """Return whether the same is learned from both, if they are of the same choice."""
    if (one.rating, one.correction) != (other.rating, other.correction):
        return False
    # Up to the answer that begins it, a turn is that answer.
    return one.scope == other.scope or (
        connection.execute(_BEGINS_TURN, (other.completion,)).fetchone() is not None
    )


def mark_stale(connection: sqlite3.Connection, feedback: str, how: str, *, now_ms: int) -> None:
    """Mark each version that learned from `feedback`, and all their descendants, as stale.

    One that is stale already keeps its reason.

    Args:
        connection: in a transaction.
        feedback: its id.
        how: what became of it: `withdrawn`, `superseded` or `revised`.
        now_ms: the time, since the epoch.
    """
    learners = [version_id(num) for (num,) in connection.execute(_LEARNERS, (feedback,))]
    if not learners:
        return
    reason = f"{', '.join(learners)} learned from {feedback}, which was {how} since"
    marked = connection.execute(_MARK_STALE, (feedback, reason)).fetchall()
    for (num,) in sorted(marked):
        events.add(connection, num, "stale", "feedback", {"reason": reason}, now_ms)


def heirs(connection: sqlite3.Connection, feedback: str) -> set[int]:
    """Return the numbers of the versions that have learned from `feedback`, whatever it said then.

    Themselves or through an ancestor; those that were removed are left out.
    """
    return {num for (num,) in connection.execute(_HEIRS, (feedback,))}


def learn(
    connection: sqlite3.Connection, num: int, feedback: Sequence[tuple[str, int]]
) -> str | None:
    """Write down that a version learned from `feedback`, pairs of id and revision.

    Returns:
        Why it is stale from the beginning; None where all of that still stands as it was.

    Raises:
        NotFound: there is no such feedback, or no such revision.
    """
    try:
        connection.executemany(_LEARN, [(id_, num, rev) for id_, rev in dict.fromkeys(feedback)])
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            raise
        raise NotFound(
            f"{version_id(num)} learned from feedback that isn't there; give the ids and revisions"
            " as the store gave them"
        ) from error
    changed = []
    for id_, revision, state, standing in connection.execute(_CHANGED, (num,)).fetchall():
        said = {one.revision: one for one in feedback_queries.revisions(id_).run(connection)}
        if revision not in said:
            raise NotFound(f"{id_} has no revision {revision}, but {sorted(said)}")
        current = [] if standing is None else feedback_queries.by_id(standing).run(connection)
        if current and _says_the_same(connection, said[revision], current[0]):
            connection.execute(_LEARN_INSTEAD, (current[0].id, num, current[0].revision))
        else:
            changed.append(f"{id_}, which was {'revised' if state == 'standing' else state} since")
    if not changed:
        return None
    more = f", and {len(changed) - 1} more that changed" if len(changed) > 1 else ""
    return f"{version_id(num)} learned from {changed[0]}{more}"
