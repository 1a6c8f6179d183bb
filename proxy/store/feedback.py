"""Feedback as rows: bound to its completion, one standing rating each, every revision kept.

Does not know how a rating was given, or who learns from it. Each function here is one operation
of the writer, so it happens whole or not at all. Whoever learned from what no longer stands is
marked as stale in the same one (see `lineage`).

    pending     its completion is in flight; becomes standing (or withdrawn) when that is recorded
    standing    the one that counts, of this completion, choice, rater and key
    superseded  a newer one of the same rater took its place, for good
    withdrawn   taken back by a person, or by strop, which then says why in `note`
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import orjson

from strop.proxy.auth import ADMIN_KEY_ID, LOCAL_KEY_ID
from strop.proxy.errors import (
    BadRequest,
    Conflict,
    IdempotencyConflict,
    NotFound,
    UnknownCompletion,
)
from strop.proxy.ids import new_id
from strop.proxy.store import binding, lineage
from strop.proxy.store.binding import Bound, InFlight
from strop.proxy.store.database import Row, storable
from strop.proxy.store.feedback_queries import by_id
from strop.proxy.store.records import (
    Completion,
    Feedback,
    FeedbackOutcome,
    FeedbackState,
    NewFeedback,
    Revision,
)

_NOT_RECORDED: Final = "the completion was never recorded"
_OTHER_KEY: Final = "the completion was made with another key"

_CHOICES: Final = "SELECT choice FROM choices WHERE completion = ? ORDER BY choice"
_BY_IDEMPOTENCY: Final = "SELECT id, digest FROM feedback WHERE key_id = ? AND idempotency = ?"
_STANDING: Final = """
SELECT id FROM feedback
WHERE state = 'standing' AND completion = ? AND choice = ? AND rater = ? AND key_id = ?"""
_ANY_PENDING: Final = "SELECT 1 FROM feedback WHERE state = 'pending' LIMIT 1"
_PENDING_FOR: Final = """
SELECT id, completion, choice, rater, key_id FROM feedback
WHERE state = 'pending' AND completion IN (?, ?) ORDER BY num"""
_NEWEST_OF_RATER: Final = """
SELECT id FROM feedback WHERE session = ? AND key_id = ? AND rater = ? AND state = 'standing'
ORDER BY num DESC LIMIT 1"""
_ABOVE: Final = """
SELECT parent, parent_choice FROM completions WHERE id = ? AND parent IS NOT NULL"""
_INSERT: Final = """
INSERT INTO feedback (id, created_ms, latest_ms, completion, choice, session, base, root, held_out,
    completion_ms, completion_num, key_id, rater, source, state, revision, sign, idempotency,
    digest)
VALUES (?, ?, max(?, coalesce((SELECT max(latest_ms) FROM feedback), 0)),
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)"""
_INSERT_REVISION: Final = """
INSERT INTO feedback_revisions (feedback, revision, created_ms, rating, original, comment,
    correction, tags, scope)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_SET_STATE: Final = "UPDATE feedback SET state = ?, note = ? WHERE id = ?"
_JOIN: Final = """
UPDATE feedback SET state = 'standing', completion = ?, session = ?, base = ?, root = ?,
    held_out = ?, completion_ms = ?, completion_num = ?
WHERE id = ?"""
_SET_REVISION: Final = "UPDATE feedback SET revision = ?, sign = ? WHERE id = ?"
_WITHDRAW_LOST: Final = """
UPDATE feedback SET state = 'withdrawn', note = ? WHERE state = 'pending'"""


def add(
    connection: sqlite3.Connection,
    new: NewFeedback,
    *,
    is_in_flight: bool,
    called: Sequence[InFlight] = (),
    now_ms: int,
) -> FeedbackOutcome:
    """Store a rating, and supersede the one it replaces.

    The completion is named by its own id, else by the engine's, which is an alias among the
    completions of the same key. A header that repeats the standing rating and its scope, and has
    the same comment or none, changes nothing.

    Args:
        connection: in a transaction.
        new: what was said.
        is_in_flight: whether a completion of this id is running.
        called: those that are, where this is known.
        now_ms: the time, since the epoch.

    Raises:
        UnknownCompletion: the key has no such completion, and none is in flight.
        AmbiguousCompletion: the engine gave this id to several; see `binding.find`.
        BadRequest: the completion has no such choice.
        IdempotencyConflict: the idempotency id came before, with another body.
    """
    new = _storable(new)
    if new.idempotency is not None and (known := _repeated(connection, new)):
        return FeedbackOutcome(known, "repeat")
    bound = binding.find(connection, new.completion, new.key_id, called)
    if bound is None:
        if not is_in_flight:
            has_key = new.key_id not in (LOCAL_KEY_ID, ADMIN_KEY_ID)
            whose = "was made with this key" if has_key else "is recorded"
            raise UnknownCompletion(
                f"no completion {new.completion!r} {whose}; send the id of an answer"
                " (X-Strop-Completion-Id, or the answer's own id)",
                param="completion_id",
            )
        if called:
            # The engine may give its id to another one that is recorded before.
            new = replace(new, completion=called[0].id)
        pending = _insert(connection, new, None, "pending", now_ms)
        return FeedbackOutcome(pending, "pending")
    choices = [choice for (choice,) in connection.execute(_CHOICES, (bound.completion,))]
    if new.choice not in choices:
        raise BadRequest(binding.no_choice(bound.completion, new.choice, choices), param="choice")
    known = _standing(connection, bound.completion, new.choice, new.rater, new.key_id)
    if known is None:
        return FeedbackOutcome(_insert(connection, new, bound, "standing", now_ms), "created")
    if new.source == "header" and _says_nothing_new(new, known):
        return FeedbackOutcome(known, "repeat")
    _set_state(connection, known.id, "superseded")
    created = _insert(connection, new, bound, "standing", now_ms)
    lineage.hand_over(connection, known, created, now_ms=now_ms)
    return FeedbackOutcome(created, "created", known)


