"""Requests that wait before they can be relayed: for a pinned version, or for the end of a switch.

Forwards nothing, and records nothing: a request that goes while it waits has reached no engine.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from strop.proxy.call import ClientLeft, Receive
from strop.proxy.errors import SwitchingVersions, VersionNotLoaded
from strop.proxy.serving import Serving

T = TypeVar("T")

MAX_TRIES = 3
"""How often a pinned version is loaded for one request, where others displace it again."""


async def admitted(
    admit: Callable[[], T],
    reason: VersionNotLoaded | SwitchingVersions,
    serving: Serving,
    receive: Receive,
    *,
    hold_s: float,
) -> T:
    """Return what `admit` does, once it raises neither of the errors that pass by waiting.

    Args:
        admit: tries to admit the request.
        reason: what it raised at first.
        serving: the engine and its alias.
        receive: the client's, which may leave meanwhile.
        hold_s: how long the request may be held by switches.

    Raises:
        StropError: what it asks for isn't served, or not in time.
        ClientLeft: nobody waits for it any more.
    """
    loop, num_tries = asyncio.get_running_loop(), 0
    hold_until = loop.time() + hold_s
    while True:
        if isinstance(reason, SwitchingVersions):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(hold_until):
                    await _unless_client_leaves(receive, serving.wait_until_let_go())
            if loop.time() >= hold_until:
                raise reason
        elif serving.keeper is None or num_tries == MAX_TRIES:
            raise reason
        else:
            num_tries += 1
            await _unless_client_leaves(receive, serving.keeper.bring(reason.version))
        try:
            return admit()
        except (VersionNotLoaded, SwitchingVersions) as another:
            reason = another


async def until_client_leaves(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_client_leaves(receive: Receive, wait: Coroutine[Any, Any, None]) -> None:
    """Return when `wait` does; raise ClientLeft if the client leaves first."""
    gone = asyncio.create_task(until_client_leaves(receive))
    waiting = asyncio.create_task(wait)
    try:
        await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientLeft
        waiting.result()
    finally:
        gone.cancel()
        waiting.cancel()
