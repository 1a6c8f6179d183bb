"""Adapter versions as rows: reserved, published with what they learned, removed, never forgotten.

Does not know what is in their folders. Each function here is one operation of the writer.

    candidate -> ready -> active -> retired -> active ...
    candidate -> rejected             refused by the gate or the import, or never finished
    ready, retired, active -> missing   its folder is gone
    missing -> ready, retired, active   its folder is there again
"""

import sqlite3
import time
from collections.abc import Sequence
from typing import Final

import orjson

from strop.proxy import base_names
from strop.proxy.errors import Conflict, NotFound
from strop.proxy.store import events, lineage, run_queries, version_queries
from strop.proxy.store.database import storable
from strop.proxy.store.version_records import (
    BASE,
    EventKind,
    Origin,
    Verdict,
    Version,
    VersionEvent,
    VersionState,
    version_num,
)

_RESERVE: Final = """
INSERT INTO versions (created_ms, parent, base, run, origin, state)
VALUES (?, ?, ?, ?, ?, 'candidate')"""
_RUN: Final = "SELECT version, finished_ms FROM runs WHERE id = ?"
_BASE_PATH: Final = "SELECT json_extract(config, '$.base_path') FROM runs WHERE id = ?"
_SET_RUN: Final = "UPDATE runs SET version = ? WHERE id = ?"
_PUBLISH: Final = """
UPDATE versions SET state = ?, manifest = ?, reason = ?, stale = coalesce(stale, ?) WHERE num = ?"""
_AMEND: Final = "UPDATE versions SET manifest = ?, reason = ? WHERE num = ?"
_SET_STATE: Final = "UPDATE versions SET state = ?, reason = ? WHERE num = ?"
_DEACTIVATED: Final = """
SELECT 1 FROM version_events WHERE version = ? AND kind = 'deactivated' LIMIT 1"""
# What was said of it before its folder was gone.
_FORMER_REASON: Final = """
SELECT json_extract(detail, '$.former_reason') FROM version_events
WHERE version = ? AND kind = 'missing' ORDER BY num DESC LIMIT 1"""
_SET_KEPT: Final = "UPDATE versions SET pinned = ? WHERE num = ?"
# In a probe stands what people asked; the digest is of that too. Of a manifest that is damaged
# nothing can be told.
_REMOVE: Final = """
UPDATE versions SET removed_ms = ?, manifest = CASE WHEN json_valid(manifest)
THEN json_remove(manifest, '$.probe', '$.digest') ELSE '{}' END
WHERE num = ?"""


def reserve(
    connection: sqlite3.Connection,
    *,
    base: str,
    parent: str | None,
    run: str | None,
    origin: Origin,
    now_ms: int,
) -> Version:
    """Return a new candidate; for a run that has one already, that one.

    Args:
        connection: in a transaction.
        base: the identity of the base.
        parent: the version that it continues; None, or `base`, for the base.
        run: the run that makes it, if one does.
        origin: where it comes from.
        now_ms: the time, since the epoch.

    Raises:
        NotFound: there is no such parent or run.
        Conflict: the parent can't be continued from, or the run is over.
    """
    parent_num = continued(connection, parent, base)
    if run is not None:
        found = connection.execute(_RUN, (run,)).fetchone()
        if found is None:
            raise NotFound(f"no run {run!r}; list the runs to find its id")
        num, finished_ms = found
        if finished_ms is not None:
            raise Conflict(f"expected a run that isn't over, but {run} is; start another one")
        known = [] if num is None else version_queries.by_num(num).run(connection)
        if known and known[0].state == "candidate":
            return known[0]
    num = connection.execute(_RESERVE, (now_ms, parent_num, base, run, origin)).lastrowid
    assert num is not None
    if run is not None:
        connection.execute(_SET_RUN, (num, run))
    return _by_num(connection, num)


def continued(connection: sqlite3.Connection, parent: str | None, base: str) -> int | None:
    """Return the number of the version that a run or a version continues; None for the base.

    Raises:
        NotFound: there is no such version.
        Conflict: it was never ready, its folder is gone, or it is of another base.
    """
    if parent in (None, BASE):
        return None
    known = get(connection, parent)
    if known.state not in ("ready", "active", "retired"):
        raise Conflict(f"expected a version to continue from, but {parent} is {known.state}")
    if known.base != base:
        found = connection.execute(_BASE_PATH, (known.run,)).fetchone()
        raise Conflict(
            f"expected a version of the base {base_names.shown(base, None)}, but {parent} is of"
            f" {base_names.shown(known.base, found and found[0])}; set model.base to that one, or"
            " start from `base`"
        )
    return known.num


