"""Waiting for what another task, thread or process does, where nothing sets an event here.

Asserts no time: the limit only lets a wait that never ends say what it was for. Clients of the
tests have the same one, on the busiest machine too; pytest's own, a little longer, ends the rest.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")

LIMIT_S: Final = 240.0
PERIOD_S: Final = 0.01


@overload
async def until(
    look: Callable[[], Awaitable[T]],
    holds: Callable[[T], object] = ...,
    *,
    limit_s: float = ...,
) -> T: ...


@overload
async def until(
    look: Callable[[], T],
    holds: Callable[[T], object] = ...,
    *,
    limit_s: float = ...,
) -> T: ...


async def until(
    look: Callable[[], Any],
    holds: Callable[[Any], object] = bool,
    *,
    limit_s: float = LIMIT_S,
) -> Any:
    """Return what `look` returns, or what it gives when awaited, as soon as it `holds`.

    Raises:
        AssertionError: it didn't within the limit.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + limit_s
    while True:
        seen = look()
        if inspect.isawaitable(seen):
            seen = await seen
        if holds(seen):
            return seen
        if time.monotonic() > deadline:
            name = getattr(look, "__name__", repr(look))
            awaited = inspect.getsource(look).strip() if name == "<lambda>" else name
            raise AssertionError(
                f"waited {limit_s:g} s in vain for: {awaited}\nlast seen: {seen!r}"
            )
        await asyncio.sleep(PERIOD_S)
