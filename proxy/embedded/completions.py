"""The two routes that generate: reads a request, and answers it in JSON or as a stream.

Watches for the client's leaving in both modes, from the moment that the jobs are handed over.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

import orjson
from starlette.types import Receive, Scope, Send

from strop.proxy.embedded.answer import Answer
from strop.proxy.embedded.engine import Engine, Exchange
from strop.proxy.embedded.errors import BadRequest, EngineError, Overloaded
from strop.proxy.embedded.jobs import Event, Job, Sampled, Sampling, Started
from strop.proxy.embedded.protocol import Request
from strop.proxy.embedded.render import Envelope, Part, Renderer
from strop.proxy.embedded.text_parts import Markup
from strop.proxy.wire import sse

_MAX_BODY_BYTES = 64 << 20
_QUIET_S = 15.0  # after which a stream that waits for memory says that it lives
_COMMENT = b": waiting\n\n"
_FINGERPRINT = f"strop-{version('strop')}-mlx-lm-{version('mlx-lm')}"


class Completions:
    """An ASGI application for one of the two dialects.

    Args:
        engine: gives the engine once the application has started.
        parse: makes a request of a JSON body, and of what is sampled where that says nothing.
    """

    def __init__(
        self, engine: Callable[[], Engine], parse: Callable[[object, Sampling], Request]
    ) -> None:
        self._engine = engine
        self._parse = parse

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        engine = self._engine()
        try:
            usual = engine.model().sampling
            request = self._parse(await read_json(receive), usual)
            request = replace(request, model=request.model or engine.options.name)
            engine.check_name(request.model)
            jobs = await engine.encode(request)
            exchange = engine.open(jobs)
        except EngineError as error:
            await send_error(send, error)
            return
        watch = asyncio.create_task(_watch(receive, exchange))
        try:
            await _Reply(engine, request, jobs, exchange).run(send)
        finally:
            watch.cancel()
            engine.close(exchange)


class _Reply:
    """One request being answered."""

    def __init__(
        self, engine: Engine, request: Request, jobs: list[Job], exchange: Exchange
    ) -> None:
        self._request = request
        self._exchange = exchange
        self._parts = [Part(job, _answers(engine, request, job)) for job in jobs]
        self._is_started = False
        prefix = "chatcmpl" if request.dialect == "chat" else "cmpl"
        envelope = Envelope(
            f"{prefix}-{uuid.uuid4().hex}", int(time.time()), request.model, _FINGERPRINT
        )
        self._renderer = Renderer(request, envelope, engine.vocabulary)

    async def run(self, send: Send) -> None:
        """Send the answer, or the error that it ended with."""
        try:
            while (events := await self._events(send)) is not None:
                chunks = b"".join([self._take(place, event) for place, event in events])
                is_complete = all(a.is_finished for part in self._parts for a in part.answers)
                self._exchange.is_complete = is_complete
                if self._request.is_stream:
                    chunks += self._renderer.closing(self._parts) if is_complete else b""
                    await self._send_chunks(send, chunks, is_last=is_complete)
                elif is_complete:
                    await _send(send, 200, await self._body())
                if is_complete:
                    return
        except asyncio.CancelledError:
            # The grace time is over. Who asked is told, and not left to guess.
            await self._fail(send, Overloaded("The engine is stopping; ask again when it is back."))
        except EngineError as error:
            await self._fail(send, error)

    async def _events(self, send: Send) -> list[tuple[int, Event]] | None:
        """Return the next events; None if the client left."""
        while True:
            try:
                async with asyncio.timeout(_QUIET_S):
                    return await self._exchange.events()
            except TimeoutError:
                if self._is_started:
                    await self._send_chunks(send, _COMMENT, is_last=False)

    async def _body(self) -> bytes:
        if all(part.job.prompt_logprobs is None for part in self._parts):
            return self._renderer.body(self._parts)
        # Thousands of tokens, each with alternatives: others' streams go on meanwhile.
        return await asyncio.to_thread(self._renderer.body, self._parts)

    async def _fail(self, send: Send, error: EngineError) -> None:
        if self._is_started:
            await self._send_chunks(send, sse.event(error.body()), is_last=True)
        else:
            await send_error(send, error)

    def _take(self, place: int, event: Event) -> bytes:
        """Note an event; return what a stream sends for it."""
        part = self._parts[place]
        if isinstance(event, Started):
            part.started = event
            return b""
        if not isinstance(event, Sampled) or part.answers[event.choice].is_finished:
            return b""
        first = place * self._request.n
        opening = b""
        if not any(answer.pieces for answer in part.answers):
            opening = b"".join(
                self._renderer.opening(first + choice, part) for choice in range(self._request.n)
            )
        answer = part.answers[event.choice]
        piece = answer.add(event)
        if answer.is_stopped_early and event.finish is None:
            self._exchange.stop(place, event.choice)
        if not self._request.is_stream:
            return b""
        return opening + self._renderer.chunk(first + event.choice, part, answer, piece)

    async def _send_chunks(self, send: Send, chunks: bytes, *, is_last: bool) -> None:
        if not chunks:
            return
        if not self._is_started:
            self._is_started = True
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-cache"),
                    ],
                }
            )
        await send({"type": "http.response.body", "body": chunks, "more_body": not is_last})


def _answers(engine: Engine, request: Request, job: Job) -> list[Answer]:
    markup = Markup()
    if request.dialect == "chat":
        markup = Markup.of(
            engine.model().tokenizer, job.prompt, has_tools=request.tools is not None
        )
    return [Answer(request, job.prompt, engine.vocabulary, markup) for _ in range(job.n)]


async def _watch(receive: Receive, exchange: Exchange) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.leave()


async def read_json(receive: Receive) -> object:
    """Return the value of a request's JSON body.

    Raises:
        BadRequest: it is no JSON, too long, or the client left before its end.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the client left before its request was whole")
        body += message.get("body", b"")
        if len(body) > _MAX_BODY_BYTES:
            raise BadRequest(f"the body must be at most {_MAX_BODY_BYTES} bytes long")
        if not message.get("more_body"):
            break
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"expected JSON as the body: {error}") from error


async def send_error(send: Send, error: EngineError) -> None:
    """Answer with an error object."""
    # A client that is gone can't be told.
    with contextlib.suppress(OSError):
        await _send(send, error.status, error.body())


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
