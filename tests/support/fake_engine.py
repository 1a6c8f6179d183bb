"""A scripted HTTP/1.1 server for tests: answers as told, and misbehaves as told.

Written by hand on a bare protocol, since a framework would mend what the tests want broken. Runs in
the test's own loop on 127.0.0.1. Knows no engine's dialect; vLLM's is in `fake_vllm`.

    async def handler(call: Call) -> None:
        await call.json({"ok": True})

    async with FakeEngine(handler) as engine:
        ...  # engine.url, engine.requests
"""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, Self, cast

from ports import held_port

Headers = Sequence[tuple[str, str]]
Framing = Literal["length", "chunked", "close"]

SSE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Request:
    """One request as it came; header names in lower case."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


class DisconnectedError(Exception):
    """The client has closed the connection that a handler writes to."""


class Call:
    """One request and the ways to answer it.

    Attributes:
        request: with an empty body where the engine reads bodies only when asked.
        connection: counts connections from 0, in the order they were opened.
        disconnected: set when the client has closed.
    """

    def __init__(self, connection: "_Connection", request: Request) -> None:
        self.request = request
        self.connection = connection.index
        self.disconnected = connection.disconnected
        self._connection = connection
        self._framing: Framing = "length"

    async def send(self, data: bytes) -> None:
        """Send bytes as they are, and wait until the kernel has them.

        Raises:
            DisconnectedError: the client is gone.
        """
        await self._connection.send(data)

    async def send_bytewise(self, data: bytes) -> None:
        """Send bytes one at a time, each in a write of its own."""
        for at in range(len(data)):
            await self.send(data[at : at + 1])
            await asyncio.sleep(0)  # or the loop would put them together again

    async def head(
        self,
        status: int = 200,
        headers: Headers = (),
        *,
        framing: Framing = "chunked",
        length: int = 0,
        version: str = "1.1",
    ) -> None:
        """Send a status line and headers; `framing` says how the body's end will be told."""
        self._framing = framing
        reason = HTTPStatus(status).phrase
        lines = [f"HTTP/{version} {status} {reason}", *(f"{k}: {v}" for k, v in headers)]
        if framing == "length":
            lines.append(f"content-length: {length}")
        elif framing == "chunked":
            lines.append("transfer-encoding: chunked")
        else:
            lines.append("connection: close")
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        """Send a piece of the body."""
        if self._framing == "chunked":
            data = b"%x\r\n%b\r\n" % (len(data), data)
        await self.send(data)

    async def end(self) -> None:
        """Send the end of the body."""
        if self._framing == "chunked":
            await self.send(b"0\r\n\r\n")
        elif self._framing == "close":
            self.close()

    async def answer(
        self,
        body: bytes = b"",
        status: int = 200,
        headers: Headers = (("content-type", "application/json"),),
        *,
        framing: Framing = "length",
        version: str = "1.1",
    ) -> None:
        """Send a whole answer."""
        await self.head(status, headers, framing=framing, length=len(body), version=version)
        if body:
            await self.chunk(body)
        await self.end()

    async def json(self, payload: object, status: int = 200) -> None:
        """Send a JSON answer, as compact as engines write it."""
        text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
        await self.answer(text.encode(), status)

    async def stream(self, pieces: Iterable[bytes]) -> None:
        """Send server-sent events; each piece goes in a chunk of its own, wherever it is cut."""
        await self.head(200, [("content-type", SSE)])
        for piece in pieces:
            await self.chunk(piece)
        await self.end()

    async def read_body(self) -> bytes:
        """Return the request's body, where the engine reads bodies only when asked."""
        return await self._connection.read_body()

    async def hang(self) -> None:
        """Do nothing until the client has gone, or the engine is closed."""
        await self.disconnected.wait()

    def close(self) -> None:
        """Close the connection in order: the client sees an end (FIN)."""
        self._connection.transport.close()

    def reset(self) -> None:
        """Break the connection: the client sees an error (RST)."""
        self._connection.reset()


Handler = Callable[[Call], Awaitable[None]]


class Unanswered:
    """A handler that never answers completions; others get what `handler` says.

    Attributes:
        left: set when a client that waited has gone.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.left = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        """Answer a request, or don't."""
        if call.request.path.endswith(("/completions", "/api/chat", "/api/generate")):
            await call.hang()
            self.left.set()
        else:
            await self._handler(call)


