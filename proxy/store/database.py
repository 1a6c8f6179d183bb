"""The database file: how it is opened, brought up to date, and what its failures mean.

Does not know what the tables hold.
"""

import asyncio
import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

import aiosqlite
import msgspec

from strop.proxy.errors import ConfigError, StoreUnavailable

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Text = TypeVar("Text", str, str | None)

Synchronous = Literal["full", "normal", "off"]
Row = tuple[Any, ...]

APPLICATION_ID: Final = 0x7374_726F
"""Marks the file as strop's ("stro"), in SQLite's header."""

CLOSED: Final = "the store is closed: strop is stopping; try again shortly"

# STRICT tables.
_MIN_SQLITE: Final = (3, 37, 0)
# Statements that are kept prepared; the store has about forty.
_CACHED_STATEMENTS: Final = 128
# The WAL shrinks back to this after a long read has let it grow.
_WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
# Some milliseconds of work.
_INTERRUPTIBLE_STEPS: Final = 1000

_ADVICE: Final = {
    sqlite3.SQLITE_FULL: "the disk is full; free space on the volume that holds it",
    sqlite3.SQLITE_BUSY: "another program holds its write lock; end that program's transaction",
    sqlite3.SQLITE_LOCKED: "another program holds its write lock; end that program's transaction",
    sqlite3.SQLITE_IOERR: "the disk gave an I/O error; check the volume that holds it",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; stop strop, then run `sqlite3 strop.db .recover`,"
    " or delete strop.db-wal and strop.db-shm and restore strop.db from a backup",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database; move it away or restore a backup",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only; make both writable",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened; its folder must exist and be writable",
    sqlite3.SQLITE_PERM: "access was denied; make the file and its folder yours",
    sqlite3.SQLITE_NOMEM: "there is not enough memory; free some",
    sqlite3.SQLITE_PROTOCOL: "its lock can't be had; keep it on a local disk",
}


def _as_it_is(value: T) -> T:
    return value


# Where sqlite3 knows no adapter for a value's type, it asks the value, and drops the errors.
for _type in (bytes, bool, type(None)):
    sqlite3.register_adapter(_type, _as_it_is)


class Query(msgspec.Struct, Generic[T_co], frozen=True):
    """One SELECT, and how each of its rows becomes a value."""

    sql: str
    parameters: Sequence[object]
    decode: Callable[[Row], T_co]

    def run(self, connection: sqlite3.Connection) -> list[T_co]:
        """Return the values, read on `connection`."""
        return [self.decode(row) for row in connection.execute(self.sql, self.parameters)]


@dataclass(frozen=True, slots=True)
class Room:
    """How much room the database takes.

    Attributes:
        total_bytes: all of it.
        free_bytes: of that, what is not in use, and is used again.
    """

    total_bytes: int
    free_bytes: int


ROOM: Final = Query(
    "SELECT page_count * page_size, freelist_count * page_size"
    " FROM pragma_page_count, pragma_page_size, pragma_freelist_count",
    (),
    lambda row: Room(*row),
)


def connect(
    path: Path, *, synchronous: Synchronous = "full", busy_timeout_s: float = 5.0
) -> sqlite3.Connection:
    """Return a connection that writes, to a database with the newest schema, made if missing.

    Transactions are begun and ended by hand. The file is readable by its owner alone.

    Raises:
        ConfigError: the file belongs to a newer strop or to another program, or SQLite is too old.
        StoreUnavailable: the file can't be opened or brought up to date.
    """
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        raise ConfigError(
            f"expected SQLite {'.'.join(map(str, _MIN_SQLITE))} or newer, got"
            f" {sqlite3.sqlite_version}; use a newer Python build"
        )
    connection: sqlite3.Connection | None = None
    try:
        _restrict(path)
        connection = sqlite3.connect(
            path,
            timeout=busy_timeout_s,
            isolation_level=None,
            cached_statements=_CACHED_STATEMENTS,
        )
        _check_owner(connection, path)
        _use_wal(connection, path, busy_timeout_s)
        for pragma in _pragmas(synchronous):
            connection.execute(pragma)
        _migrate(connection, path)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise unavailable(error, path) from error
        if isinstance(error, OSError):
            raise StoreUnavailable(
                f"the database {path} can't be opened: {error.strerror}; its folder must exist and"
                " be writable"
            ) from error
        raise
    return connection


