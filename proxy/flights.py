"""Completions in flight: begun, and not in the store yet; here, or in another process of this home.

Asks, and keeps nothing: `relay` knows this process's own.
"""

from collections.abc import Awaitable, Callable

from strop.proxy.relay import Relay

Elsewhere = Callable[[str], Awaitable[str | None]]
"""Returns the key of a completion that is in flight in another process, by its id."""


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

    async def has(self, completion_id: str, key_id: str) -> bool:
        """Whether a completion of this key is in flight; raises as `key_of`."""
        return await self.key_of(completion_id) == key_id
