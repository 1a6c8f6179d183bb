"""Requests as a client sees them: one answer, and a crowd that keeps a number of streams running.

Stamps what comes with `time.monotonic_ns()`; judges nothing.
"""

import asyncio
import itertools
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

import httptools
import orjson

from bench.swap.figures import Reply

_WORDS = "the leather strap keeps a good blade sharp between its uses and the hand does the rest"


class Subject(Protocol):
    """A server under test, as its clients know it."""

    @property
    def current(self) -> str:
        """The version that a request gets, or names, now."""

    @property
    def port(self) -> int:
        """Where it listens."""

    def request(self, text: str, num_tokens: int) -> bytes:
        """Return a request for a stream that is answered by the current version."""


class _Reader:
    """Parses one response into a reply (httptools calls the `on_` methods)."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.is_complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._is_stream = False
        self._now_ns = 0

    def feed(self, data: bytes) -> None:
        self._now_ns = time.monotonic_ns()
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                self._is_stream = value.startswith(b"text/event-stream")
            case b"x-strop-adapter":
                self.reply.version = value.decode()
            case b"x-strop-completion-id":
                self.reply.completion = value.decode()

    def on_headers_complete(self) -> None:
        self.reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._is_stream:
            self.reply.body += body
            return
        *events, self._rest = (self._rest + body).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                self._take(event[6:])

    def on_message_complete(self) -> None:
        self.is_complete = True

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.reply.is_whole = True
            return
        read = orjson.loads(data)
        if "error" in read:
            self.reply.trouble = str(read["error"])
        for choice in read.get("choices", ()):
            if choice["delta"].get("content"):
                self.reply.arrivals_ns.append(self._now_ns)


async def ask(port: int, request: bytes, reply: Reply | None = None) -> Reply:
    """Send a request over a connection of its own and return the reply, filled in as it comes."""
    reply = reply or Reply()
    writer = None
    reader = _Reader(reply)
    try:
        incoming, writer = await asyncio.open_connection("127.0.0.1", port)
        reply.sent_ns = time.monotonic_ns()
        writer.write(request)
        while not reader.is_complete and (data := await incoming.read(2**16)):
            reader.feed(data)
    except (OSError, httptools.HttpParserError) as error:
        reply.trouble = reply.trouble or repr(error)
    finally:
        if writer is not None:
            writer.close()
        reply.is_over = True
    reply.version = reply.version or reply.wanted
    return reply


def post(port: int, path: str, fields: object, *headers: str, method: str = "POST") -> bytes:
    """Return a request with a JSON body."""
    body = orjson.dumps(fields)
    head = [
        f"{method} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def ask_once(subject: Subject, num_tokens: int) -> Reply:
    """Ask for one stream of the current version."""
    request = subject.request(_text(next(_numbers)), num_tokens)
    return await ask(subject.port, request, Reply(wanted=subject.current))


class Crowd:
    """Clients, each of which asks for the next stream when it has the one before.

    Args:
        subject: whom they ask.
        size: how many.
        num_tokens: of each stream.

    Attributes:
        replies: all of them, in the order in which they were asked for.
    """

    def __init__(self, subject: Subject, size: int, num_tokens: int) -> None:
        self.replies: list[Reply] = []
        self._subject = subject
        self._size = size
        self._num_tokens = num_tokens
        self._is_over = False
        self._clients: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Crowd":
        self._clients = [asyncio.create_task(self._run(at)) for at in range(self._size)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the streams that run end, ask for no more, and return when they did."""
        self._is_over = True
        await asyncio.gather(*self._clients)

    def running(self) -> Iterable[Reply]:
        """Return the newest reply of each client, if it is not over."""
        return [reply for reply in self.replies[-2 * self._size :] if not reply.is_over]

    async def settle(self, within_s: float = 60.0) -> None:
        """Return when every stream runs, and is the current version's."""
        async with asyncio.timeout(within_s):
            # Replies are filled in by parsers, which know nobody who waits.
            while not self._is_settled():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def _is_settled(self) -> bool:
        current = self._subject.current
        running = [reply for reply in self.running() if reply.arrivals_ns]
        are_of_it = all(current in (reply.version, reply.wanted) for reply in running)
        return are_of_it and len(running) == self._size

    async def _run(self, at: int) -> None:
        # At different places of their streams, as strangers are.
        await asyncio.sleep(0.05 * at)
        while not self._is_over:
            reply = Reply(wanted=self._subject.current)
            self.replies.append(reply)
            request = self._subject.request(_text(next(_numbers)), self._num_tokens)
            await ask(self._subject.port, request, reply)
            if reply.has_failed:
                # Not a storm of requests to a server that is gone.
                await asyncio.sleep(0.2)


_numbers = itertools.count()


def _text(number: int) -> str:
    return f"{number}: {_WORDS}"
