"""Runs a test on each event loop that strop may run on."""

import asyncio
import functools
import gc
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from waiting import LIMIT_S

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on either loop, and fail it too for what it left to the loop's error handler."""

    @functools.wraps(test)
    def run(loop: str, **arguments: object) -> None:
        unhandled: list[dict[str, Any]] = []

        async def watched() -> None:
            current = asyncio.get_running_loop()
            current.set_exception_handler(lambda _, context: unhandled.append(context))
            async with asyncio.timeout(LIMIT_S + 10):  # a wait ends before it
                await test(**arguments)
            gc.collect()

        # Only what the test makes is looked at: all else takes ten times as long.
        gc.freeze()
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(watched())
        finally:
            gc.unfreeze()
        assert [] == unhandled

    signature = inspect.signature(test)
    parameter = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    signature = signature.replace(parameters=[*signature.parameters.values(), parameter])
    run.__signature__ = signature  # type: ignore[attr-defined]
    parametrized: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return parametrized