class FakeEngine:
    """The server.

    Args:
        handler: answers each request; one at a time per connection.
        reads_body: False to call the handler as soon as a request's head is there, and to read
            nothing more until `Call.read_body`.
        ssl_context: to speak TLS.
        host: the address to listen on.
        on_connect: called with each connection's transport before anything is read.

    Attributes:
        requests: in the order in which they came.
        num_opened: connections ever opened.
        failures: what handlers raised, but for `DisconnectedError`; raised again at the end.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        reads_body: bool = True,
        ssl_context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        on_connect: Callable[[asyncio.Transport], object] = lambda _: None,
    ) -> None:
        self.handler = handler
        self.reads_body = reads_body
        self.on_connect = on_connect
        self.requests: list[Request] = []
        self.num_opened = 0
        self.failures: list[Exception] = []
        self.host = host
        self.port = 0
        self.open: set[_Connection] = set()
        self._ssl = ssl_context
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "https" if self._ssl else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def is_listening(self) -> bool:
        """Whether it has not been stopped."""
        return self._server.is_serving()

    @property
    def num_open(self) -> int:
        """Connections open now."""
        return len(self.open)

    @property
    def num_stalled(self) -> int:
        """How many clients have let what was sent to them pile up."""
        return sum(not connection.writable.is_set() for connection in self.open)

    @property
    def is_stalled(self) -> bool:
        """Whether a client has let what was sent to it pile up."""
        return self.num_stalled > 0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; looked at whenever something happens to a connection."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def changed(self) -> None:
        """Let `until` look again."""
        self._changed.set()

    async def start(self) -> None:
        """Listen; on the port it had before, if it was stopped: it keeps that meanwhile."""
        if not self.port:
            held = contextlib.ExitStack()
            self.port = held.enter_context(held_port(self.host))
            weakref.finalize(self, held.close)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), self.host, self.port, ssl=self._ssl, backlog=1024
        )

    async def stop(self) -> None:
        """Listen no longer and break all connections, as a killed engine does."""
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        # Of a connection that is accepted, but not made, asyncio's `close` loses the socket.
        for _ in ("its transport", "its protocol"):
            await asyncio.sleep(0)
        self._server.close()
        connections = list(self.open)
        for connection in connections:
            connection.reset()
            connection.task.cancel()
        await asyncio.gather(*(c.task for c in connections), return_exceptions=True)
        await self.until(lambda: not self.open)
        await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self.failures:
            raise self.failures[0]


class _Connection(asyncio.Protocol):
    def __init__(self, engine: FakeEngine) -> None:
        self.transport: asyncio.Transport
        self.task: asyncio.Task[None]
        self.disconnected = asyncio.Event()
        self.index = engine.num_opened
        self._engine = engine
        self._received = bytearray()
        self._arrived = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self._num_body_bytes = 0
        engine.num_opened += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if not self._engine.is_listening:
            # Accepted in the moment in which all were broken.
            self.transport.abort()
            return
        self._engine.open.add(self)
        self._engine.on_connect(self.transport)
        self.task = asyncio.get_running_loop().create_task(self._serve())
        self._engine.changed()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._arrived.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.disconnected.set()
        self._arrived.set()
        self.writable.set()
        self._engine.open.discard(self)
        self._engine.changed()

    def pause_writing(self) -> None:
        self.writable.clear()
        self._engine.changed()

    def resume_writing(self) -> None:
        self.writable.set()

    async def send(self, data: bytes) -> None:
        if self.disconnected.is_set() or self.transport.is_closing():
            raise DisconnectedError
        self.transport.write(data)
        await self.writable.wait()

    async def read_body(self) -> bytes:
        self.transport.resume_reading()
        return await self._take(self._num_body_bytes)

    def reset(self) -> None:
        pipe = self.transport.get_extra_info("socket")
        if pipe is not None and not self.transport.is_closing():
            # Closed with a linger time of 0, a socket sends RST in place of FIN.
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def _serve(self) -> None:
        engine = self._engine
        try:
            while True:
                head = await self._take_head()
                if not engine.reads_body:
                    self.transport.pause_reading()
                request = await self._request(head)
                engine.requests.append(request)
                engine.changed()
                await engine.handler(Call(self, request))
                self.transport.resume_reading()
        except DisconnectedError:
            self.transport.abort()
        except Exception as error:  # noqa: BLE001  # it is the test's handler: the test must see it
            engine.failures.append(error)
            self.transport.abort()

    async def _request(self, head: bytes) -> Request:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        split = [line.partition(":") for line in lines if line]
        headers = [(name.lower(), value.strip()) for name, _, value in split]
        self._num_body_bytes = int(dict(headers).get("content-length", "0"))
        body = await self._take(self._num_body_bytes) if self._engine.reads_body else b""
        return Request(method, target, headers, body)

    async def _take_head(self) -> bytes:
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            await self._more()
        head = bytes(self._received[:end])
        del self._received[: end + 4]
        return head

    async def _take(self, num_bytes: int) -> bytes:
        while len(self._received) < num_bytes:
            await self._more()
        data = bytes(self._received[:num_bytes])
        del self._received[:num_bytes]
        return data

    async def _more(self) -> None:
        if self.disconnected.is_set():
            raise DisconnectedError
        self._arrived.clear()
        await self._arrived.wait()
