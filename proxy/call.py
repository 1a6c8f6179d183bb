"""One completion on its way: what was asked, how far it is, and how it ends.

State, and the two signals that others give it. Sends and receives nothing; `relay` does.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

from strop.proxy.alias import Served
from strop.proxy.engines.base import Ask, Plan
from strop.proxy.store.records import State
from strop.proxy.upstream import Exchange
from strop.proxy.wire.headers import Headers
from strop.proxy.wire.tap import Tap

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Incoming(msgspec.Struct, frozen=True):
    """A completion request that was understood: who asks for what, and how to tell them more.

    Attributes:
        headers: the client's, as ASGI gives them.
        query: the raw query string, passed on.
        session: the label that the client gave its conversation.
        extra_headers: what else the answer says, such as what became of a rating.
    """

    id: str
    created_ms: int
    started: float
    ask: Ask
    key_id: str
    headers: Headers
    query: bytes
    request_id: str | None
    session: str | None
    extra_headers: Headers = msgspec.field(default_factory=list)


@dataclass(slots=True, eq=False)
class Call:
    """One request on its way, and the one place where it ends."""

    incoming: Incoming
    served: Served
    plan: Plan
    exchange: Exchange
    state: State | None = None
    error: str | None = None
    is_client_gone: bool = False
    gave_up: State | None = None
    tap: Tap | None = None
    answer: bytes = b""
    has_response: bool = False
    first_byte_at: float = 0.0
    overhead_s: float = 0.0
    committed: "asyncio.Future[Any] | None" = None
    durable: "asyncio.Future[None] | None" = None
    awaits_commit_since: float = 0.0

    def give_up(self, state: State) -> None:
        """Stop asking the engine; the call then ends as `state`."""
        if self.gave_up is None:
            self.gave_up = state
        self.exchange.abort()

    def commit_done(self, committed: "asyncio.Future[Any]") -> None:
        """Let whoever awaits the commit go on."""
        if self.durable is None or self.durable.done():
            return
        error = None if committed.cancelled() else committed.exception()
        if error is None:
            self.durable.set_result(None)
        else:
            self.durable.set_exception(error)

    def commit_late(self) -> None:
        """Let whoever awaits the commit go on without it."""
        if self.durable is not None and not self.durable.done():
            self.durable.set_exception(TimeoutError())
