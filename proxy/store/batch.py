"""One batch: operations that are written in one transaction.

Does not know where they come from, or who is told how they ended.

    an operation fails    the batch is undone and run again, each operation in a savepoint of its
                          own; the one that fails leaves nothing behind and fails alone
    the store fails       the batch is undone, and nothing of it is written

An operation may thus run twice, the first time undone: it reads and writes through its connection
alone.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from strop.proxy.store import database

log = logging.getLogger(__name__)

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]


@dataclass(slots=True, eq=False)
class Job:
    """One operation on its way.

    `prepare` makes it, outside the transaction. It ends with a `value`, or with an `error`.
    """

    make: Callable[[], Operation[Any]]
    future: "asyncio.Future[Any]"
    size_bytes: int
    operation: Operation[Any] | None = None
    value: Any = None
    error: Exception | None = None

    def prepare(self) -> None:
        """Make the operation; what can't be made has failed."""
        try:
            self.operation = self.make()
        except Exception as error:  # noqa: BLE001  its submitter gets it
            self.error = error

    def run(self, connection: sqlite3.Connection) -> None:
        """Run the operation that was prepared."""
        assert self.operation is not None
        self.value = self.operation(connection)


def write(connection: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    """Run prepared jobs in order, in one transaction; return when it is durable.

    Raises:
        sqlite3.Error: the store failed, and nothing was written.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for job in jobs:
                job.run(connection)
        except Exception as error:  # noqa: BLE001  its submitter gets it, in the second run
            _raise_if_fatal(connection, error)
            # Savepoints cost a seventh of an insert: only a batch in which one failed pays.
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                _run_apart(connection, job)
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            _roll_back(connection)
        raise


def _run_apart(connection: sqlite3.Connection, job: Job) -> None:
    connection.execute("SAVEPOINT operation")
    try:
        job.run(connection)
    except Exception as error:  # noqa: BLE001  its submitter gets it
        _raise_if_fatal(connection, error)
        job.error = error
        connection.execute("ROLLBACK TO operation")
    connection.execute("RELEASE operation")


def _raise_if_fatal(connection: sqlite3.Connection, error: Exception) -> None:
    """Raise `error` if it is the store's; SQLite may have undone the transaction itself."""
    if isinstance(error, sqlite3.Error) and (
        database.is_store_failure(error) or not connection.in_transaction
    ):
        raise error


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        log.error("a transaction was not rolled back", extra={"reason": str(error)})
