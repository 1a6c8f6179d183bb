"""The hot path: one completion from its request to its last byte.

Forwards, tees, watches for the client leaving, and lets nobody have a whole answer before it is in
the store. Does not know which engine answers, what a rating is, or how a completion is stored.

How a call ends, whichever comes first:

    complete           the engine's end was seen
    client_cancelled   the client left, or was cut off since it stopped reading
    upstream_error     the engine can't be reached, broke off, or answered with an error
    upstream_timeout   the engine said nothing for `engine.first_byte_timeout_s` or `idle_timeout_s`
    shutdown           strop stopped, and the drain's time was over
"""

import asyncio
import contextlib
import logging
from time import monotonic
from typing import Any

from strop.proxy import recording
from strop.proxy.call import Call, Incoming, Receive, Send
from strop.proxy.engines.base import Ask
from strop.proxy.errors import (
    SOURCE_HEADER,
    ShuttingDown,
    StoreUnavailable,
    StropError,
    UpstreamDied,
    UpstreamError,
    UpstreamTimeout,
    render,
)
from strop.proxy.metrics import Metrics
from strop.proxy.redaction import Redaction
from strop.proxy.serving import Serving
from strop.proxy.settings import Settings
from strop.proxy.store.records import State
from strop.proxy.store.store import Store
from strop.proxy.wire import headers as wire_headers
from strop.proxy.wire import sse
from strop.proxy.wire.headers import Headers
from strop.proxy.wire.tap import Tap

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 1.0
_JSON = (b"content-type", b"application/json")


