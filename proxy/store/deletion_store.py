"""The store as whoever deletes from it sees it.

Deletes a few completions at a time: what is to be recorded meanwhile waits for no more than these.
Does not know why they go, or who asked for it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from strop.proxy.store import deletion
from strop.proxy.store.clock import now_ms
from strop.proxy.store.completion_queries import Position
from strop.proxy.store.deletion import Gone
from strop.proxy.store.version_records import version_id
from strop.proxy.store.writer import Writer

_BATCH: Final = 64
# So often it is tried to empty the WAL, which also fails where another process does that just now.
_NUM_TRIES: Final = 3
_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was deleted.

    Attributes:
        num: how many completions.
        learners: the versions that learned from them, themselves or through an ancestor, and
            weren't removed.
        is_erased: whether what stood there is overwritten in the file and gone from the WAL. Not
            while another program keeps the database busy; a strop that serves does it later.
    """

    num: int
    learners: tuple[str, ...]
    is_erased: bool


class DeletionStore:
    """Deletes completions, and what was said of them; see `deletion`.

    Each call returns once that is durable. What a completion's successors repeat of it in their
    requests stays in these, and the ids of its prompt in the probe of a version that was made with
    it, until that is removed. What a run has collected is in its folder: `run_folder` deletes that.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def completions(self, ids: Sequence[str]) -> Deleted:
        """Delete the completions among `ids` that are there."""
        gone = []
        for start in range(0, len(ids), _BATCH):
            batch = tuple(ids[start : start + _BATCH])
            delete = partial(deletion.delete, ids=batch, now_ms=now_ms())
            gone.append(await self._writer.submit(delete))
        return await self._erased(gone)

    async def all_of(self, *, session: str | None = None, key_id: str | None = None) -> Deleted:
        """Delete all completions of a session, of a key, or of both.

        Of a key alone also what it said of completions that are not recorded (yet).

        Raises:
            ValueError: neither is named.
        """
        gone: list[Gone] = []
        delete = partial(
            deletion.delete_all_of, session=session, key_id=key_id, limit=_BATCH, now_ms=now_ms()
        )
        while (some := await self._writer.submit(delete))[0]:
            gone.append(some)
        if session is None and key_id is not None:
            await self._forget_said_with(key_id)
        return await self._erased(gone)

    async def unrated(self, before_ms: int) -> Deleted:
        """Delete what is older than `before_ms`, of sessions in which no rating stands."""
        gone = []
        after: Position | None = deletion.OLDEST
        while after is not None:
            some, after = await self._writer.submit(
                partial(
                    deletion.delete_unrated,
                    before_ms=before_ms,
                    after=after,
                    limit=_BATCH,
                    now_ms=now_ms(),
                )
            )
            gone.append(some)
        return await self._erased(gone)

    async def _forget_said_with(self, key_id: str) -> None:
        after: int | None = 0
        while after is not None:
            after = await self._writer.submit(
                partial(
                    deletion.forget_said_with,
                    key_id=key_id,
                    after=after,
                    limit=_BATCH,
                    now_ms=now_ms(),
                )
            )

    async def _erased(self, gone: Sequence[Gone]) -> Deleted:
        learners = set[int]().union(*(some for _, some in gone))
        named = tuple(map(version_id, sorted(learners)))
        return Deleted(sum(num for num, _ in gone), named, await self._erase())

    async def _erase(self) -> bool:
        for _ in range(_NUM_TRIES):
            if await self._writer.empty_wal():
                return True
            # Meanwhile others can write.
            await asyncio.sleep(_PAUSE_S)
        return False
