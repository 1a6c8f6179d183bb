"""One of several servers of an engine, and whether requests may go to it.

Asks nothing: `replicas` looks, and `keeping` lets it in.
"""

import logging
from dataclasses import dataclass, field
from time import monotonic

from strop.proxy.engines.base import Engine, EngineState
from strop.proxy.engines.claims import Verification

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Replica:
    """One of several servers, and whether requests may go to it.

    Attributes:
        engine: its driver.
        state: what it said last; None while it doesn't answer.
        reason: why it gets no requests, for people.
        is_in: whether it gets any: it answers, and holds what it should.
        is_suspect: whether a request could not reach it since, or several failed there.
        verification: of its claims, and that it answers at all.
        picked: the number of the last choice that fell on it.
        retry_at: the monotonic time before which it is not worth loading anything there again.
        entered_at: the monotonic time since which it gets requests, or at which it last did.
    """

    engine: Engine
    state: EngineState | None = None
    reason: str = "it has not answered yet"
    is_in: bool = False
    is_suspect: bool = False
    verification: Verification = field(default_factory=Verification)
    picked: int = 0
    retry_at: float = 0.0
    entered_at: float = 0.0
    _is_said_out: bool = False

    @property
    def failure(self) -> str:
        """Why it answers no request, though it says that it is ready; empty where it does."""
        return self.verification.failure

    @property
    def is_ready(self) -> bool:
        """Whether requests go to it."""
        return self.is_in and not self.is_suspect

    @property
    def num_in_flight(self) -> int:
        """How many requests it has of strop's."""
        return self.engine.upstream.num_busy

    def enter(self) -> None:
        """Let it have requests."""
        if not self.is_in:
            log.info("a replica serves", extra={"url": self.engine.upstream.url})
        self.is_in, self.reason, self._is_said_out = True, "", False
        self.entered_at = monotonic()

    def leave(self, reason: str, *, answers: bool = False) -> None:
        """Let it have none; unless it `answers`, it can't be asked for anything else either."""
        if self.is_in or not self._is_said_out:
            extra = {"url": self.engine.upstream.url, "reason": reason}
            log.warning("a replica is left out", extra=extra)
        self.is_in, self.reason, self._is_said_out = False, reason, True
        if not answers:
            self.state, self.retry_at = None, 0.0
            self.verification.forget()
