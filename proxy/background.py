"""Work in the background of something else: begun with it, and ended with it.

Does not know what is done.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def in_background(*work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run all of `work` until the block ends; what fails is logged, and the rest goes on."""
    tasks = [asyncio.create_task(one()) for one in work]
    for task in tasks:
        task.add_done_callback(_say_why)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _say_why(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("a background task ended", exc_info=task.exception())
