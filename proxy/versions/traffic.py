"""The requests, as an activation moves them: held, let go, and given another version.

Knows neither files nor probes.
"""

import asyncio
from collections.abc import Awaitable, Callable

from strop.adapters.swap import Done, Release
from strop.proxy.errors import SwitchingVersions
from strop.proxy.serving import Serving
from strop.proxy.versions.residents import Residents


async def _unrecorded(_: Release) -> None:
    return None


class Traffic:
    """The traffic during one activation.

    Args:
        serving: the alias, the leases, and the gate that new requests wait at.
        residents: what the engine holds.
        done: how the activation goes; its judgement is noted with the version.
        record: makes the activation durable; nothing where it is on record already.
        hold_s: how long requests may be held.
    """

    def __init__(
        self,
        serving: Serving,
        residents: Residents,
        done: Done,
        record: Callable[[Release], Awaitable[None]] = _unrecorded,
        *,
        hold_s: float,
    ) -> None:
        self._serving = serving
        self._residents = residents
        self._done = done
        self._record = record
        self._hold_s = hold_s

    async def hold(self) -> None:
        """Let new requests wait, and return when those under way have ended.

        Raises:
            SwitchingVersions: they take longer than requests may be held.
        """
        self._serving.hold()
        try:
            async with asyncio.timeout(self._hold_s):
                await self._serving.leases.wait_until_free()
        except TimeoutError:
            raise SwitchingVersions(
                f"expected the {self._serving.leases.total} answers under way to end within"
                f" adapters.swap_hold_s = {self._hold_s:g} s, and they didn't; try again, or raise"
                " it"
            ) from None

    def let_go(self) -> None:
        """Let the requests that wait go on."""
        self._serving.let_go()

    async def flip(self, release: Release) -> None:
        """Record that `release` is active, and let it be so; return when it is so everywhere.

        In this process that is the tick in which it is durable.
        """
        await self._record(release)
        if self._residents.get(release.version) is None:
            self._residents.add(release, self._done.judgement)
        else:
            self._residents.keep(release.version)
        # By the name that it was loaded under: another home may have taken its own then.
        resident = self._residents.get(release.version)
        served = self._residents.served(resident.release) if resident else self._serving.alias.base
        self._serving.put(self._residents.alias(active=served))
        await self._serving.have_moved()