def is_older(path: Path) -> bool:
    """Return whether the schema of the database at `path` is one that `connect` brings up to date.

    False also where that can't be told: who opens it says what is wrong.
    """
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            version = _scalar(connection, "PRAGMA user_version")
    except sqlite3.Error:
        return False
    return bool(0 < version < len(migrations()))


def compact(path: Path) -> bool:
    """Rebuild the database at `path`, so that it takes only the room that it uses.

    Nobody else may write meanwhile. Until it is done, the volume has what is in use twice more.
    Whatever ends it leaves the database as it was; Ctrl-C waits for the second half of the work.

    Returns:
        Whether the file is smaller by that: not before other programs that read it have ended.

    Raises:
        KeyboardInterrupt: Ctrl-C, before the second half.
        StoreUnavailable: another program writes, the disk is full, or the file can't be used.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for pragma in _pragmas("full"):
                connection.execute(pragma)
            connection.execute("PRAGMA temp_store = FILE")
            # Beside the database: elsewhere there may be less room. SQLite takes no other name.
            with contextlib.suppress(UnicodeEncodeError):
                folder = str(Path(os.path.realpath(path)).parent).replace("'", "''")
                connection.execute(f"PRAGMA temp_store_directory = '{folder}'")
            # A statement that runs Python at times is interrupted there.
            connection.set_progress_handler(lambda: None, _INTERRUPTIBLE_STEPS)
            connection.execute("VACUUM")
            found = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        if _primary_code(error) == sqlite3.SQLITE_INTERRUPT:
            raise KeyboardInterrupt from error
        raise unavailable(error, path) from error
    return not found[0]


async def connect_reader(path: Path, *, busy_timeout_s: float = 5.0) -> aiosqlite.Connection:
    """Return a connection that can only read, to a database that `connect` has opened before.

    Raises:
        StoreUnavailable: the file can't be opened.
    """
    connecting = aiosqlite.connect(
        path,
        timeout=busy_timeout_s,
        isolation_level=None,
        cached_statements=_CACHED_STATEMENTS,
    )
    # Else a process that dies without closing it would never end. (Up to 0.21 it is the thread.)
    thread: Any = getattr(connecting, "_thread", connecting)
    thread.daemon = True
    opening = asyncio.ensure_future(connecting)
    try:
        reader = await asyncio.shield(opening)
    except sqlite3.Error as error:
        raise unavailable(error, path) from error
    except asyncio.CancelledError:
        # The thread opens it all the same.
        with contextlib.suppress(sqlite3.Error):
            await (await opening).close()
        raise
    try:
        await reader.execute_fetchall("PRAGMA query_only = ON")
    except BaseException:
        await reader.close()
        raise
    return reader


def migrations() -> list[str]:
    """Return the SQL of every migration, in order; the first makes schema version 1."""
    found = {}
    for file in files("strop.proxy.store.migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name):
            found[int(match[1])] = file.read_text(encoding="utf-8")
    if sorted(found) != list(range(1, len(found) + 1)):
        raise ConfigError(
            f"expected migrations numbered from 0001 without a hole, got {sorted(found)};"
            " the installation is incomplete, install strop again"
        )
    return [found[number] for number in sorted(found)]


def storable(text: Text) -> Text:
    """Return `text` as SQLite can hold it: JSON can smuggle in lone surrogates."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def is_store_failure(error: sqlite3.Error) -> bool:
    """Return whether `error` is the store's, and not that of one statement."""
    return _primary_code(error) in _ADVICE


