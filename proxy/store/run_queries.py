"""Training runs and their steps, as they are read.

Pure: makes queries and decodes their rows; runs and changes nothing.
"""

from typing import Final

from strop.proxy.store.database import Query, Row
from strop.proxy.store.run_records import Run, RunStep
from strop.proxy.store.version_records import version_id

NEWEST: Final = 2**63 - 1
"""The position that every run is older than."""

_COLUMNS: Final = """
id, created_ms, state, objective, preset, parent, base, requested_by, started_ms, finished_ms,
version, step, num_steps, eta_s, counts, metrics, reasons, config, cancelling"""
# In the words of the partial index.
_IS_UNFINISHED: Final = "state IN ('queued', 'running', 'gating')"


def by_id(id_: str) -> Query[Run]:
    """Return the query for one run."""
    return Query(f"SELECT {_COLUMNS} FROM runs WHERE id = ?", (id_,), _decode)


def position(id_: str) -> Query[int]:
    """Return the query for a run's place in the order of creation."""
    return Query("SELECT num FROM runs WHERE id = ?", (id_,), lambda row: int(row[0]))


def newest(limit: int, before: int = NEWEST) -> Query[Run]:
    """Return the query for up to `limit` runs older than position `before`, newest first."""
    sql = f"SELECT {_COLUMNS} FROM runs WHERE num < ? ORDER BY num DESC LIMIT ?"
    return Query(sql, (before, limit), _decode)


def unfinished() -> Query[Run]:
    """Return the query for the run that isn't over; there is one at most."""
    return Query(f"SELECT {_COLUMNS} FROM runs WHERE {_IS_UNFINISHED}", (), _decode)


def last_finished(base: str | None = None) -> Query[Run]:
    """Return the query for the newest run that is over: of any base, or of this one."""
    sql = f"""SELECT {_COLUMNS} FROM runs
WHERE num < ? AND NOT {_IS_UNFINISHED} AND base = coalesce(?, base) ORDER BY num DESC LIMIT 1"""
    return Query(sql, (NEWEST, base), _decode)


def steps(run: str) -> Query[RunStep]:
    """Return the query for a run's steps, in order."""
    sql = "SELECT step, metrics FROM run_steps WHERE run = ? ORDER BY step"
    return Query(sql, (run,), lambda row: RunStep(row[0], row[1].encode()))


def _decode(row: Row) -> Run:
    (
        id_, created_ms, state, objective, preset, parent, base, requested_by, started_ms,
        finished_ms, version, step, num_steps, eta_s, counts, metrics, reasons, config, cancelling,
    ) = row  # fmt: skip
    return Run(
        id_, created_ms, state, objective, preset, None if parent is None else version_id(parent),
        base, requested_by, started_ms, finished_ms,
        None if version is None else version_id(version), step, num_steps, eta_s, counts.encode(),
        metrics.encode(), reasons.encode(), config.encode(), bool(cancelling),
    )  # fmt: skip
