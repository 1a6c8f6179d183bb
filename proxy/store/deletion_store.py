"""The store as whoever deletes from it sees it.

Deletes a few completions at a time: what is to be recorded meanwhile waits for no more than these.
Does not know why they go, or who asked for it.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from strop.proxy.errors import StoreUnavailable
from strop.proxy.store import deletion
from strop.proxy.store.batch import Operation
from strop.proxy.store.clock import now_ms
from strop.proxy.store.completion_queries import Position
from strop.proxy.store.deletion import Gone
from strop.proxy.store.version_records import version_id
from strop.proxy.store.writer import Writer

T = TypeVar("T")

_BATCH: Final = 64
# So often it is tried to empty the WAL, which also fails where another process does that just now.
_NUM_TRIES: Final = 20
_PAUSE_S: Final = 0.15


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was deleted.

    Attributes:
        num: how many completions.
        num_ratings: how many of their ratings stood, and were withdrawn.
        learners: the versions that learned from them, themselves or through an ancestor, and
            weren't removed.
        is_erased: whether what stood there is overwritten in the file and gone from the WAL, if
            anything was deleted. Not while another program keeps the database busy; a strop that
            serves does it later.
        failure: what the store failed with; None where it didn't.
        is_whole: whether all went that was to. Not where the store failed before that: what went
            until then is gone, and the same call again goes on from there.
    """

    num: int
    num_ratings: int
    learners: tuple[str, ...]
    is_erased: bool
    failure: str | None = None
    is_whole: bool = True


class DeletionStore:
    """Deletes completions, and what was said of them; see `deletion`.

    Each call returns once that is durable. What a completion's successors repeat of it in their
    requests stays in these, and the ids of its prompt in the probe of a version that was made with
    it, until that is removed. What a run has collected is in its folder: `run_folder` deletes that.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def completions(self, ids: Sequence[str]) -> Deleted:
        """Delete the completions among `ids` that are there.

        Raises:
            StoreUnavailable: nothing was deleted.
        """
        return await self._deleted(self._named(ids))

    async def all_of(self, *, session: str | None = None, key_id: str | None = None) -> Deleted:
        """Delete all completions of a session, of a key, or of both.

        Of a key alone also what it said of completions that are not recorded (yet).

        Raises:
            ValueError: neither is named.
            StoreUnavailable: nothing was deleted.
        """
        return await self._deleted(self._all_of(session, key_id))

    async def unrated(self, before_ms: int) -> Deleted:
        """Delete what is older than `before_ms`, of sessions in which no rating stands.

        Raises:
            StoreUnavailable: nothing was deleted.
        """
        return await self._deleted(self._unrated(before_ms))

    async def _named(self, ids: Sequence[str]) -> AsyncIterator[Gone]:
        # As they stand in the file, nearly: fewer of those that go later are moved before.
        ordered = sorted(set(ids))
        for start in range(0, len(ordered), _BATCH):
            batch = ordered[start : start + _BATCH]
            some = await self._delete(partial(deletion.delete, ids=batch, now_ms=now_ms()))
            if some.num:
                yield some

    async def _all_of(self, session: str | None, key_id: str | None) -> AsyncIterator[Gone]:
        delete = partial(
            deletion.delete_all_of, session=session, key_id=key_id, limit=_BATCH, now_ms=now_ms()
        )
        while (some := await self._delete(delete)).num:
            yield some
        if session is None and key_id is not None:
            async for some in self._said_with(key_id):
                yield some

    async def _unrated(self, before_ms: int) -> AsyncIterator[Gone]:
        after: Position | None = deletion.OLDEST
        while after is not None:
            some, after = await self._delete(
                partial(
                    deletion.delete_unrated,
                    before_ms=before_ms,
                    after=after,
                    limit=_BATCH,
                    now_ms=now_ms(),
                )
            )
            if some.num:
                yield some

    async def _said_with(self, key_id: str) -> AsyncIterator[Gone]:
        """Yield no completion, but once for each time that words were forgotten."""
        after: int | None = 0
        while after is not None:
            after = await self._delete(
                partial(
                    deletion.forget_said_with,
                    key_id=key_id,
                    after=after,
                    limit=_BATCH,
                    now_ms=now_ms(),
                )
            )
            if after is not None:
                yield Gone(0, 0, set())

    def _delete(self, delete: Operation[T]) -> "asyncio.Future[T]":
        def run(connection: sqlite3.Connection) -> T:
            before = connection.total_changes
            done = delete(connection)
            if connection.total_changes > before:
                # Before the commit: whoever is killed after it has left word.
                self._writer.leave_word()
            return done

        return self._writer.submit(run)

    async def _deleted(self, each: AsyncIterator[Gone]) -> Deleted:
        """Return what goes, up to where the store fails.

        Args:
            each: what each transaction deletes, of those that delete anything.

        Raises:
            StoreUnavailable: it fails before any of that.
        """
        gone: list[Gone] = []
        failure, is_whole = None, True
        try:
            async for some in each:
                gone.append(some)  # noqa: PERF401  what went is told where the next fails
        except StoreUnavailable as error:
            if not gone:
                raise
            failure, is_whole = error.message, False
        try:
            is_erased = not gone or await self._erase()
        except StoreUnavailable as error:
            # Before each of them went, word of it was left.
            failure, is_erased = failure or error.message, False
        learners = set[int]().union(*(some.learners for some in gone))
        return Deleted(
            num=sum(some.num for some in gone),
            num_ratings=sum(some.num_ratings for some in gone),
            learners=tuple(map(version_id, sorted(learners))),
            is_erased=is_erased,
            failure=failure,
            is_whole=is_whole,
        )

    async def _erase(self) -> bool:
        for _ in range(_NUM_TRIES):
            if await self._writer.empty_wal():
                return True
            # Meanwhile others can write.
            await asyncio.sleep(_PAUSE_S)
        # Who has emptied it meanwhile, but before the last of this, has taken the word away.
        self._writer.leave_word()
        return False