class Relay:
    """Relays completions to the engine that serves, and records each exactly once."""

    def __init__(
        self, settings: Settings, serving: Serving, store: Store, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._serving = serving
        self._store = store
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._redaction = Redaction.of(settings.capture.redact)
        self._calls: dict[str, Call] = {}
        self.is_draining = False
        metrics.in_flight.set_function(self._num_unended)

    @property
    def num_calls(self) -> int:
        """How many completions are being relayed."""
        return len(self._calls)

    def _num_unended(self) -> int:
        # A copy: it may be asked for in another thread.
        return sum(call.state is None for call in list(self._calls.values()))

    def is_in_flight(self, completion_id: str) -> bool:
        """Whether a completion was begun and is not in the store yet. Safe from any thread."""
        return completion_id in self._calls

    def key_of(self, completion_id: str) -> str | None:
        """Return the id of the key that a completion in flight was asked for with."""
        call = self._calls.get(completion_id)
        return call.incoming.key_id if call is not None else None

    async def relay(self, incoming: Incoming, receive: Receive, send: Send) -> None:
        """Relay one completion.

        Raises:
            StropError: nothing was sent to the engine or the client yet, and nothing recorded.
        """
        call = self._admit(incoming)
        watcher = self._loop.create_task(self._watch(call, receive))
        try:
            await self._exchange(call, send)
        except asyncio.CancelledError:
            await self._cancelled(call, send)
        finally:
            watcher.cancel()
            call.exchange.close()
            self._end(call, "upstream_error")

    def _admit(self, incoming: Incoming) -> Call:
        if self.is_draining:
            raise ShuttingDown("strop is stopping and takes no new requests; try again shortly")
        capture = self._settings.capture
        reason = self._store.reason
        if reason is not None and capture.mode == "required":
            raise StoreUnavailable(
                f"answers must be recorded, and the store takes no writes: {reason};"
                ' free it, or set capture.mode = "best_effort" to be served without a record'
            )
        serving = self._serving
        served = serving.alias.resolve(incoming.ask.fields.get("model"))
        came, is_captured = incoming.ask, capture.mode != "off"
        # Not `replace`, which takes several times as long.
        ask = Ask(came.dialect, came.raw, came.fields, served.name, came.is_rewritten, is_captured)
        engine = serving.engine
        plan = engine.plan(ask)
        target = b"/v1/chat/completions" if ask.dialect == "chat" else b"/v1/completions"
        if incoming.query:
            target += b"?" + incoming.query
        exchange = engine.upstream.exchange(
            b"POST", engine.upstream.base_path + target, engine.headers(incoming.headers), plan.body
        )
        call = Call(incoming, served, plan, exchange)
        serving.leases.take(served)
        self._calls[incoming.id] = call
        return call

    async def _watch(self, call: Call, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        call.is_client_gone = True
        if self._settings.capture.on_disconnect == "cancel":
            call.give_up("client_cancelled")

    async def _exchange(self, call: Call, send: Send) -> None:
        exchange = call.exchange
        try:
            await exchange.start()
            content_type = wire_headers.first(exchange.headers, b"content-type") or b""
            if exchange.status == 200 and content_type.startswith(b"text/event-stream"):
                await self._stream(call, send)
            else:
                await self._json(call, send)
        except (UpstreamError, UpstreamTimeout) as error:
            await self._failed(call, self._why(call, error), send)
        except StoreUnavailable as error:
            await self._answer_error(call, error, send)

    async def _json(self, call: Call, send: Send) -> None:
        exchange, incoming = call.exchange, call.incoming
        call.answer = await exchange.read_all(self._settings.capture.max_answer_bytes)
        call.first_byte_at = monotonic()
        is_ok = exchange.status < 400
        state: State = "complete" if is_ok else "upstream_error"
        # The writer works on it while the client's body is made.
        self._end(call, state)
        body = call.answer
        if is_ok and call.plan.restore is not None:
            body = call.plan.restore.apply(body, _num_choices(incoming.ask))
        await self._commit(call, state)
        head = self._head(call)
        head.append((b"content-length", str(len(body)).encode()))
        await self._start(call, exchange.status, head, send)
        await send({"type": "http.response.body", "body": body})
        self._metrics.first_byte.observe(call.first_byte_at - incoming.started)

    async def _stream(self, call: Call, send: Send) -> None:
        exchange, incoming = call.exchange, call.incoming
        num_choices = incoming.ask.fields.get("n")
        call.tap = tap = Tap(
            call.plan.restore,
            num_choices if isinstance(num_choices, int) else 1,
            self._settings.capture.max_answer_bytes,
        )
        await self._start(call, exchange.status, self._head(call), send)
        while data := await exchange.read():
            if not call.first_byte_at:
                call.first_byte_at = monotonic()
                self._metrics.first_byte.observe(call.first_byte_at - incoming.started)
            if out := tap.feed(data):
                await send({"type": "http.response.body", "body": out, "more_body": True})
        if not tap.is_ended:
            raise UpstreamDied("the engine ended its stream before its answer was finished")
        await self._commit(call, "complete")
        await send({"type": "http.response.body", "body": tap.flush()})

    def _head(self, call: Call) -> Headers:
        exchange, incoming = call.exchange, call.incoming
        head = wire_headers.to_client(exchange.headers)
        head.append((b"x-strop-completion-id", incoming.id.encode()))
        head.append((b"x-strop-adapter", call.served.version.encode()))
        head += incoming.extra_headers
        call.overhead_s = (exchange.sent_at - incoming.started) + (monotonic() - exchange.head_at)
        self._metrics.overhead.observe(call.overhead_s)
        head.append((b"x-strop-overhead-ms", b"%.2f" % (1000 * call.overhead_s)))
        return head

    async def _start(self, call: Call, status: int, head: Headers, send: Send) -> None:
        call.has_response = True
        await send({"type": "http.response.start", "status": status, "headers": head})

    async def _commit(self, call: Call, state: State) -> None:
        """End the call, and return when it is durable.

        Raises:
            StoreUnavailable: it is not, and `capture.mode` requires it.
        """
        committed = self._end(call, state)
        if committed is None:
            return
        is_required = self._settings.capture.mode == "required"
        if not is_required and self._store.reason is not None:
            # Each answer would wait for what most likely fails.
            return
        call.durable = self._loop.create_future()
        call.awaits_commit_since = monotonic()
        committed.add_done_callback(call.commit_done)
        try:
            await call.durable
        except Exception as error:
            # Why ever there is no record of it, it is an answer.
            if not is_required:
                return
            reason = error.message if isinstance(error, StropError) else "it took too long"
            raise StoreUnavailable(
                f"the answer could not be recorded: {reason}; it is withheld because capture.mode"
                ' is "required"'
            ) from error

    def _end(self, call: Call, state: State) -> "asyncio.Future[Any] | None":
        """End the call as `state`, unless it has ended; return its commit."""
        if call.state is not None:
            return call.committed
        call.state = state
        self._serving.leases.release(call.served)
        self._metrics.completions[state].inc()
        if self._settings.capture.mode == "off":
            del self._calls[call.incoming.id]
            return None
        draft = self._draft(call, state)
        size = len(draft.answer) + len(draft.ask.raw)
        try:
            committed = self._store.commit_completion(lambda: recording.complete(draft), size)
        except StoreUnavailable as error:
            committed = self._loop.create_future()
            committed.set_exception(error)
        call.committed = committed
        committed.add_done_callback(lambda future: self._recorded(call, future))
        return committed

    def _recorded(self, call: Call, committed: "asyncio.Future[Any]") -> None:
        del self._calls[call.incoming.id]
        if committed.cancelled() or (error := committed.exception()) is not None:
            self._metrics.lost.inc()
            reason = "cancelled" if committed.cancelled() else str(error)
            log.error("completion lost", extra={"completion": call.incoming.id, "reason": reason})

    def _draft(self, call: Call, state: State) -> recording.Draft:
        incoming, engine = call.incoming, self._serving.engine
        answer, error = call.answer, call.error
        if call.tap is not None:
            answer = call.tap.kept
            if call.tap.is_over_limit:
                error = "the answer was longer than capture.max_answer_bytes, so it was not kept"
        now = monotonic()
        # What never went out was ours alone.
        sent_at = call.exchange.sent_at or now
        return recording.Draft(
            id=incoming.id,
            created_ms=incoming.created_ms,
            key_id=incoming.key_id,
            engine=engine.label,
            capabilities=engine.capabilities,
            ask=incoming.ask,
            served=call.served,
            state=state,
            delivered=state == "complete" and not call.is_client_gone,
            status=call.exchange.status or None,
            error=error,
            answer=answer,
            is_event_stream=call.tap is not None,
            ttft_ms=1000 * (call.first_byte_at - incoming.started) if call.first_byte_at else None,
            total_ms=1000 * (now - incoming.started),
            overhead_ms=1000 * (call.overhead_s or max(0.0, sent_at - incoming.started)),
            request_id=incoming.request_id,
            session=incoming.session,
            redaction=self._redaction,
        )

    def _why(self, call: Call, error: StropError) -> StropError:
        if call.gave_up == "upstream_timeout":
            return UpstreamTimeout(
                "the engine sent nothing for longer than engine.first_byte_timeout_s or"
                " engine.idle_timeout_s allow; see its log, or raise the limit"
            )
        return error

    async def _failed(self, call: Call, error: StropError, send: Send) -> None:
        if call.gave_up != "client_cancelled":
            call.error = error.message
        if call.gave_up is None and not call.exchange.status:
            self._serving.suspect()
        await self._commit(call, call.gave_up or "upstream_error")
        await self._answer_error(call, error, send)

    async def _answer_error(self, call: Call, error: StropError, send: Send) -> None:
        if call.is_client_gone:
            return
        self._metrics.refused.labels(error.code).inc()
        body = render(error)
        if call.has_response:
            # A stream has begun: an error event ends it, and no [DONE].
            await send({"type": "http.response.body", "body": sse.event(body)})
            return
        head = [
            _JSON,
            SOURCE_HEADER,
            (b"x-strop-completion-id", call.incoming.id.encode()),
            (b"x-strop-adapter", call.served.version.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await self._start(call, error.status, head, send)
        await send({"type": "http.response.body", "body": body})

    async def _cancelled(self, call: Call, send: Send) -> None:
        """End a call whose task was cancelled, because strop stops."""
        call.error = "strop stopped"
        with contextlib.suppress(StoreUnavailable):
            await self._commit(call, call.gave_up or "shutdown")
        error = ShuttingDown("strop is stopping and the answer was cut off; ask again shortly")
        await self._answer_error(call, error, send)

    async def sweep(self) -> None:
        """Give up calls that make no progress, and commits that come late. Runs until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = monotonic()
            for call in list(self._calls.values()):
                if call.state is None:
                    self._give_up_if_stuck(call, now)
                elif now - call.awaits_commit_since > self._settings.capture.commit_timeout_s:
                    call.commit_late()

    def _give_up_if_stuck(self, call: Call, now: float) -> None:
        exchange, engine = call.exchange, self._settings.engine
        limit_s = engine.idle_timeout_s if exchange.status else engine.first_byte_timeout_s
        if exchange.is_waiting and now - exchange.last_progress > limit_s:
            call.give_up("upstream_timeout")


def _num_choices(ask: Ask) -> int | None:
    """Return how many choices a request asks for; None where only the engine can tell."""
    asked = ask.fields.get("n")
    # For each prompt of a text completion, of which there may be many.
    if ask.dialect != "chat" or not isinstance(asked, int | None):
        return None
    return 1 if asked is None else asked
