"""The hot path: one completion from its request to its last byte.

Forwards, tees, watches for the client leaving, and lets nobody have a whole answer before it is in
the store. Does not know which server of an engine is asked (see `attempts`), what a rating is, or
how a completion is recorded (see `ledger`).

How a call ends, whichever comes first:

    complete           the engine's end was seen
    client_cancelled   the client left, or was cut off since it stopped reading
    upstream_error     the engine can't be reached, broke off, or answered with an error
    upstream_timeout   the engine said nothing for `engine.first_byte_timeout_s` or `idle_timeout_s`
    shutdown           strop stopped, and the drain's time was over
"""

import asyncio
import contextlib
from time import monotonic

from strop.proxy import heap, waiting
from strop.proxy.alias import BASE
from strop.proxy.attempts import Attempts
from strop.proxy.call import Call, Incoming, Receive, Send, exchange_of
from strop.proxy.errors import (
    EngineNotReady,
    ShuttingDown,
    StoreUnavailable,
    StropError,
    SwitchingVersions,
    UpstreamDied,
    UpstreamError,
    UpstreamTimeout,
    VersionNotLoaded,
    head_of,
    render,
)
from strop.proxy.ledger import Ledger
from strop.proxy.metrics import Metrics
from strop.proxy.redaction import Redaction
from strop.proxy.serving import Serving
from strop.proxy.settings.settings import Settings
from strop.proxy.store.binding import InFlight
from strop.proxy.store.records import State
from strop.proxy.store.store import Store
from strop.proxy.wire import headers as wire_headers
from strop.proxy.wire import sse
from strop.proxy.wire.headers import Headers
from strop.proxy.wire.tap import Tap

SWEEP_INTERVAL_S = 1.0
# A server such as nginx in front would gather a stream, and pass it on in one piece at its end.
_UNBUFFERED = (b"x-accel-buffering", b"no")