def join_pending(connection: sqlite3.Connection, completion: Completion, session: str) -> None:
    """Let the ratings that wait for `completion`, just recorded, stand, in the order they came.

    One that can't be bound (another key, no such choice) is withdrawn, and its note says why: its
    sender was told `pending` and is gone.
    """
    if connection.execute(_ANY_PENDING).fetchone() is None:
        # Nearly always, and asked in a quarter of the time.
        return
    names = (completion.id, storable(completion.upstream_id))
    waiting = connection.execute(_PENDING_FOR, names).fetchall()
    if not waiting:
        return
    choices = [choice.index for choice in completion.choices]
    bound = binding.recorded(connection, completion, session)
    for id_, named, choice, rater, key_id in waiting:
        if key_id != completion.key_id:
            # An alias is scoped to its key: under another one it names something else.
            if named == completion.id:
                _set_state(connection, id_, "withdrawn", _OTHER_KEY)
        elif choice not in choices:
            note = binding.no_choice(completion.id, choice, choices)
            _set_state(connection, id_, "withdrawn", note)
        else:
            known = _standing(connection, completion.id, choice, rater, key_id)
            if known is not None:
                # Nobody has learned from it: its completion is recorded in this transaction.
                _set_state(connection, known.id, "superseded")
            connection.execute(_JOIN, (bound.completion, *_from_completion(bound), id_))


def revise(
    connection: sqlite3.Connection, id_: str, key_id: str | None, new: Revision, *, now_ms: int
) -> Feedback:
    """Make `new` the current revision of a feedback; the same values again change nothing.

    Args:
        connection: in a transaction.
        id_: the feedback.
        key_id: the key that must have given it; None for any.
        new: all of what it says from now on.
        now_ms: the time, since the epoch.

    Raises:
        NotFound: the key gave no such feedback.
        Conflict: it is superseded or withdrawn.
    """
    known = _own(connection, id_, key_id)
    if known.state not in ("standing", "pending"):
        raise Conflict(
            f"expected a standing rating, but {id_} is {known.state}; give a new rating instead"
        )
    if _revision_of(known) != new:
        connection.execute(_SET_REVISION, (known.revision + 1, _sign(new.rating), id_))
        _insert_revision(connection, id_, known.revision + 1, new, now_ms)
        lineage.hand_over(connection, known, get(connection, id_), now_ms=now_ms)
    return get(connection, id_)


def withdraw(
    connection: sqlite3.Connection,
    id_: str,
    key_id: str | None,
    *,
    now_ms: int,
    note: str | None = None,
) -> Feedback:
    """Take a feedback back, whatever its state; the one it superseded stays superseded.

    Args:
        connection: in a transaction.
        id_: the feedback.
        key_id: the key that must have given it; None for any.
        now_ms: the time, since the epoch.
        note: why strop takes it back; None where a person does.

    Raises:
        NotFound: the key (None: any) gave no such feedback.
    """
    known = _own(connection, id_, key_id)
    if known.state != "withdrawn":
        _set_state(connection, id_, "withdrawn", note)
    if known.state == "standing":
        lineage.mark_stale(connection, id_, "withdrawn", now_ms=now_ms)
    return get(connection, id_)


def undo(
    connection: sqlite3.Connection, session: str, key_id: str, rater: str, *, now_ms: int
) -> Feedback | None:
    """Withdraw the rater's newest standing rating in a session; None where there is none.

    The rating that it superseded does not come back: undoing says "I take this back", not "I think
    again what I thought before".
    """
    found = connection.execute(_NEWEST_OF_RATER, (session, key_id, rater)).fetchone()
    return None if found is None else withdraw(connection, found[0], key_id, now_ms=now_ms)


