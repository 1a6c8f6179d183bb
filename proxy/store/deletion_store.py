"""The store as whoever deletes from it sees it.

Deletes a few completions at a time: what is to be recorded meanwhile waits for no more than these.
Does not know why they go, or who asked for it.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from strop.proxy.store import deletion
from strop.proxy.store.clock import now_ms
from strop.proxy.store.completion_queries import Position
from strop.proxy.store.writer import Writer

log = logging.getLogger(__name__)

_BATCH: Final = 64


class DeletionStore:
    """Deletes completions, and what was said of them; see `deletion`.

    Each call returns how many it deleted, once that is durable, and what stood there is overwritten
    in the file and gone from the WAL; where another program keeps that, it is logged. What a
    completion's successors repeat of it in their requests stays in these, and the ids of its prompt
    in the probe of a version that was made with it. What a run has collected is in its folder:
    `run_folder` deletes that.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def completions(self, ids: Sequence[str]) -> int:
        """Delete the completions among `ids` that are there."""
        num = 0
        for start in range(0, len(ids), _BATCH):
            batch = tuple(ids[start : start + _BATCH])
            num += await self._writer.submit(partial(deletion.delete, ids=batch, now_ms=now_ms()))
        await self._erase()
        return num

    async def all_of(self, *, session: str | None = None, key_id: str | None = None) -> int:
        """Delete all completions of a session, of a key, or of both.

        Of a key alone also what it said of completions that are not recorded (yet).

        Raises:
            ValueError: neither is named.
        """
        total = 0
        delete = partial(
            deletion.delete_all_of, session=session, key_id=key_id, limit=_BATCH, now_ms=now_ms()
        )
        while num := await self._writer.submit(delete):
            total += num
        if session is None and key_id is not None:
            await self._forget_said_with(key_id)
        await self._erase()
        return total

    async def unrated(self, before_ms: int) -> int:
        """Delete what is older than `before_ms`, of sessions in which no rating stands."""
        total = 0
        after: Position | None = deletion.OLDEST
        while after is not None:
            num, after = await self._writer.submit(
                partial(
                    deletion.delete_unrated,
                    before_ms=before_ms,
                    after=after,
                    limit=_BATCH,
                    now_ms=now_ms(),
                )
            )
            total += num
        await self._erase()
        return total

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

    async def _erase(self) -> None:
        if not await self._writer.empty_wal():
            log.warning(
                "what was deleted can still be found in the file that ends in -wal, since another"
                " program keeps the database busy; it goes when that one and strop have ended"
            )
