"""The completions under way, and that each is recorded exactly once.

Relays nothing, and does not know how a completion is stored.
"""

import asyncio
import logging
from functools import partial
from time import monotonic
from typing import Any

from strop.proxy import recording
from strop.proxy.call import Call
from strop.proxy.errors import StoreUnavailable, StropError
from strop.proxy.metrics import Metrics
from strop.proxy.redaction import Redaction
from strop.proxy.serving import Serving
from strop.proxy.settings.settings import Capture
from strop.proxy.store.records import State
from strop.proxy.store.store import Store

log = logging.getLogger(__name__)


class Ledger:
    """The calls from their admission until they are in the store, or known to be lost.

    Attributes:
        num_begun: how many there have been.

    Args:
        capture: whether answers are recorded, and what if they can't be.
        serving: whose versions the calls hold a lease of.
        store: where they are recorded.
        metrics: where they are counted.
        redaction: what is taken out of them before.
    """

    def __init__(
        self,
        capture: Capture,
        serving: Serving,
        store: Store,
        metrics: Metrics,
        redaction: Redaction,
    ) -> None:
        self._capture = capture
        self._serving = serving
        self._store = store
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._redaction = redaction
        self._calls: dict[str, Call] = {}
        self.num_begun = 0
        metrics.in_flight.set_function(self._num_unended)

    @property
    def calls(self) -> list[Call]:
        """The calls now."""
        return list(self._calls.values())

    @property
    def num_calls(self) -> int:
        """How many there are."""
        return len(self._calls)

    def _num_unended(self) -> int:
        # A copy: it may be asked for in another thread.
        return sum(call.state is None for call in self.calls)

    def find(self, name: str) -> list[Call]:
        """Return the calls with this id, ours or the engine's, that will come into the store."""
        if self._capture.mode == "off":
            return []
        own = self._calls.get(name)
        return [own] if own else [call for call in self.calls if call.goes_by(name)]

    def begin(self, call: Call) -> None:
        """Enter a call; its lease is held until it ends."""
        self._serving.leases.take(call.served)
        self._calls[call.incoming.id] = call
        self.num_begun += 1

    def end(self, call: Call, state: State) -> "asyncio.Future[Any] | None":
        """End a call as `state`, unless it has ended; return its commit, None where none is due."""
        if call.state is not None:
            return call.committed
        call.state = state
        self._serving.leases.release(call.served)
        self._metrics.completions[state].inc()
        # A refusal says nothing of the engine, nor does a client that leaves.
        is_refused = 400 <= call.exchange.status < 500
        if state == "complete" or (state == "upstream_error" and not is_refused):
            self._serving.note_end(call.engine, has_failed=state != "complete")
        if self._capture.mode == "off":
            del self._calls[call.incoming.id]
            return None
        draft = call.draft(state, self._redaction)
        build = partial(recording.complete, draft)
        try:
            committed = self._store.commit_completion(build, draft.num_bytes)
        except StoreUnavailable as error:
            committed = self._loop.create_future()
            committed.set_exception(error)
        call.committed = committed
        committed.add_done_callback(lambda future: self._recorded(call, future))
        return committed

    async def commit(self, call: Call, state: State) -> None:
        """End a call as `state`, unless it has ended, and return when it is durable.

        Raises:
            StoreUnavailable: it is not, and `capture.mode` requires it.
        """
        committed = self.end(call, state)
        if committed is None:
            return
        is_required = self._capture.mode == "required"
        if not is_required and self._store.reason is not None:
            # Each answer would wait for what most likely fails.
            return
        call.awaits_commit_since = monotonic()
        try:
            try:
                await self._until_durable(call, committed)
            except asyncio.CancelledError:
                if state != "complete":
                    raise
                # The drain is over. A whole answer that is recorded as such is given all the same;
                # nobody else sees any more that it comes late.
                async with asyncio.timeout(self._capture.commit_timeout_s):
                    await self._until_durable(call, committed)
        except Exception as error:
            # Why ever there is no record of it, it is an answer.
            if not is_required:
                return
            reason = error.message if isinstance(error, StropError) else "it took too long"
            raise StoreUnavailable(
                f"the answer could not be recorded: {reason}; it is withheld because capture.mode"
                ' is "required"'
            ) from error

    async def _until_durable(self, call: Call, committed: "asyncio.Future[Any]") -> None:
        call.durable = self._loop.create_future()
        if committed.done():
            call.commit_done(committed)
        await call.durable

    def let_go_if_late(self, call: Call, now: float) -> None:
        """Let whoever awaits the commit of a call that has ended go on without it."""
        limit_s = self._capture.commit_timeout_s
        if now - call.awaits_commit_since > limit_s and call.commit_late():
            self._store.stall(
                f"a write takes longer than capture.commit_timeout_s = {limit_s:g} s; the disk is"
                " too slow, or the database locked"
            )

    def _recorded(self, call: Call, committed: "asyncio.Future[Any]") -> None:
        del self._calls[call.incoming.id]
        call.commit_done(committed)
        if committed.cancelled() or (error := committed.exception()) is not None:
            self._metrics.lost.inc()
            reason = "cancelled" if committed.cancelled() else str(error)
            log.error("completion lost", extra={"completion": call.incoming.id, "reason": reason})
        else:
            self._metrics.tokens.inc(committed.result().num_sampled)
