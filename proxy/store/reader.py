"""The one connection of a process that reads: it can't write, and keeps no transaction open.

Does not know what it reads: a query says what each row becomes.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import aiosqlite

from strop.proxy.errors import BadRequest, StoreUnavailable
from strop.proxy.store import database
from strop.proxy.store.database import Query, storable
from strop.proxy.store.records import Page

T = TypeVar("T")


class Reader:
    """Runs queries, each by itself. Made by `Reader.open`; belongs to the running loop."""

    def __init__(self, path: Path, connection: aiosqlite.Connection) -> None:
        self._path = path
        self._connection: aiosqlite.Connection | None = connection

    @classmethod
    async def open(cls, path: Path, *, busy_timeout_s: float = 5.0) -> "Reader":
        """Open a database that a writer has opened before.

        Raises:
            StoreUnavailable: it can't be opened.
        """
        return cls(path, await database.connect_reader(path, busy_timeout_s=busy_timeout_s))

    async def all(self, query: Query[T]) -> list[T]:
        """Return what `query` finds.

        Raises:
            StoreUnavailable: the database can't be read, or the reader is closed.
        """
        if self._connection is None:
            raise StoreUnavailable(database.CLOSED)
        # Lone surrogates were replaced in what is stored, too.
        parameters = [storable(p) if isinstance(p, str) else p for p in query.parameters]
        try:
            rows = await self._connection.execute_fetchall(query.sql, parameters)
        except sqlite3.Error as error:
            raise database.unavailable(error, self._path) from error
        return [query.decode(tuple(row)) for row in rows]

    async def first(self, query: Query[T]) -> T | None:
        """Return the first that `query` finds, or None."""
        found = await self.all(query)
        return found[0] if found else None

    async def page(
        self,
        newest: Callable[..., Query[T]],
        position: Callable[[str], Query[object]],
        *,
        limit: int,
        after: str | None,
    ) -> Page[T]:
        """Return up to `limit` of a list, newest first, from the one after the id `after` on.

        Args:
            newest: makes the query for so many, older than a position if that is given too.
            position: makes the query for the position of an id.
            limit: how many.
            after: the last id of the page before; None for the first page.

        Raises:
            BadRequest: there is no `after`.
        """
        before = [] if after is None else await self.all(position(after))
        if after is not None and not before:
            raise BadRequest(
                f"expected `after` to be an id of this list, got {after!r}; take the last id of"
                " the page before",
                param="after",
            )
        found = await self.all(newest(limit + 1, *before))
        return Page(tuple(found[:limit]), len(found) > limit)

    async def close(self) -> None:
        """Close the connection; may be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