class Relay:
    """Relays completions to the engine that serves, and records each exactly once."""

    def __init__(
        self,
        settings: Settings,
        serving: Serving,
        store: Store,
        metrics: Metrics,
        redaction: Redaction,
    ) -> None:
        self._settings = settings
        self._serving = serving
        self._store = store
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._ledger = Ledger(settings.capture, serving, store, metrics, redaction)
        self._attempts = Attempts(serving, is_captured=settings.capture.mode != "off")
        self.is_draining = False

    @property
    def num_calls(self) -> int:
        """How many completions are being relayed."""
        return self._ledger.num_calls

    def is_relaying_for(self, key_id: str) -> bool:
        """Whether a completion that this key asked for is being relayed."""
        return any(call.incoming.key_id == key_id for call in self._ledger.calls)

    def key_of(self, completion_id: str) -> str | None:
        """Return the id of the key that a completion in flight was asked for with."""
        return next((call.incoming.key_id for call in self._ledger.find(completion_id)), None)

    def called(self, name: str, key_id: str | None) -> list[InFlight]:
        """Return the completions in flight that go by this id, ours or the engine's.

        Those of one key; None for any.
        """
        found = [call.incoming for call in self._ledger.find(name)]
        return [
            InFlight(one.id, one.created_ms, str(one.ask.fields.get("model") or ""))
            for one in found
            if key_id in (None, one.key_id)
        ]

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
            self._ledger.end(call, "upstream_error")

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
        ask = self._attempts.ask(incoming.ask, served.name)
        engine = serving.engine.pick(ask, incoming.session)
        plan = engine.plan(ask)
        call = Call(incoming, served, engine, plan, exchange_of(incoming, engine, plan))
        self._ledger.begin(call)
        return call

    async def _watch(self, call: Call, receive: Receive) -> None:
        await waiting.until_client_leaves(receive)
        call.is_client_gone = True
        if self._settings.capture.on_disconnect == "cancel":
            call.give_up("client_cancelled")

    async def _exchange(self, call: Call, send: Send) -> None:
        try:
            exchange = await self._attempts.reached(call)
            if exchange.status == 404 and call.served.version != BASE:
                exchange = await self._attempts.again(call)
            if wire_headers.first(exchange.headers, b"content-encoding") is not None:
                exchange.unpack()
            if exchange.status == 200 and wire_headers.is_stream(exchange.headers):
                await self._stream(call, send)
            else:
                await self._json(call, send)
        except (UpstreamError, UpstreamTimeout, EngineNotReady) as error:
            await self._failed(call, self._why(call, error), send)
        except StoreUnavailable as error:
            await self._answer_error(call, error, send)

    async def _json(self, call: Call, send: Send) -> None:
        exchange, incoming = call.exchange, call.incoming
        call.answer = await exchange.read_all(self._settings.capture.max_answer_bytes)
        call.first_byte_at = monotonic()
        is_ok = exchange.status < 400
        # The client may have left while the version that a 404 says is lost was loaded for it.
        state: State = "complete" if is_ok else call.gave_up or "upstream_error"
        body, plan, ask = call.answer, call.plan, incoming.ask
        # In a text completion's logprobs stand tokens for names, among them those searched for.
        num_choices = _num_choices(call) if ask.dialect == "chat" else None
        if is_ok and plan.restore is not None and num_choices == 1:
            call.split = plan.restore.split(body)
        # The writer works on it while the client's body is made.
        self._ledger.end(call, state)
        if not is_ok and plan.reword is not None:
            body = plan.reword(exchange.status, body)
        elif call.split is not None:
            body = call.split.rest
        elif is_ok and plan.restore is not None:
            body = plan.restore.apply(body, num_choices)
        await self._ledger.commit(call, state)
        head = self._head(call)
        if is_ok and plan.rechunk is not None:
            body = plan.rechunk(body)
            head = [h for h in head if h[0] != b"content-type"] + [wire_headers.EVENTS]
        head.append((b"content-length", str(len(body)).encode()))
        await self._start(call, exchange.status, head, send)
        await send({"type": "http.response.body", "body": body})
        self._metrics.first_byte.observe(call.first_byte_at - incoming.started)

    async def _stream(self, call: Call, send: Send) -> None:
        exchange, incoming = call.exchange, call.incoming
        capture = self._settings.capture
        call.tap = tap = Tap(
            call.plan.restore,
            _num_choices(call) or 1,
            capture.max_answer_bytes if capture.mode != "off" else 0,
        )
        head = self._head(call)
        if wire_headers.first(head, _UNBUFFERED[0]) is None:
            head.append(_UNBUFFERED)
        await self._start(call, exchange.status, head, send)
        while data := await exchange.read():
            if not call.first_byte_at:
                call.first_byte_at = monotonic()
                self._metrics.first_byte.observe(call.first_byte_at - incoming.started)
            if out := tap.feed(data):
                await send({"type": "http.response.body", "body": out, "more_body": True})
        if not tap.is_ended:
            raise UpstreamDied("the engine ended its stream before its answer was finished")
        await self._ledger.commit(call, "upstream_error" if tap.has_failed else "complete")
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
        await self._ledger.commit(call, call.gave_up or "upstream_error")
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
            *head_of(error, body),
            (b"x-strop-completion-id", call.incoming.id.encode()),
            (b"x-strop-adapter", call.served.version.encode()),
            *call.incoming.extra_headers,
        ]
        await self._start(call, error.status, head, send)
        await send({"type": "http.response.body", "body": body})

    async def _cancelled(self, call: Call, send: Send) -> None:
        """End a call whose task was cancelled, because strop stops."""
        # One that has ended waited for its record, and longer than it may.
        if call.state is None:
            call.error = "strop stopped"
            with contextlib.suppress(StoreUnavailable):
                await self._ledger.commit(call, call.gave_up or "shutdown")
        error = ShuttingDown("strop is stopping and the answer was cut off; ask again shortly")
        await self._answer_error(call, error, send)

    async def sweep(self) -> None:
        """Give up calls that make no progress, and commits that come late. Runs until cancelled.

        After an interval in which there was none, gives back the memory that they took.
        """
        num_seen = num_trimmed = 0
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            num_begun = self._ledger.num_begun
            if self.num_calls:
                self._look_after(self._ledger.calls)
            elif num_trimmed < num_seen == num_begun:
                # Elsewhere: it takes milliseconds.
                await asyncio.to_thread(heap.trim)
                num_trimmed = num_begun
            num_seen = num_begun

    def _look_after(self, calls: list[Call]) -> None:
        now = monotonic()
        for call in calls:
            if call.state is None:
                self._give_up_if_stuck(call, now)
            else:
                self._ledger.let_go_if_late(call, now)

    def _give_up_if_stuck(self, call: Call, now: float) -> None:
        exchange, engine = call.exchange, self._settings.engine
        limit_s = engine.idle_timeout_s if exchange.status else engine.first_byte_timeout_s
        if exchange.is_waiting and now - exchange.last_progress > limit_s:
            call.give_up("upstream_timeout")


def _num_choices(call: Call) -> int | None:
    """Return how many choices the answer has; None where only the engine can tell."""
    ask = call.incoming.ask
    asked = ask.fields.get("n") if call.engine.capabilities.obeys_n else None
    if not isinstance(asked, int | None):
        return None
    num_choices = 1 if asked is None else asked
    prompts = ask.fields.get("prompt") if ask.dialect == "completions" else None
    if isinstance(prompts, list):
        # Numbers are the ids of one.
        num_choices *= sum(not isinstance(one, int) for one in prompts) or 1
    return num_choices
