"""One keep-alive client connection, with at most one request in flight.

Stamps what it sees with `time.monotonic_ns()` and hands it to its owner; judges nothing.
"""

import asyncio
import time
from typing import Protocol, cast

import httptools


class Owner(Protocol):
    """Who sends requests over a connection."""

    def answered(self, connection: "Connection", status: int, body: bytes) -> None:
        """Take a whole answer; the connection is free again."""

    def lost(self, connection: "Connection") -> None:
        """Take note that the connection is gone."""


class Connection(asyncio.Protocol):
    """A connection of one owner.

    Attributes:
        is_busy: whether a request is in flight.
        is_open: whether another request can be sent.
        turn: 0 or 1, the next request's place in its conversation.
        conversation: that conversation's number.
        request_ns: when the request in flight, or the last one, counts from.
        first_ns: when the first byte of its body came.
        now_ns: when the bytes at hand came.
        arrivals_ns: when each event of its stream came, where these are kept.
        completion: strop's id of the answer, where it is looked for.
    """

    def __init__(self, owner: Owner, *, keeps_arrivals: bool = False) -> None:
        self.is_busy = False
        self.is_open = False
        self.turn = 0
        self.conversation = 0
        self.request_ns = self.first_ns = self.now_ns = 0
        self.arrivals_ns: list[int] | None = [] if keeps_arrivals else None
        self.completion = ""
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []

    def send(self, request: bytes, since_ns: int = 0) -> None:
        """Send a request; its latency counts from `since_ns`, or from now."""
        assert self._transport is not None
        self.is_busy = True
        self.first_ns = 0
        if self.arrivals_ns is not None:
            self.arrivals_ns = []
        self.request_ns = since_ns or time.monotonic_ns()
        self._transport.write(request)

    def close(self) -> None:
        """Close at once."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the owner."""
        self.is_open = False
        self._transport = None
        self._owner.lost(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a peer that doesn't speak HTTP is cut off."""
        self.now_ns = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body (httptools)."""
        if not self.first_ns:
            self.first_ns = self.now_ns
        self._parts.append(body)
        if self.arrivals_ns is not None:
            self.arrivals_ns.extend([self.now_ns] * body.count(b"\n\n"))

    def on_message_complete(self) -> None:
        """Hand the answer over (httptools)."""
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.is_busy = False
        if not self._parser.should_keep_alive():
            self.close()
        self._owner.answered(self, self._parser.get_status_code(), body)


class TracingConnection(Connection):
    """A connection that also keeps strop's completion ids; costs a call per header."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the id (httptools)."""
        if name.lower() == b"x-strop-completion-id":
            self.completion = value.decode("latin-1")
