"""A run's row, as the computing thread sees it: what must be written waits, progress doesn't fail.

Does not know what a run does. The store belongs to another thread's loop.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from strop.proxy.errors import StoreUnavailable
from strop.proxy.store.run_records import Run, RunUpdate
from strop.proxy.store.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")


class RunRow:
    """One run's row.

    Args:
        store: the store.
        loop: the loop it belongs to, which runs in another thread.
        run: the run as it is.

    Attributes:
        completions: the ids of those that the run has collected; where one is deleted, it has to
            stop.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, run: Run) -> None:
        self.store = store
        self.run = run
        self._loop = loop
        self.completions: tuple[str, ...] = ()

    def wait(self, asked: Coroutine[Any, Any, T]) -> T:
        """Return what the store answers, once it has."""
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()

    def update(self, new: RunUpdate) -> None:
        """Change the row.

        Raises:
            StropError: see `runs.update`.
        """
        self.run = self.wait(self.store.runs.update(self.run.id, new))

    def begin_anew(self) -> None:
        """Forget how far the run had come.

        Raises:
            StropError: see `runs.begin_anew`.
        """
        self.run = self.wait(self.store.runs.begin_anew(self.run.id))

    def step(self, num: int, metrics: Mapping[str, float], eta_s: float) -> None:
        """Write down a step; that a store can't be written now doesn't stop the run."""
        adding = self.store.runs.add_step(self.run.id, num, to_json(metrics), eta_s=eta_s)
        try:
            self.run = self.wait(adding)
        except StoreUnavailable as error:
            log.warning("a step's metrics are lost", extra={"step": num, "reason": error.message})

    def count(self, counts: Mapping[str, object]) -> None:
        """Write down counts for now; that a store can't be written now doesn't stop the run."""
        with contextlib.suppress(StoreUnavailable):
            self.update(RunUpdate(counts=to_json(counts)))


def to_json(value: object) -> bytes:
    """Return `value` as JSON; figures that aren't finite become null."""
    return json.dumps(_finite(value)).encode()


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
