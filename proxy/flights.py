"""Completions in flight: begun, and not in the store yet; here, or in another process of this home.

Asks, and keeps nothing: `relay` knows this process's own. What waits for one that is in flight no
more waits for what is lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from strop.proxy.relay import Relay
from strop.proxy.store.binding import InFlight
from strop.proxy.store.records import Feedback, FeedbackFilter
from strop.proxy.store.store import Store

Elsewhere = Callable[[str], Awaitable[str | None]]
"""Returns the key of a completion that is in flight in another process, by its id."""

LANDING_S = 2.0
"""How long is waited for what is in flight: some of it may go on for minutes."""

_PENDING: Final = FeedbackFilter(state="pending")
_PAGE: Final = 500
_LOOK_AGAIN_S: Final = 0.01


async def nowhere(_completion_id: str) -> str | None:
    """Return that nothing is in flight in another process: there is none."""
    return None


class Flights:
    """Finds what is in flight.

    What it has not found was recorded before, or never will be: a completion counts as in flight
    until its commit is done. So who asks first and looks into the store after that misses none.

    Args:
        relay: what is in flight here.
        elsewhere: asks the other processes.
    """

    def __init__(self, relay: Relay, elsewhere: Elsewhere = nowhere) -> None:
        self._relay = relay
        self._elsewhere = elsewhere

    async def key_of(self, completion_id: str) -> str | None:
        """Return the id of the key that a completion in flight was asked for with, or None.

        A stream goes by the engine's id too, once that has come.

        Raises:
            Unavailable: another process can't be asked.
        """
        return self._relay.key_of(completion_id) or await self._elsewhere(completion_id)

    def called(self, name: str, key_id: str | None) -> list[InFlight]:
        """Return those of this key, or of any, in this process that go by this id; as `Relay`'s."""
        return self._relay.called(name, key_id)

    async def has(self, completion_id: str, key_id: str) -> bool:
        """Whether a completion of this key is in flight; raises as `key_of`."""
        return await self.key_of(completion_id) == key_id

    async def landed(self, key_id: str) -> None:
        """Return when nothing of this key is in flight in this process, or soon, if that goes on.

        So what its client has just cut off is in the store: nothing says that it has left before
        its connection is seen closed, which may be after its next request came.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + LANDING_S
        while self._relay.is_relaying_for(key_id) and loop.time() < until:  # noqa: ASYNC110
            # Nothing says that the last one has landed.
            await asyncio.sleep(_LOOK_AGAIN_S)


async def withdraw_lost(store: Store, key_of: Elsewhere) -> None:
    """Withdraw the ratings that wait for a completion which is in flight nowhere: it is lost.

    Args:
        store: where they are.
        key_of: returns the key of a completion in flight, here or elsewhere.

    Raises:
        StropError: who may have it can't be asked, or the store takes no writes.
    """
    # In this order: what begins after the list was read is not in it.
    waiting = await _pending(store)
    lost = [one.id for one in waiting if await key_of(one.completion) is None]
    if lost:
        await store.withdraw_lost(lost)


async def _pending(store: Store) -> list[Feedback]:
    found, after = list[Feedback](), None
    while True:
        page = await store.list_feedback(_PENDING, limit=_PAGE, after=after)
        found += page.data
        if not page.has_more:
            return found
        after = page.data[-1].id
