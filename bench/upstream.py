"""A fake vLLM: answers at once, or paced, with bytes fixed in advance.

Generates nothing, and looks at nothing of a request but what `answers.Ask` holds and its
X-Request-Id. `seed` is taken as the pause between two events of a stream in milliseconds. Run as
`python -m bench.upstream PORT`.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import cast

import httptools
import orjson
import uvloop

from bench import answers
from bench.answers import ID_HOLE, MODEL, Ask

# When each event of each paced stream was handed to the socket, since the last question for it.
SENT_PATH = b"/bench/sent"

_JSON_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: %d\r\ncontent-type: application/json\r\n\r\n"
)
_SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
# vLLM names its answer by the request's, and by one of its own where there is none.
_NAME = b"\r\nx-request-id: "
_MAX_HEAD_BYTES = 2048
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nserver: uvicorn\r\ncontent-length: 0\r\n\r\n"
_MODELS = orjson.dumps(
    {
        "object": "list",
        "data": [
            {
                "id": MODEL,
                "object": "model",
                "created": 1_795_000_000,
                "owned_by": "vllm",
                "root": MODEL,
                "parent": None,
                "max_model_len": 262_144,
                "permission": [],
            }
        ],
    }
)


class Journal:
    """The number of the next answer, and the send times of paced streams.

    Attributes:
        sent_ns: `time.monotonic_ns()` of each event, by the answer's id.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self.sent_ns: dict[str, list[int]] = {}

    def next_id(self) -> bytes:
        """Return the id of the next answer."""
        return answers.answer_id(next(self._numbers))

    def take(self) -> bytes:
        """Return the send times as JSON, and forget them."""
        taken = orjson.dumps(self.sent_ns)
        self.sent_ns.clear()
        return taken


class Connection(asyncio.Protocol):
    """One client's connection: parses requests, writes answers, one after another."""

    def __init__(self, loop: asyncio.AbstractEventLoop, journal: Journal) -> None:
        self._loop = loop
        self._journal = journal
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._name = b""
        self._body: list[bytes] = []
        self._resume: Callable[[], None] | None = None
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Let a running stream end."""
        self._transport = None
        self._resume = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a peer that doesn't speak HTTP is cut off."""
        at = data.find(_NAME, 0, _MAX_HEAD_BYTES)
        if at >= 0:
            start = at + len(_NAME)
            self._name = data[start : start + len(ID_HOLE)]
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        """Hold the running stream."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Go on with the stream held."""
        self._is_paused = False
        if self._resume is not None:
            resume, self._resume = self._resume, None
            resume()

    def on_url(self, url: bytes) -> None:
        """Take the path (httptools)."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Take a part of the body (httptools)."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer (httptools)."""
        transport, url, body = self._transport, self._url, b"".join(self._body)
        self._url = b""
        self._body.clear()
        if transport is None:
            return
        if url.startswith(b"/v1/chat/completions"):
            self._answer(transport, body)
        elif url.startswith(b"/v1/models"):
            transport.write(_JSON_HEAD % len(_MODELS) + _MODELS)
        elif url.startswith(b"/health"):
            transport.write(_JSON_HEAD % 0)
        elif url.startswith(SENT_PATH):
            taken = self._journal.take()
            transport.write(_JSON_HEAD % len(taken) + taken)
        else:
            transport.write(_NOT_FOUND)

    def _answer(self, transport: asyncio.Transport, body: bytes) -> None:
        fields = orjson.loads(body)
        ask = Ask(
            max_tokens=fields.get("max_tokens") or 16,
            stream=fields.get("stream") is True,
            top_logprobs=(fields.get("top_logprobs") or 0) if fields.get("logprobs") else None,
            token_ids=fields.get("return_token_ids") is True,
        )
        answer, self._name = self._name or self._journal.next_id(), b""
        if not ask.stream:
            head, tail = _json_parts(ask)
            transport.write(b"".join((head, answer, tail)))
        elif pause_ms := fields.get("seed"):
            sent_ns = self._journal.sent_ns.setdefault(answer.decode(), [])
            self._pace(_chunks(ask), answer, pause_ms / 1000, sent_ns)
        else:
            self._stream(_chunks(ask), answer)

    def _stream(self, chunks: tuple[bytes, ...], answer: bytes) -> None:
        # One write per tick of the loop: uvloop joins writes of the same tick into one segment.
        position = 0

        def step() -> None:
            nonlocal position
            transport = self._transport
            if transport is None:
                return
            if self._is_paused:
                self._resume = step
                return
            transport.write(chunks[position].replace(ID_HOLE, answer))
            position += 1
            if position < len(chunks):
                self._loop.call_soon(step)

        step()

    def _pace(
        self, chunks: tuple[bytes, ...], answer: bytes, pause_s: float, sent_ns: list[int]
    ) -> None:
        position = 0
        start = self._loop.time()

        def step() -> None:
            nonlocal position
            transport = self._transport
            if transport is None:
                return
            sent_ns.append(time.monotonic_ns())
            transport.write(chunks[position].replace(ID_HOLE, answer))
            position += 1
            if position < len(chunks):
                self._loop.call_at(start + position * pause_s, step)

        step()


@lru_cache
def _json_parts(ask: Ask) -> tuple[bytes, bytes]:
    body = answers.document(ask)
    head, tail = body.split(ID_HOLE)
    return _JSON_HEAD % len(body) + head, tail


@lru_cache
def _chunks(ask: Ask) -> tuple[bytes, ...]:
    events = answers.events(ask)
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    # As uvicorn sends it: the head with the first event, the last chunk with `[DONE]`.
    return (_SSE_HEAD + chunks[0], *chunks[1:-1], chunks[-1] + b"0\r\n\r\n")


async def serve(port: int) -> None:
    """Serve on 127.0.0.1:`port` until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    journal = Journal()
    server = await loop.create_server(
        lambda: Connection(loop, journal), "127.0.0.1", port, backlog=1024
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with server:
        await stop.wait()


def main() -> None:
    """Serve on the port given as the only argument."""
    uvloop.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
