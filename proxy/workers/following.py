"""What a worker serves: as the process that decides says, and what it lets that one do.

Decides nothing, and checks no engine.
"""

import asyncio
from typing import Final

from strop.proxy.alias import Leases, Served
from strop.proxy.engines.base import Engine, EngineState
from strop.proxy.serving import Serving
from strop.proxy.settings.settings import Settings
from strop.proxy.workers.frames import (
    Bring,
    Done,
    Held,
    Holds,
    Key,
    KeyOf,
    Reload,
    Reloaded,
    Suspect,
)
from strop.proxy.workers.link import Link

TELL_AFTER_S: Final = 0.05
"""How long changes of what is held gather before they are told."""


class Following(Serving):
    """The engine and its alias, as another process decides.

    Args:
        engine: the driver.
        settings: all of them.
        link: the line to that process.
    """

    def __init__(self, engine: Engine, settings: Settings, link: Link) -> None:
        self.holds = ToldLeases(link)
        super().__init__(engine, settings, leases=self.holds)
        self.keeper = RemoteKeeper(link)
        self._link = link

    def suspect(self, engine: Engine | None = None) -> None:
        """Let the engine be checked; one of several gets no requests from here until it was."""
        super().suspect(engine)
        self._link.tell(Suspect(engine.upstream.url if engine is not None else None))


class ToldLeases(Leases):
    """Leases of which another process is told, a moment later.

    Args:
        link: the line to that process.
    """

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._is_told = True
        self._known: dict[str, None] = {}

    def take(self, served: Served) -> None:
        """Hold `served` for one request."""
        super().take(served)
        self._known[served.version] = None
        self._tell_soon()

    def release(self, served: Served) -> None:
        """Give one hold back."""
        super().release(served)
        self._tell_soon()

    def held(self) -> Held:
        """Return what is held now, and what was."""
        return {one: (self.count(one), self.idle_since(one)) for one in self._known}

    def _tell_soon(self) -> None:
        if self._is_told:
            self._is_told = False
            self._loop.call_later(TELL_AFTER_S, self._tell)

    def _tell(self) -> None:
        self._is_told = True
        self._link.tell(Holds(self.held()))


class RemoteKeeper:
    """Lets the process that decides make the engine serve what it should; see `serving.Keeper`.

    What it has changed is served here before its answer comes: the line keeps the order.

    Args:
        link: the line to that process.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    async def keep(self, state: EngineState) -> None:
        """Do nothing: that process looks at the engine by itself."""

    async def bring(self, version: str) -> None:
        """Return when `version` is served beside the active one."""
        await self._link.ask(Bring(version), Done)

    async def reload(self, version: str, asked_at: float) -> bool:
        """Say whether a request that the engine had no `version` for is worth sending again."""
        # Both processes read the same monotonic clock.
        return (await self._link.ask(Reload(version, asked_at), Reloaded)).is_worth_asking


async def key_elsewhere(link: Link, completion_id: str) -> str | None:
    """Return the key of a completion that is in flight in another worker, or None."""
    return (await link.ask(KeyOf(completion_id), Key)).id