def undo_answer(
    connection: sqlite3.Connection,
    completion: str,
    choice: int,
    key_id: str,
    rater: str,
    *,
    or_above: bool,
    now_ms: int,
) -> Feedback | None:
    """Withdraw the rater's standing rating of an answer; None where there is none.

    Args:
        connection: in a transaction.
        completion: the answer's, by its own id.
        choice: which of its choices.
        key_id: the key that must have given it.
        rater: whose it is.
        or_above: whether, where that has none, it is that of the nearest answer above it in its
            history that has one.
        now_ms: the time, since the epoch.
    """
    answer: tuple[str, int] | None = (completion, choice)
    while answer is not None:
        known = _standing(connection, *answer, rater, key_id)
        if known is not None:
            return withdraw(connection, known.id, key_id, now_ms=now_ms)
        answer = connection.execute(_ABOVE, answer[:1]).fetchone() if or_above else None
    return None


def withdraw_lost(connection: sqlite3.Connection, ids: Sequence[str] | None = None) -> int:
    """Withdraw what waits for a completion that never comes; return how many it was.

    Args:
        connection: in a transaction.
        ids: those among which it is; None for all, no completion being in flight.
    """
    if ids is None:
        return connection.execute(_WITHDRAW_LOST, (_NOT_RECORDED,)).rowcount
    rows = ((_NOT_RECORDED, one) for one in ids)
    return connection.executemany(_WITHDRAW_LOST + " AND id = ?", rows).rowcount


def get(connection: sqlite3.Connection, id_: str) -> Feedback:
    """Return a feedback that is known to exist."""
    (known,) = by_id(id_).run(connection)
    return known


def _storable(new: NewFeedback) -> NewFeedback:
    return replace(
        new,
        completion=storable(new.completion),
        rater=storable(new.rater),
        idempotency=storable(new.idempotency),
    )


def _own(connection: sqlite3.Connection, id_: str, key_id: str | None) -> Feedback:
    found = by_id(id_).run(connection)
    if not found or key_id not in (None, found[0].key_id):
        whose = "is recorded" if key_id in (None, LOCAL_KEY_ID) else "was given with this key"
        raise NotFound(f"no feedback {id_!r} {whose}; list them to find its id")
    return found[0]


def _repeated(connection: sqlite3.Connection, new: NewFeedback) -> Feedback | None:
    known = connection.execute(_BY_IDEMPOTENCY, (new.key_id, new.idempotency)).fetchone()
    if known is None:
        return None
    id_, digest = known
    if digest != new.digest:
        raise IdempotencyConflict(
            f"the idempotency id {new.idempotency!r} came before with another body, as {id_}; use a"
            " new one, or PUT to change that feedback",
            detail={"feedback_id": id_},
        )
    return get(connection, id_)


def _standing(
    connection: sqlite3.Connection, completion: str, choice: int, rater: str, key_id: str
) -> Feedback | None:
    found = connection.execute(_STANDING, (completion, choice, rater, key_id)).fetchone()
    return None if found is None else get(connection, found[0])


def _insert(
    connection: sqlite3.Connection,
    new: NewFeedback,
    bound: Bound | None,
    state: FeedbackState,
    now_ms: int,
) -> Feedback:
    id_ = new_id("fb", now_ms)
    connection.execute(
        _INSERT,
        (
            id_, now_ms, now_ms, new.completion if bound is None else bound.completion, new.choice,
            *_from_completion(bound), new.key_id, new.rater, new.source, state, _sign(new.rating),
            new.idempotency, new.digest,
        ),
    )  # fmt: skip
    said = Revision(new.rating, new.original, new.comment, new.correction, new.tags, new.scope)
    _insert_revision(connection, id_, 1, said, now_ms)
    return get(connection, id_)


def _from_completion(bound: Bound | None) -> Row:
    """Return what a feedback's row has of its completion, in the order of its columns."""
    if bound is None:
        return None, None, None, False, None, None
    return (
        bound.session, bound.base, bound.root, bound.is_held_out, bound.created_ms, bound.num,
    )  # fmt: skip


def _sign(rating: float) -> int:
    return (rating > 0) - (rating < 0)


def _insert_revision(
    connection: sqlite3.Connection, id_: str, number: int, said: Revision, now_ms: int
) -> None:
    connection.execute(
        _INSERT_REVISION,
        (
            id_, number, now_ms, said.rating, said.original.decode(), storable(said.comment),
            storable(said.correction), orjson.dumps([storable(t) for t in said.tags]).decode(),
            said.scope,
        ),
    )  # fmt: skip


def _set_state(
    connection: sqlite3.Connection, id_: str, state: FeedbackState, note: str | None = None
) -> None:
    connection.execute(_SET_STATE, (state, note, id_))


def _revision_of(known: Feedback) -> Revision:
    return Revision(
        known.rating, known.original, known.comment, known.correction, known.tags, known.scope
    )


def _says_nothing_new(new: NewFeedback, known: Feedback) -> bool:
    # A header has no correction and no tags.
    is_same = new.rating == known.rating and new.scope == known.scope
    return is_same and new.comment in (None, known.comment)
