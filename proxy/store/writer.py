"""The one writer of a process: a thread with a connection of its own, and group commit.

Does not know what it writes: an operation is a function of a connection.

The thread takes everything that waits, prepares it, and writes it in one transaction. It never
lingers: while one batch is made durable, the next one gathers. Nothing is acknowledged before its
COMMIT has returned.

    an operation fails          it fails alone; what it wrote is undone
    the store fails             the whole batch is undone, and fails with StoreUnavailable
    the store has failed        each batch is tried all the same, and once a second a small write
    the queue is over a bound   StoreUnavailable at once
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from pathlib import Path
from typing import Final, TypeVar

from strop.proxy.errors import StoreUnavailable
from strop.proxy.store import batch, database
from strop.proxy.store.batch import Job, Operation
from strop.proxy.store.clock import now_ms
from strop.proxy.store.database import Synchronous
from strop.proxy.store.records import StoreHealth
from strop.proxy.store.turns import Turns

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BATCH: Final = 512
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
RETRY_S: Final = 1.0
# Some 8,000 pages of WAL. Fewer checkpoints write a page that changes often fewer times.
CHECKPOINT_JOBS: Final = 1024
CHECKPOINT_BYTES: Final = 16 * 1024 * 1024
# So long emptying the WAL waits for others: nobody can write meanwhile, here or in another process.
EMPTYING_S: Final = 0.05
# So often whoever serves looks for the word of a process that couldn't empty it.
EMPTYING_EVERY_S: Final = 60.0
_UNERASED: Final = "-unerased"
# Enough that the write needs fresh pages, so that a full disk shows.
_FILL_PROBE: Final = "INSERT OR REPLACE INTO write_probe (num, payload) VALUES (1, zeroblob(65536))"
_EMPTY_PROBE: Final = "DELETE FROM write_probe WHERE num = 1"


class Writer:
    """Runs operations in the order of their submission, and acknowledges them once durable.

    All but `close` and `leave_word` belongs to the loop that opened the writer.

    Args:
        path: the database.
        synchronous: SQLite's own; `full` survives a power cut, `normal` a killed process.
        busy_timeout_s: how long a batch waits for another program's write lock.
        is_server: whether to empty the WAL for other processes, which leave word where they can't.
        max_queued: how many operations may wait.
        max_queued_bytes: how many bytes, as the submitters say, may wait.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Synchronous = "full",
        busy_timeout_s: float = 5.0,
        is_server: bool = False,
        max_queued: int = 10_000,
        max_queued_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        self._path = path
        self._synchronous: Synchronous = synchronous
        self._busy_timeout_s = busy_timeout_s
        self._is_server = is_server
        self._unerased = path.with_name(path.name + _UNERASED)
        self._max_queued = max_queued
        self._max_queued_bytes = max_queued_bytes
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._num_queued = 0
        self._queued_bytes = 0
        self._is_closing = False
        # The thread's own.
        self._connection: sqlite3.Connection
        # Written by the thread, but for `stall`.
        self._reason: str | None = None
        self._since_ms = now_ms()
        self._has_given_up = False
        self._num_since_checkpoint = 0
        self._bytes_since_checkpoint = 0
        # At once: a strop that has ended since may have been left word.
        self._emptying_due_s = 0.0
        self._turn: Turns | contextlib.nullcontext[None] = contextlib.nullcontext()
        self._opened: ThreadFuture[None] = ThreadFuture()
        self._thread = threading.Thread(target=self._run, name="strop-writer", daemon=True)

    async def open(self) -> None:
        """Start the thread, and return when the database is open and up to date.

        Raises:
            ConfigError, StoreUnavailable: see `database.connect`.
        """
        # Else who gives up waiting would cancel it, and the thread trip over that.
        self._opened.set_running_or_notify_cancel()
        self._thread.start()
        await asyncio.wrap_future(self._opened)

    @property
    def reason(self) -> str | None:
        """What is wrong and what to do, None while the store takes writes: as `health` has it."""
        return self._reason

    @property
    def health(self) -> StoreHealth:
        """Whether the store takes writes, as of the last one."""
        reason = self._reason
        return StoreHealth(
            ok=reason is None,
            reason=reason,
            since_ms=self._since_ms,
            num_queued=self._num_queued,
            queued_bytes=self._queued_bytes,
        )

    def stall(self, reason: str) -> None:
        """Count as a failure that a write takes too long, until one succeeds."""
        if self._reason is None:
            self._mark_failed(reason)

    def submit(self, operation: Operation[T], size_bytes: int = 0) -> "asyncio.Future[T]":
        """Queue `operation`; the future has its result once that is durable.

        A cancelled future cancels nothing: the operation runs all the same.

        Raises:
            StoreUnavailable: too much waits already, or the writer is closed.
        """
        return self.submit_prepared(lambda: operation, size_bytes)

    def submit_prepared(
        self, prepare: Callable[[], Operation[T]], size_bytes: int = 0
    ) -> "asyncio.Future[T]":
        """Queue what `prepare` returns; it is called in the thread, outside the transaction.

        Raises:
            StoreUnavailable: too much waits already, or the writer is closed.
        """
        if self._is_closing:
            raise StoreUnavailable(database.CLOSED)
        if (
            self._num_queued >= self._max_queued
            or self._queued_bytes + size_bytes > self._max_queued_bytes
        ):
            raise StoreUnavailable(
                f"too much waits to be written to {self._path}: {self._num_queued} of"
                f" {self._max_queued} writes, {self._queued_bytes} of {self._max_queued_bytes}"
                " bytes; the disk is too slow, or the database locked; try again shortly"
            )
        self._num_queued += 1
        self._queued_bytes += size_bytes
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(Job(prepare, future, size_bytes))
        return future

    def empty_wal(self) -> "asyncio.Future[bool]":
        """Take from the WAL what was overwritten in the database, or deleted there, before this.

        The future says whether it is gone: not if another program reads, or writes, for longer than
        EMPTYING_S.

        Raises:
            StoreUnavailable: too much waits already, or the writer is closed.
        """
        return self.submit_prepared(self._prepare_empty)

    def leave_word(self) -> None:
        """Let the process that serves empty the WAL, in this one's place; any thread may.

        Raises:
            StoreUnavailable: that can't be written.
        """
        try:
            self._unerased.touch(0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"{self._unerased} can't be made: {error.strerror}; its folder must be writable"
            ) from error

    def close(self) -> None:
        """Write what waits, checkpoint, close the database. Blocks; may be called again.

        Needs no running loop; on one, prefer `aclose`.
        """
        if not self._is_closing:
            self._is_closing = True
            self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the loop."""
        await asyncio.to_thread(self.close)

    def _run(self) -> None:
        try:
            self._connection = database.connect(
                self._path, synchronous=self._synchronous, busy_timeout_s=self._busy_timeout_s
            )
        except Exception as error:  # noqa: BLE001  the opener gets it
            self._is_closing = True
            self._opened.set_exception(error)
            return
        self._turn = Turns.at(self._path) or self._turn
        self._opened.set_result(None)
        try:
            while self._work():
                if self._is_server and time.monotonic() >= self._emptying_due_s:
                    self._empty_for_others()
        finally:
            self._shut()

    def _work(self) -> bool:
        """Write one batch; return whether there may be more."""
        try:
            first = self._queue.get(timeout=RETRY_S)
        except queue.Empty:
            # Asked each time: `stall` may come while nothing is queued, and then nothing may be.
            if self._reason is not None:
                self._retry()
            return True
        if first is None:
            return False
        job: Job | None = first
        jobs = [first]
        num_bytes = first.size_bytes
        while len(jobs) < MAX_BATCH and num_bytes < MAX_BATCH_BYTES:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                break
            jobs.append(job)
            num_bytes += job.size_bytes
        self._write(jobs)
        return job is not None

    def _write(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.prepare()
        ready = [job for job in jobs if job.operation is not None]
        if self._has_given_up:
            self._fail(ready, self._reason or "")
        elif ready:
            try:
                with self._turn:
                    batch.write(self._connection, ready)
            except sqlite3.Error as error:
                self._fail(ready, database.unavailable(error, self._path).message)
            else:
                self._heal()
        self._acknowledge(jobs)
        self._num_since_checkpoint += len(jobs)
        self._bytes_since_checkpoint += sum(job.size_bytes for job in jobs)
        if (
            self._num_since_checkpoint >= CHECKPOINT_JOBS
            or self._bytes_since_checkpoint >= CHECKPOINT_BYTES
        ):
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Bring the WAL into the database, now that nobody waits for this batch any more.

        Passive: it waits for no reader, and for no other process. Where several write, none adds to
        the WAL meanwhile: it is begun anew only once all of it is in the database.
        """
        self._num_since_checkpoint = self._bytes_since_checkpoint = 0
        try:
            with self._turn:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            log.warning("a checkpoint failed", extra={"reason": str(error)})

    def _prepare_empty(self) -> Operation[bool]:
        try:
            is_empty = self._empty()
        except sqlite3.Error as error:
            raise database.unavailable(error, self._path) from error
        return lambda _: is_empty

    def _empty_for_others(self) -> None:
        """Take from the WAL what another process deleted and could not take from it itself."""
        self._emptying_due_s = time.monotonic() + EMPTYING_EVERY_S
        try:
            if self._unerased.exists():
                self._empty()
        except (sqlite3.Error, OSError) as error:
            log.warning("a checkpoint failed", extra={"reason": str(error)})

    def _empty(self) -> bool:
        """Bring the WAL into the database, outside a transaction, and cut it off.

        False where others keep it for longer than EMPTYING_S.
        """
        with self._turn:
            self._wait_for_others(EMPTYING_S)
            try:
                found = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._wait_for_others(self._busy_timeout_s)
        is_empty = not found[0]
        if is_empty:
            self._unerased.unlink(missing_ok=True)
        return is_empty

    def _wait_for_others(self, seconds: float) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")

    def _acknowledge(self, jobs: list[Job]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._resolve, jobs)
        except RuntimeError:
            # The loop is gone, and whoever waited with it.
            return

    def _resolve(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._num_queued -= 1
            self._queued_bytes -= job.size_bytes
            if job.future.done():
                continue
            if job.error is None:
                job.future.set_result(job.value)
            else:
                job.future.set_exception(job.error)

    def _fail(self, jobs: list[Job], reason: str) -> None:
        if self._reason is None:
            self._mark_failed(reason)
        self._reason = reason
        # At the end, each further batch would wait for the same lock again.
        self._has_given_up = self._is_closing
        for job in jobs:
            job.error = StoreUnavailable(reason)

    def _mark_failed(self, reason: str) -> None:
        self._reason = reason
        self._since_ms = now_ms()
        log.error("the store takes no writes", extra={"reason": reason})

    def _heal(self) -> None:
        if self._reason is not None:
            self._reason = None
            self._since_ms = now_ms()
            log.info("the store takes writes again")

    def _retry(self) -> None:
        """Find out with a small write whether the store works again."""
        try:
            # Each commits by itself: pages that are freed before the commit are never written.
            self._connection.execute(_FILL_PROBE)
            self._connection.execute(_EMPTY_PROBE)
        except sqlite3.Error as error:
            self._reason = database.unavailable(error, self._path).message
        else:
            self._heal()

    def _shut(self) -> None:
        self._is_closing = True
        left = []
        while True:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                left.append(job)
        if left:
            self._fail(left, database.CLOSED)
            self._acknowledge(left)
        self._checkpoint()
        try:
            self._connection.close()
        except sqlite3.Error as error:
            log.error("the database was not closed cleanly", extra={"reason": str(error)})
        if isinstance(self._turn, Turns):
            self._turn.close()
