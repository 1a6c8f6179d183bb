"""Adapter versions, their events, the active one and the pairings, as they are read.

Pure: makes queries and decodes their rows; runs and changes nothing.
"""

from dataclasses import dataclass
from typing import Final

from strop.proxy.store import lineage
from strop.proxy.store.database import Query, Row
from strop.proxy.store.version_records import (
    BASE,
    Activation,
    Pairing,
    Version,
    VersionEvent,
    version_id,
    version_num,
)

_NEWEST: Final = 2**63 - 1
_COLUMNS: Final = """
num, created_ms, parent, base, run, origin, state, stale, pinned, reason, manifest"""
_EVENT_COLUMNS: Final = "version, created_ms, kind, actor, detail"
_CAN_BE_ACTIVE: Final = "v.state IN ('ready', 'retired', 'active') AND v.removed_ms IS NULL"

# From the newest activation down, as far as something can be activated again.
_STACK: Final = f"""
WITH RECURSIVE stack (num, version, below, created_ms, actor, depth) AS (
    SELECT num, version, below, created_ms, actor, 0 FROM activations
    WHERE num = (SELECT max(num) FROM activations)
    UNION ALL
    SELECT a.num, a.version, a.below, a.created_ms, a.actor, stack.depth + 1
    FROM stack CROSS JOIN activations AS a ON a.num = stack.below
)
SELECT stack.num, stack.version, stack.below, stack.created_ms, stack.actor
FROM stack LEFT JOIN versions AS v ON v.num = stack.version
WHERE stack.depth = 0 OR stack.version IS NULL OR ({_CAN_BE_ACTIVE})
ORDER BY stack.depth"""


@dataclass(frozen=True, slots=True)
class Activated:
    """One activation as it lies in the stack: the version's number (None: the base), what is below.

    `below` is the number of the activation that a rollback goes back to.
    """

    num: int
    version: int | None
    below: int | None
    created_ms: int
    actor: str


def by_num(num: int) -> Query[Version]:
    """Return the query for one version, unless it was removed."""
    sql = f"SELECT {_COLUMNS} FROM versions WHERE num = ? AND removed_ms IS NULL"
    return Query(sql, (num,), _decode)


def clean_ancestor(num: int | None) -> Query[Version]:
    """Return the query for the newest of a version and its ancestors that is not stale or gone."""
    sql = f"""{lineage.OF_VERSION} SELECT {_COLUMNS}
FROM lineage CROSS JOIN versions ON versions.num = lineage.version
WHERE stale IS NULL AND removed_ms IS NULL AND state <> 'missing' ORDER BY num DESC LIMIT 1"""
    return Query(sql, (num,), _decode)


def newest() -> Query[Version]:
    """Return the query for all versions that weren't removed, newest first."""
    sql = f"""SELECT {_COLUMNS} FROM versions
WHERE num < ? AND removed_ms IS NULL ORDER BY num DESC"""
    return Query(sql, (_NEWEST,), _decode)


def base_paths() -> Query[tuple[str, str | None]]:
    """Return the query for each version's base, and the folder that its run trained, if known."""
    sql = """SELECT versions.base, json_extract(r.config, '$.base_path')
FROM versions LEFT JOIN runs AS r ON r.id = versions.run
WHERE versions.num < ? AND removed_ms IS NULL ORDER BY versions.num"""
    return Query(sql, (_NEWEST,), lambda row: (row[0], row[1]))


def events(limit: int) -> Query[VersionEvent]:
    """Return the query for the newest events of all versions and the base, newest first."""
    sql = f"SELECT {_EVENT_COLUMNS} FROM version_events WHERE num < ? ORDER BY num DESC LIMIT ?"
    return Query(sql, (_NEWEST, limit), _decode_event)


def events_of(version: str, limit: int) -> Query[VersionEvent]:
    """Return the query for a version's newest events, or the base's, newest first."""
    # No version has the number 0, which anything else names. (IS: the base's is NULL.)
    num = None if version == BASE else version_num(version) or 0
    sql = f"""SELECT {_EVENT_COLUMNS} FROM version_events
WHERE version IS ? ORDER BY num DESC LIMIT ?"""
    return Query(sql, (num, limit), _decode_event)


def switch_to(version: str, besides: str) -> Query[VersionEvent]:
    """Return the query for the newest event that made a version, or the base, active.

    Those of the actor `besides` don't count.
    """
    num = None if version == BASE else version_num(version) or 0
    sql = f"""SELECT {_EVENT_COLUMNS} FROM version_events
WHERE version IS ? AND kind IN ('activated', 'rolled_back') AND actor <> ?
ORDER BY num DESC LIMIT 1"""
    return Query(sql, (num, besides), _decode_event)


def stack() -> Query[Activated]:
    """Return the query for the newest activation, and those below it that can be gone back to."""
    return Query(_STACK, (), lambda row: Activated(*row))


def activation(found: list[Activated]) -> Activation:
    """Return what is active, from the rows of `stack`."""
    top, below = found[0], rollback_target(found)
    previous = None if below is None else name(below.version)
    names = tuple(name(one.version) for one in found[1:])
    return Activation(name(top.version), previous, top.created_ms, top.actor, names)


def rollback_target(found: list[Activated]) -> Activated | None:
    """Return the activation that a rollback goes back to, from the rows of `stack`."""
    return next((one for one in found[1:] if one.version != found[0].version), None)


def pairing(engine: str) -> Query[Pairing]:
    """Return the query for an engine's pairing."""
    sql = "SELECT engine, engine_digest, base, error, created_ms FROM pairings WHERE engine = ?"
    return Query(sql, (engine,), lambda row: Pairing(*row))


def name(num: int | None) -> str:
    """Return the id of the version of a number, `base` for None."""
    return BASE if num is None else version_id(num)


def _decode(row: Row) -> Version:
    num, created_ms, parent, base, run, origin, state, stale, is_kept, reason, manifest = row
    return Version(
        version_id(num), num, created_ms, None if parent is None else version_id(parent), base, run,
        origin, state, stale, bool(is_kept), reason, manifest.encode(),
    )  # fmt: skip


def _decode_event(row: Row) -> VersionEvent:
    version, created_ms, kind, actor, detail = row
    return VersionEvent(name(version), created_ms, kind, actor, detail.encode())
