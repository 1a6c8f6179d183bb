"""One completion on its way: what was asked, how far it is, and how it ends.

State, and the two signals that others give it. Sends and receives nothing; `relay` does.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import msgspec

from strop.proxy.alias import Served
from strop.proxy.engines.base import Ask, Engine, Plan
from strop.proxy.ids import digits_of
from strop.proxy.recording import Draft
from strop.proxy.redaction import Redaction
from strop.proxy.store.records import State
from strop.proxy.upstream.exchange import Exchange
from strop.proxy.wire.headers import Headers
from strop.proxy.wire.restore import Split
from strop.proxy.wire.tap import Tap

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ClientLeft(Exception):
    """The connection was closed before anything was sent to an engine."""


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
    engine: Engine
    plan: Plan
    exchange: Exchange
    state: State | None = None
    error: str | None = None
    is_client_gone: bool = False
    gave_up: State | None = None
    tap: Tap | None = None
    answer: bytes = b""
    split: Split | None = None
    has_response: bool = False
    first_byte_at: float = 0.0
    overhead_s: float = 0.0
    committed: "asyncio.Future[Any] | None" = None
    durable: "asyncio.Future[None] | None" = None
    awaits_commit_since: float = 0.0

    def goes_by(self, name: str) -> bool:
        """Whether the engine has given the stream that it sends now the id `name`."""
        has_own = self.engine.capabilities.body_ids_are_unique
        return self.tap is not None and has_own and self.tap.answer_id == name

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

    def commit_late(self) -> bool:
        """Let whoever awaits the commit go on without it; return whether anyone does."""
        if self.durable is None or self.durable.done():
            return False
        self.durable.set_exception(TimeoutError())
        return True

    def draft(self, state: State, redaction: Redaction) -> Draft:
        """Return what is to be recorded of it, as it is now; it ends as `state`."""
        incoming, engine = self.incoming, self.engine
        stream = self.tap.copy if self.tap is not None else None
        error = self.error
        if stream is not None and stream.is_over_limit:
            error = "the answer was longer than capture.max_answer_bytes, so it was not kept"
        now = monotonic()
        # What never went out was ours alone.
        sent_at = self.exchange.sent_at or now
        first_byte_at = self.first_byte_at
        return Draft(
            id=incoming.id,
            created_ms=incoming.created_ms,
            key_id=incoming.key_id,
            engine=engine.label,
            capabilities=engine.capabilities,
            ask=incoming.ask,
            served=self.served,
            state=state,
            delivered=state == "complete" and not self.is_client_gone,
            status=self.exchange.status or None,
            error=error,
            answer=self.answer,
            stream=stream,
            ttft_ms=1000 * (first_byte_at - incoming.started) if first_byte_at else None,
            total_ms=1000 * (now - incoming.started),
            overhead_ms=1000 * (self.overhead_s or max(0.0, sent_at - incoming.started)),
            request_id=incoming.request_id,
            session=incoming.session,
            redaction=redaction,
            split=self.split,
        )


def exchange_of(incoming: Incoming, engine: Engine, plan: Plan) -> Exchange:
    """Return the exchange that asks `engine` for what `incoming` asks for; nothing is sent yet.

    X-Request-Id is the completion's own: vLLM names its answer by it, unless the client has named
    it. So the names by which the store finds completions sort by time as their ids do, and one
    commit enters them side by side.
    """
    upstream = engine.upstream
    is_chat = incoming.ask.dialect == "chat"
    target = b"/v1/chat/completions" if is_chat else b"/v1/completions"
    if incoming.query:
        target += b"?" + incoming.query
    headers = engine.headers(incoming.headers)
    if "request_id" not in incoming.ask.fields:
        headers.append((b"x-request-id", digits_of(incoming.id).encode()))
    return upstream.exchange(b"POST", upstream.base_path + target, headers, plan.body)
