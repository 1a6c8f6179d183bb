"""Activations and pairings as rows: which version is active, and whose base an engine has.

Does not know what an engine serves. Each function here is one operation of the writer.

Activations are a stack. Activating puts a version on what is active; rolling back goes on from what
lies below that, so a second rollback goes further back:

    activate a, b, c    base < a < b < c
    roll back           base < a < b
    roll back           base < a
    activate d          base < a < d
    roll back           base < a
"""

import sqlite3
from typing import Final

import orjson

from strop.proxy.errors import Conflict
from strop.proxy.store import events, version_queries, versions
from strop.proxy.store.version_records import BASE, Activating, Activation, Pairing

_RETIRE: Final = "UPDATE versions SET state = 'retired' WHERE state = 'active'"
_ACTIVATE: Final = "UPDATE versions SET state = 'active' WHERE num = ?"
_INSERT: Final = "INSERT INTO activations (created_ms, version, below, actor) VALUES (?, ?, ?, ?)"
_SET_PAIRING: Final = """
INSERT OR REPLACE INTO pairings (engine, engine_digest, base, error, created_ms)
VALUES (?, ?, ?, ?, ?)"""
_REMOVE_PAIRING: Final = "DELETE FROM pairings WHERE engine = ?"


def activate(
    connection: sqlite3.Connection,
    id_: str,
    *,
    kind: Activating,
    actor: str,
    detail: bytes,
    now_ms: int,
) -> Activation:
    """Make a version the active one; where it is that already, nothing happens.

    Args:
        connection: in a transaction.
        id_: the version, or `base`.
        kind: `activated`: what is active now is where a rollback goes. `rolled_back`: it goes where
            it went when `id_` was activated.
        actor: who wants it.
        detail: a JSON object for the event; `from` is added.
        now_ms: the time, since the epoch.

    Raises:
        NotFound: there is no such version.
        Conflict: it is neither ready nor retired; or a rollback goes to what wasn't active before.
    """
    stack = version_queries.stack().run(connection)
    top = stack[0]
    known = None if id_ == BASE else versions.get(connection, id_)
    num = None if known is None else known.num
    if num == top.version:
        return version_queries.activation(stack)
    if known is not None and known.state not in ("ready", "retired"):
        raise Conflict(
            f"expected a version that is ready or retired, but {id_} is {known.state}; activate"
            " another one"
        )
    below: int | None = top.num
    if kind == "rolled_back":
        before = next((one for one in stack[1:] if one.version == num), None)
        if before is None:
            raise Conflict(f"expected a version that was active before, but {id_} was not")
        below = before.below
    connection.execute(_RETIRE)
    connection.execute(_ACTIVATE, (num,))
    connection.execute(_INSERT, (now_ms, num, below, actor))
    left = version_queries.name(top.version)
    events.add(connection, top.version, "deactivated", actor, {"to": id_}, now_ms)
    events.add(connection, num, kind, actor, {**orjson.loads(detail), "from": left}, now_ms)
    return version_queries.activation(version_queries.stack().run(connection))


def set_pairing(connection: sqlite3.Connection, new: Pairing) -> None:
    """Remember an engine's pairing, in the place of an earlier one."""
    values = (new.engine, new.engine_digest, new.base, new.error, new.created_ms)
    connection.execute(_SET_PAIRING, values)


def remove_pairing(connection: sqlite3.Connection, engine: str) -> None:
    """Forget an engine's pairing, if it has one."""
    connection.execute(_REMOVE_PAIRING, (engine,))
