"""Training runs as rows: one at a time, resumable until it is over.

Does not know what a run does. Each function here is one operation of the writer.

    queued   -> running, failed, cancelled
    running  -> gating, rejected, failed, cancelled
    gating   -> running (resumed), passed, rejected, failed, cancelled
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from strop.proxy.errors import Conflict, NotFound
from strop.proxy.ids import new_id
from strop.proxy.store import run_queries, versions
from strop.proxy.store.database import storable
from strop.proxy.store.run_records import UNFINISHED, Run, RunState, RunUpdate

_NEXT: Final[Mapping[RunState, tuple[RunState, ...]]] = {
    "queued": ("running", "failed", "cancelled"),
    "running": ("gating", "rejected", "failed", "cancelled"),
    "gating": ("running", "passed", "rejected", "failed", "cancelled"),
}

_INSERT: Final = """
INSERT INTO runs (id, created_ms, state, objective, preset, parent, base, requested_by, config)
VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?)"""
_SET_STATE: Final = """
UPDATE runs SET state = ?, started_ms = coalesce(started_ms, ?), finished_ms = ?
WHERE id = ?"""
_BEGIN_ANEW: Final = """
UPDATE runs SET started_ms = ?, step = 0, num_steps = 0, eta_s = NULL, counts = '{}', metrics = '{}'
WHERE id = ?"""
_ADD_STEP: Final = """
INSERT OR REPLACE INTO run_steps (run, step, created_ms, metrics) VALUES (?, ?, ?, ?)"""
_DROP_LATER_STEPS: Final = "DELETE FROM run_steps WHERE run = ? AND step > ?"
_SET_STEP: Final = "UPDATE runs SET step = ?, metrics = ?, eta_s = ? WHERE id = ?"
_ASK_TO_CANCEL: Final = """
UPDATE runs SET cancelling = 1, reasons = json_array(?) WHERE id = ? AND NOT cancelling"""


def create(
    connection: sqlite3.Connection,
    *,
    objective: str,
    preset: str,
    parent: str | None,
    base: str,
    requested_by: str,
    config: bytes,
    now_ms: int,
) -> Run:
    """Queue a new run.

    Args:
        connection: in a transaction.
        objective: what it minimises.
        preset: how far it may go.
        parent: the version that it continues; None, or `base`, for the base.
        base: the identity of the base.
        requested_by: who wants it.
        config: the settings in force, a JSON object.
        now_ms: the time, since the epoch.

    Raises:
        Conflict: another run isn't over, or the parent can't be continued from.
        NotFound: there is no such parent.
    """
    for other in run_queries.unfinished().run(connection):
        raise Conflict(
            f"one run at a time, and {other.id} is {other.state}; wait for it, or cancel it"
        )
    parent_num = versions.continued(connection, parent, base)
    id_ = new_id("run", now_ms)
    told = (objective, storable(preset), parent_num, base, storable(requested_by), config.decode())
    connection.execute(_INSERT, (id_, now_ms, *told))
    return get(connection, id_)


def update(connection: sqlite3.Connection, id_: str, new: RunUpdate, *, now_ms: int) -> Run:
    """Change what `new` has of a run.

    The time of its start and of its end come from the state; who says it anew doesn't know yet how
    long it takes. A candidate of a run that ends without having published it is rejected with it.

    Raises:
        NotFound: there is no such run.
        Conflict: it is over, or that state can't follow.
    """
    known = _running(connection, id_)
    given: dict[str, object] = {
        field.name: value.decode() if isinstance(value, bytes) else value
        for field in fields(new)
        if field.name != "state" and (value := getattr(new, field.name)) is not None
    }
    if new.state is not None:
        given["eta_s"] = None
    if given:
        assignments = ", ".join(f"{name} = ?" for name in given)
        connection.execute(f"UPDATE runs SET {assignments} WHERE id = ?", (*given.values(), id_))
    if new.state is not None and new.state != known.state:
        if new.state not in _NEXT[known.state]:
            raise Conflict(
                f"expected one of {', '.join(_NEXT[known.state])} after {known.state}, got"
                f" {new.state}, for {id_}"
            )
        _set_state(connection, known, new.state, now_ms)
    return get(connection, id_)


def begin_anew(connection: sqlite3.Connection, id_: str, *, now_ms: int) -> Run:
    """Forget how far a run had come; it starts now, with the ratings that there are now.

    Raises:
        NotFound: there is no such run.
        Conflict: it is over.
    """
    _running(connection, id_)
    connection.execute(_DROP_LATER_STEPS, (id_, 0))
    connection.execute(_BEGIN_ANEW, (now_ms, id_))
    return get(connection, id_)


def add_step(
    connection: sqlite3.Connection,
    id_: str,
    step: int,
    metrics: bytes,
    *,
    eta_s: float | None,
    now_ms: int,
) -> Run:
    """Write down a step's metrics, which are the run's newest too.

    The same step again replaces it, and those after it: a resumed run takes them again.

    Raises:
        NotFound: there is no such run.
        Conflict: it is over.
    """
    _running(connection, id_)
    text = metrics.decode()
    connection.execute(_DROP_LATER_STEPS, (id_, step))
    connection.execute(_ADD_STEP, (id_, step, now_ms, text))
    connection.execute(_SET_STEP, (step, text, eta_s, id_))
    return get(connection, id_)


def cancel(connection: sqlite3.Connection, id_: str, *, reason: str, now_ms: int) -> Run:
    """Ask a run to stop; one that hasn't begun is cancelled at once. Again, that changes nothing.

    It ends for `reason`, unless it is over before it sees that.

    Raises:
        NotFound: there is no such run.
        Conflict: it is over.
    """
    known = get(connection, id_)
    if known.state == "cancelled":
        return known
    _running(connection, id_)
    connection.execute(_ASK_TO_CANCEL, (reason, id_))
    if known.state == "queued":
        _set_state(connection, known, "cancelled", now_ms)
    return get(connection, id_)


def get(connection: sqlite3.Connection, id_: str) -> Run:
    """Return a run.

    Raises:
        NotFound: there is none of this id.
    """
    found = run_queries.by_id(id_).run(connection)
    if not found:
        raise NotFound(f"no run {id_!r}; list the runs to find its id")
    return found[0]


def _running(connection: sqlite3.Connection, id_: str) -> Run:
    known = get(connection, id_)
    if known.state not in UNFINISHED:
        raise Conflict(f"expected a run that isn't over, but {id_} is {known.state}")
    return known


def _set_state(connection: sqlite3.Connection, known: Run, state: RunState, now_ms: int) -> None:
    started_ms = now_ms if state == "running" else None
    finished_ms = None if state in UNFINISHED else now_ms
    connection.execute(_SET_STATE, (state, started_ms, finished_ms, known.id))
    if finished_ms is not None and known.version is not None:
        versions.abandon(connection, known.version, f"{known.id} {state}", now_ms=now_ms)
