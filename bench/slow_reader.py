"""Clients that take their streams in sips, for as long as others are measured.

Checks no body: each leaves before its stream's end.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, cast

from bench.answers import Ask
from bench.workloads import Workload

# More than the buffers of all sockets on its way, and than is sipped in a measurement.
WORKLOAD: Final = Workload(Ask(max_tokens=20_000, stream=True, top_logprobs=5))

_SIP_BYTES: Final = 16 * 1024
_PAUSE_S: Final = 0.05


class _SlowReader(asyncio.Protocol):
    """Reads a little, then nothing for a while."""

    def __init__(self, request: bytes) -> None:
        self.is_begun = asyncio.Event()
        self._request = request
        self._sipped = 0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Pause after each sip."""
        self.is_begun.set()
        self._sipped += len(data)
        if self._sipped >= _SIP_BYTES and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_later(_PAUSE_S, self._go_on)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Let the pause end, and whoever waits."""
        self._transport = None
        self.is_begun.set()

    def leave(self) -> None:
        """Break the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _go_on(self) -> None:
        self._sipped = 0
        if self._transport is not None:
            self._transport.resume_reading()


@contextlib.contextmanager
def reading(port: int, count: int) -> Iterator[None]:
    """Let `count` slow readers read from the target on this port, until the block ends.

    It begins once each has the first bytes: the engine makes its answer at the first request. They
    have a thread of their own, for they outlast the load's loops.
    """
    if not count:
        yield
        return
    is_over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        are_begun = threading.Event()
        readers = thread.submit(lambda: asyncio.run(_read(port, count, are_begun, is_over)))
        try:
            while not are_begun.wait(0.1) and not readers.done():
                continue
            yield
        finally:
            is_over.set()
            readers.result()


async def _read(
    port: int, count: int, are_begun: threading.Event, is_over: threading.Event
) -> None:
    readers = [await _begin(port, number) for number in range(count)]
    for reader in readers:
        await reader.is_begun.wait()
    are_begun.set()
    await asyncio.to_thread(is_over.wait)
    for reader in readers:
        reader.leave()


async def _begin(port: int, number: int) -> _SlowReader:
    pipe = socket.socket()
    # Else the kernel would take in megabytes for it.
    pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SIP_BYTES)
    pipe.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(pipe, ("127.0.0.1", port))
    request = WORKLOAD.request(port, number, 0)
    _, reader = await loop.create_connection(lambda: _SlowReader(request), sock=pipe)
    return reader