def unavailable(error: sqlite3.Error, path: Path) -> StoreUnavailable:
    """Return `error` as what to tell people: which file, what is wrong, what to do."""
    advice = _ADVICE.get(_primary_code(error), "see the error, and the log for its cause")
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    # What is said here is sent as UTF-8, which not every path is.
    said = f"the database {path} can't be used: {advice} ({name}: {error})"
    return StoreUnavailable(storable(said))


def _primary_code(error: sqlite3.Error) -> int:
    # The low byte; the rest of an extended code says more of the same.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _restrict(path: Path) -> None:
    """Make the file 0600 before SQLite opens it: a new WAL takes its mode from it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        # What a killed process left beside it is used as it is. (SQLite follows links, too.)
        for suffix in ("", "-wal", "-shm"):
            file = Path(f"{os.path.realpath(path)}{suffix}")
            with contextlib.suppress(FileNotFoundError):
                # By name: closing a descriptor of it would drop this process's locks on the file.
                if (mode := file.stat().st_mode & 0o777) & 0o077:
                    try:
                        file.chmod(0o600)
                    except PermissionError as error:
                        raise StoreUnavailable(
                            f"expected {file} to be for its owner alone (0600), got {mode:04o}, and"
                            " it belongs to another user; make it yours, or run strop as its owner"
                        ) from error


def _pragmas(synchronous: Synchronous) -> Iterator[str]:
    yield f"PRAGMA synchronous = {synchronous}"
    # On macOS, fsync alone leaves what was written in the drive's own cache.
    yield f"PRAGMA fullfsync = {synchronous == 'full'}"
    yield "PRAGMA foreign_keys = ON"
    # The writer checkpoints between its commits; this many pages are for when it doesn't get to.
    yield "PRAGMA wal_autocheckpoint = 16000"
    # 4 MB: what is read again soon. The system caches the rest.
    yield "PRAGMA cache_size = -4000"
    # What is deleted is overwritten, not just let go of.
    yield "PRAGMA secure_delete = ON"
    # A savepoint's journal stays in memory.
    yield "PRAGMA temp_store = MEMORY"
    yield f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}"


def _use_wal(connection: sqlite3.Connection, path: Path, busy_timeout_s: float) -> None:
    """Switch to WAL, which the file then remembers.

    Of two processes that switch a new file SQLite sends one away at once, busy timeout or not.
    """
    deadline = time.monotonic() + busy_timeout_s
    while True:
        try:
            mode = _scalar(connection, "PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise ConfigError(
            f"expected {path} to allow SQLite's WAL mode, got {mode!r}; keep it on a local disk"
        )


def _scalar(connection: sqlite3.Connection, sql: str) -> Any:
    (value,) = connection.execute(sql).fetchone()
    return value


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that isn't strop's before anything is changed in it."""
    # One transaction: another process may be making the tables now.
    connection.execute("BEGIN")
    owner = _scalar(connection, "PRAGMA application_id")
    is_empty = _scalar(connection, "SELECT count(*) FROM sqlite_schema") == 0
    connection.execute("COMMIT")
    if owner != APPLICATION_ID and not (owner == 0 and is_empty):
        raise ConfigError(
            f"expected {path} to be a database of strop, got one of another program"
            f" (application_id {owner}); choose another home with --home"
        )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    scripts = migrations()
    version = _scalar(connection, "PRAGMA user_version")
    if version > len(scripts):
        raise ConfigError(
            f"expected {path} to have a schema version up to {len(scripts)}, got {version}: a newer"
            " strop has written it; upgrade strop, or choose another home with --home"
        )
    if version == 0:
        # At once: one that is half made would pass for an older strop's.
        _apply(connection, len(scripts), "".join(scripts))
        return
    for number, script in enumerate(scripts, start=1):
        if number > version:
            _apply(connection, number, script)


def _apply(connection: sqlite3.Connection, number: int, script: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have applied it while this one waited for the lock.
        if _scalar(connection, "PRAGMA user_version") < number:
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script: `executescript` would commit before it runs."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise ConfigError(f"expected a migration to end with `;`, got {statement.strip()!r}")
