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

from strop.proxy import recording, waiting
from strop.proxy.alias import BASE
from strop.proxy.call import Call, Incoming, Receive, Send, exchange_of
from strop.proxy.engines.base import Ask, Engine
from strop.proxy.errors import (
    SOURCE_HEADER,
    EngineNotReady,
    ShuttingDown,
    StoreUnavailable,
    StropError,
    SwitchingVersions,
    UpstreamDied,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
    VersionNotLoaded,
    render,
)
from strop.proxy.metrics import Metrics
from strop.proxy.redaction import Redaction
from strop.proxy.serving import Serving
from strop.proxy.settings import Settings
from strop.proxy.store.records import State
from strop.proxy.store.store import Store
from strop.proxy.upstream import Exchange
from strop.proxy.wire import headers as wire_headers
from strop.proxy.wire import sse
from strop.proxy.wire.headers import Headers
from strop.proxy.wire.tap import Tap

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 1.0
_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


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
            ClientLeft: the same, and nobody waits for it.
        """
        try:
            call = self._admit(incoming)
        except (VersionNotLoaded, SwitchingVersions) as reason:
            call = await waiting.admitted(
                lambda: self._admit(incoming),
                reason,
                self._serving,
                receive,
                hold_s=self._settings.adapters.swap_hold_s,
            )
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
        if serving.is_held:
            raise SwitchingVersions(
                "the engine is changing its version, and requests wait; this one has waited for"
                " adapters.swap_hold_s, so try again shortly"
            )
        served = serving.alias.resolve(incoming.ask.fields.get("model"))
        came, is_captured = incoming.ask, capture.mode != "off"
        # Not `replace`, which takes several times as long.
        ask = Ask(came.dialect, came.raw, came.fields, served.name, came.is_rewritten, is_captured)
        engine = serving.engine.pick(ask, incoming.session)
        plan = engine.plan(ask)
        call = Call(incoming, served, engine, plan, exchange_of(incoming, engine, plan))
        serving.leases.take(served)
        self._calls[incoming.id] = call
        return call

    async def _watch(self, call: Call, receive: Receive) -> None:
        await waiting.until_client_leaves(receive)
        call.is_client_gone = True
        if self._settings.capture.on_disconnect == "cancel":
            call.give_up("client_cancelled")

    async def _exchange(self, call: Call, send: Send) -> None:
        try:
            exchange = await self._reached(call)
            if exchange.status == 404 and call.served.version != BASE:
                exchange = await self._asked_again(call)
            content_type = wire_headers.first(exchange.headers, b"content-type") or b""
            if exchange.status == 200 and content_type.startswith(b"text/event-stream"):
                await self._stream(call, send)
            else:
                await self._json(call, send)
        except (UpstreamError, UpstreamTimeout, EngineNotReady) as error:
            await self._failed(call, self._why(call, error), send)
        except StoreUnavailable as error:
            await self._answer_error(call, error, send)

    async def _reached(self, call: Call) -> Exchange:
        """Start the exchange, with another server where there are several and one isn't there.

        Raises:
            UpstreamError: none can be reached, or one broke off.
        """
        tried: set[Engine] = set()
        while True:
            try:
                await call.exchange.start()
            except UpstreamUnreachable:
                # Nothing was sent yet.
                tried.add(call.engine)
                self._serving.suspect(call.engine)
                other = self._serving.engine.pick(call.incoming.ask, call.incoming.session)
                if other in tried or call.gave_up is not None:
                    raise
                self._ask_of(call, other)
            else:
                return call.exchange

    def _ask_of(self, call: Call, engine: Engine) -> None:
        """Let `engine` answer the call, by the name under which it serves its version now."""
        came, is_captured = call.incoming.ask, self._settings.capture.mode != "off"
        served = call.served.name
        ask = Ask(came.dialect, came.raw, came.fields, served, came.is_rewritten, is_captured)
        call.engine = engine
        call.plan = engine.plan(ask)
        call.exchange.close()
        call.exchange = exchange_of(call.incoming, engine, call.plan)

    async def _asked_again(self, call: Call) -> Exchange:
        """Return the exchange with the client's answer: another, if the engine lost the version.

        Raises:
            EngineNotReady: it can't serve it any more.
            UpstreamError: it can't be reached now.
        """
        keeper, version = self._serving.keeper, call.served.version
        try:
            if keeper is None or not await keeper.reload(version, call.exchange.sent_at):
                return call.exchange
        except StropError as error:
            raise EngineNotReady(
                f"the engine has lost {version}, and {error.message}; try again soon"
            ) from error
        if call.gave_up is None:
            incoming = call.incoming
            call.served = self._serving.alias.versions.get(version, call.served)
            self._ask_of(call, self._serving.engine.pick(incoming.ask, incoming.session))
            await self._reached(call)
        return call.exchange

    async def _json(self, call: Call, send: Send) -> None:
        exchange, incoming = call.exchange, call.incoming
        call.answer = await exchange.read_all(self._settings.capture.max_answer_bytes)
        call.first_byte_at = monotonic()
        is_ok = exchange.status < 400
        state: State = "complete" if is_ok else "upstream_error"
        # The writer works on it while the client's body is made.
        self._end(call, state)
        body, plan = call.answer, call.plan
        if not is_ok and plan.reword is not None:
            body = plan.reword(exchange.status, body)
        elif is_ok and plan.restore is not None:
            body = plan.restore.apply(body, _num_choices(incoming.ask))
        await self._commit(call, state)
        head = self._head(call)
        if is_ok and plan.rechunk is not None:
            body = plan.rechunk(body)
            head = [h for h in head if h[0] != b"content-type"] + [_EVENTS]
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
        draft = call.draft(state, self._redaction)
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
            self._serving.suspect(call.engine)
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
