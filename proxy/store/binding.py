"""Which completion a rating is of, and what of that completion stands in the rating's own row.

Does not know what a rating says. Reads only; each function belongs to an operation of `feedback`.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from strop.proxy.errors import AmbiguousCompletion
from strop.proxy.store.held_out import is_held_out
from strop.proxy.store.records import Completion, State

MAX_CANDIDATES: Final = 10
"""How many candidates an ambiguous id is answered with, the newest."""

TRAINS: Final[tuple[State, ...]] = ("complete", "client_cancelled")
"""The states of completions that may be learned from: the model itself said what there is."""

_BY_OWN_ID: Final = """
SELECT key_id, num, created_ms, session, state, base FROM completions WHERE id = ?"""
_NUM: Final = "SELECT num FROM completions WHERE id = ?"
_BY_ALIAS: Final = """
SELECT id, model, num, created_ms, session, state, base FROM completions
WHERE upstream_id = ? AND key_id = ? ORDER BY num DESC LIMIT ?"""
# Clients of several keys may name theirs alike. By the key alone, far more would have to be read.
_KNOWN_ROOT: Final = """
SELECT root FROM feedback WHERE session = ? AND +key_id = ? AND root IS NOT NULL LIMIT 1"""
_FIRST_OF_SESSION: Final = """
SELECT id FROM completions WHERE session = ? AND +key_id = ? ORDER BY created_ms, num LIMIT 1"""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A completion that is on its way into the store: its own id, and what else tells which it is.

    `model` is as its client asked for it.
    """

    id: str
    created_ms: int
    model: str


@dataclass(frozen=True, slots=True)
class Bound:
    """The completion that a rating is of.

    Attributes:
        completion: its id.
        num: its place in the order of commit.
        created_ms: when it was asked for.
        session: its session.
        base: the base that answered; None where that isn't known, or where the answer is not all
            that the model said: such a rating is never learned from.
        root: the first completion of the session with this key; the same for all its feedback.
        is_held_out: whether the session is held out.
    """

    completion: str
    num: int
    created_ms: int
    session: str
    base: str | None
    root: str
    is_held_out: bool


def find(
    connection: sqlite3.Connection, named: str, key_id: str, in_flight: Sequence[InFlight] = ()
) -> Bound | None:
    """Return the completion that is `named`, by its own id or the engine's, or None.

    Args:
        connection: reads.
        named: the id.
        key_id: the key that it was asked with.
        in_flight: those of the key with this id that were in flight before `connection` began.

    Raises:
        AmbiguousCompletion: the engine gave this id to several; `candidates` are in the error.
    """
    own = connection.execute(_BY_OWN_ID, (named,)).fetchone()
    if own is not None:
        return _bound(connection, key_id, named, *own[1:]) if own[0] == key_id else None
    rows = connection.execute(_BY_ALIAS, (named, key_id, MAX_CANDIDATES)).fetchall()
    recorded = [InFlight(id_, created_ms, model) for id_, model, _, created_ms, *_ in rows]
    known = {one.id for one in recorded}
    called = [one for one in reversed(in_flight) if one.id not in known] + recorded
    if len(called) > 1:
        candidates = [
            {"completion_id": one.id, "created": one.created_ms // 1000, "model": one.model}
            for one in called[:MAX_CANDIDATES]
        ]
        raise AmbiguousCompletion(
            f"the engine gave the id {named!r} to several completions; rate one of `candidates` by"
            " its completion_id",
            param="completion_id",
            detail={"candidates": candidates},
        )
    if not rows:
        return None
    id_, _, *rest = rows[0]
    return _bound(connection, key_id, id_, *rest)


def recorded(connection: sqlite3.Connection, completion: Completion, session: str) -> Bound:
    """Return `completion`, whose row is in the database already."""
    (num,) = connection.execute(_NUM, (completion.id,)).fetchone()
    c = completion
    return _bound(connection, c.key_id, c.id, num, c.created_ms, session, c.state, c.base)


def no_choice(completion: str, choice: int, choices: list[int]) -> str:
    """Return what to say where `completion` has no such choice."""
    if not choices:
        return f"{completion} has no answer to rate"
    return f"expected one of the choices {choices} of {completion}, got {choice}"


def _bound(
    connection: sqlite3.Connection,
    key_id: str,
    completion: str,
    num: int,
    created_ms: int,
    session: str,
    state: State,
    base: str | None,
) -> Bound:
    # What decided it before still does: a completion that came late may have begun earlier.
    named = (session, key_id)
    known = connection.execute(_KNOWN_ROOT, named).fetchone()
    (root,) = known or connection.execute(_FIRST_OF_SESSION, named).fetchone()
    taught = base if state in TRAINS else None
    return Bound(completion, num, created_ms, session, taught, root, is_held_out(root))