def publish(
    connection: sqlite3.Connection,
    id_: str,
    *,
    manifest: bytes,
    feedback: Sequence[tuple[str, int]],
    state: Verdict,
    reason: str | None,
    actor: str,
    now_ms: int,
) -> Version:
    """Make a candidate whose folder is in place what it was judged to be.

    It is stale from the beginning where a feedback that it learned from isn't any more what it was.

    Args:
        connection: in a transaction.
        id_: the version.
        manifest: its manifest, a JSON object.
        feedback: what it learned from: ids and revisions.
        state: what the gate, or the import, says of it.
        reason: why, for people.
        actor: who says so.
        now_ms: the time, since the epoch.

    Raises:
        NotFound: there is no such version, or no such feedback.
        Conflict: it is no candidate.
    """
    known = _candidate(connection, id_)
    stale = lineage.learn(connection, known.num, feedback)
    text = manifest.decode()
    connection.execute(_PUBLISH, (state, text, storable(reason), stale, known.num))
    made: EventKind = "created" if known.origin == "run" else "imported"
    origin = {"run": known.run, "parent": known.parent or BASE, "num_feedback": len(feedback)}
    events.add(connection, known.num, made, actor, origin, now_ms)
    if state == "rejected" or known.origin == "run":
        verdict: EventKind = "rejected" if state == "rejected" else "passed"
        events.add(connection, known.num, verdict, actor, {"reason": reason}, now_ms)
    if stale is not None and known.stale is None:
        events.add(connection, known.num, "stale", actor, {"reason": stale}, now_ms)
    return _by_num(connection, known.num)


def amend(
    connection: sqlite3.Connection,
    id_: str,
    *,
    manifest: bytes,
    reason: str | None,
    actor: str,
    now_ms: int,
) -> Version:
    """Give a version the manifest with its probe, or say why it gets none.

    Raises:
        NotFound: there is no such version.
        Conflict: it is a candidate or rejected, or its folder is gone.
    """
    known = get(connection, id_)
    if known.state not in ("ready", "active", "retired"):
        raise Conflict(f"expected a version with its folder in place, but {id_} is {known.state}")
    connection.execute(_AMEND, (manifest.decode(), storable(reason), known.num))
    events.add(connection, known.num, "probed", actor, {"reason": reason}, now_ms)
    return _by_num(connection, known.num)


def fail(
    connection: sqlite3.Connection, id_: str, reason: str, *, actor: str, now_ms: int
) -> Version:
    """Reject a candidate whose folder was never finished.

    Raises:
        NotFound: there is no such version.
        Conflict: it is no candidate.
    """
    known = _candidate(connection, id_)
    connection.execute(_SET_STATE, ("rejected", storable(reason), known.num))
    events.add(connection, known.num, "rejected", actor, {"reason": reason}, now_ms)
    return _by_num(connection, known.num)


def abandon(connection: sqlite3.Connection, id_: str, reason: str, *, now_ms: int) -> None:
    """Reject a version whose run is over, if it is a candidate still."""
    num = version_num(id_)
    assert num is not None
    for known in version_queries.by_num(num).run(connection):
        if known.state == "candidate":
            fail(connection, id_, reason, actor="run", now_ms=now_ms)


def mark_missing(
    connection: sqlite3.Connection, id_: str, reason: str, *, actor: str, now_ms: int
) -> Version:
    """Say that a version's folder is gone or broken; again, why it still is.

    A rejected one stays as it is.

    Raises:
        NotFound: there is no such version.
        Conflict: it is a candidate, which has no folder yet.
    """
    known = get(connection, id_)
    if known.state == "candidate":
        raise Conflict(f"expected a version that was published, but {id_} is a candidate")
    if known.state == "rejected":
        return known
    connection.execute(_SET_STATE, ("missing", storable(reason), known.num))
    if known.state != "missing":
        detail = {"reason": reason, "former_reason": known.reason}
        events.add(connection, known.num, "missing", actor, detail, now_ms)
    return _by_num(connection, known.num)


