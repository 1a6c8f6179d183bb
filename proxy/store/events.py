"""What happened to versions, as rows: written in the operation in which it happened, never changed.

Does not know what made it happen.
"""

import sqlite3
from collections.abc import Mapping
from typing import Final

import orjson

from strop.proxy.store.database import storable
from strop.proxy.store.version_records import EventKind

_INSERT: Final = """
INSERT INTO version_events (created_ms, version, kind, actor, detail) VALUES (?, ?, ?, ?, ?)"""


def add(
    connection: sqlite3.Connection,
    num: int | None,
    kind: EventKind,
    actor: str,
    detail: Mapping[str, object],
    now_ms: int,
) -> None:
    """Write down what happened to a version, by its number; None is the base.

    `detail` is JSON-able; members that are None are left out.
    """
    given = {
        key: storable(value) if isinstance(value, str) else value
        for key, value in detail.items()
        if value is not None
    }
    connection.execute(_INSERT, (now_ms, num, kind, actor, orjson.dumps(given).decode()))