def mark_found(connection: sqlite3.Connection, id_: str, *, actor: str, now_ms: int) -> Version:
    """Make a missing version what it would be now, had it never been missing; no other changes.

    Raises:
        NotFound: there is no such version.
    """
    known = get(connection, id_)
    if known.state != "missing":
        return known
    state: VersionState = "ready"
    if version_queries.stack().run(connection)[0].version == known.num:
        state = "active"
    elif connection.execute(_DEACTIVATED, (known.num,)).fetchone():
        state = "retired"
    (reason,) = connection.execute(_FORMER_REASON, (known.num,)).fetchone()
    connection.execute(_SET_STATE, (state, reason, known.num))
    events.add(connection, known.num, "found", actor, {"state": state}, now_ms)
    return _by_num(connection, known.num)


def set_kept(connection: sqlite3.Connection, id_: str, is_kept: bool) -> Version:
    """Say whether retention must keep a version.

    Raises:
        NotFound: there is no such version.
    """
    known = get(connection, id_)
    connection.execute(_SET_KEPT, (is_kept, known.num))
    return _by_num(connection, known.num)


def refuse_needed(connection: sqlite3.Connection, id_: str) -> Version:
    """Return a version that may be removed.

    Raises:
        NotFound: there is no such version.
        Conflict: it is active, or being made, or kept; or a run that isn't over continues it.
    """
    known = get(connection, id_)
    top = version_queries.stack().run(connection)[0]
    if known.num == top.version:
        raise Conflict(f"{id_} is active; activate another version first, or roll back")
    if known.state == "candidate":
        raise Conflict(f"{id_} is being made; cancel its run first")
    if known.is_kept:
        raise Conflict(f"{id_} is kept; let it go first (`adapters keep {id_} --release`)")
    for run in run_queries.unfinished().run(connection):
        if run.parent == id_:
            raise Conflict(f"{run.id} continues {id_}; wait for it, or cancel it")
    return known


def remove(connection: sqlite3.Connection, id_: str, *, actor: str, now_ms: int) -> None:
    """Show a version no more, and forget its probe; raises as `refuse_needed`.

    What descends from it has still learned what it learned.
    """
    known = refuse_needed(connection, id_)
    connection.execute(_REMOVE, (now_ms, known.num))
    events.add(connection, known.num, "removed", actor, {}, now_ms)


def add_event(
    connection: sqlite3.Connection,
    id_: str,
    kind: EventKind,
    *,
    actor: str,
    detail: bytes,
    now_ms: int,
) -> VersionEvent:
    """Write down what happened to a version, or to the base.

    Raises:
        NotFound: there is no such version.
    """
    num = None if id_ == BASE else get(connection, id_).num
    events.add(connection, num, kind, actor, orjson.loads(detail), now_ms)
    return version_queries.events_of(id_, 1).run(connection)[0]


def get(connection: sqlite3.Connection, id_: str) -> Version:
    """Return a version.

    Raises:
        NotFound: there is none of this id, or it was removed, and when.
    """
    num = version_num(id_)
    found = [] if num is None else version_queries.by_num(num).run(connection)
    if not found:
        events = version_queries.events_of(id_, 1).run(connection)
        raise no_such(id_, removal(id_, events))
    return found[0]


def no_such(id_: str, removal: str | None) -> NotFound:
    """Return what to raise where there is no version `id_`: with its removal, if it had one."""
    return NotFound(removal or f"no version {id_[:100]!r}; list the versions to find its id")


def removal(id_: str, newest: Sequence[VersionEvent]) -> str | None:
    """Return when a version was removed, for people, from its newest event; None if it wasn't."""
    # Nothing happens to it after that.
    if not newest or newest[0].kind != "removed":
        return None
    day = time.strftime("%Y-%m-%d", time.localtime(newest[0].created_ms / 1000))
    return f"{id_} was removed on {day}"


def _candidate(connection: sqlite3.Connection, id_: str) -> Version:
    known = get(connection, id_)
    if known.state != "candidate":
        raise Conflict(f"expected a candidate, but {id_} is {known.state}")
    return known


def _by_num(connection: sqlite3.Connection, num: int) -> Version:
    (known,) = version_queries.by_num(num).run(connection)
    return known
