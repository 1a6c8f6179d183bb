"""Bytes to and from one engine: a pool of keep-alive HTTP/1.1 connections to one origin.

Does not know what the bytes mean, and sets no deadline but for connecting. It is made for the hot
path, where httpx's own pool costs several times the rest of the proxy.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence

import httpx

from strop.proxy.errors import ConfigError, UpstreamAborted, UpstreamUnreachable
from strop.proxy.upstream.engine_connection import EngineConnection
from strop.proxy.upstream.exchange import Exchange
from strop.proxy.upstream.http1 import request_head

ADDRESS = "engine.url (or engine.replicas)"
"""What names a server in the settings, for who has to correct it."""


class Upstream:
    """The connections to one origin, for use in one event loop.

    There is no limit on their number: a stream holds one for as long as it lasts.

    Args:
        base_url: http or https, a host, and at most a path.
        connect_timeout_s: for name look-up, TCP and TLS together.
        idle_expiry_s: a connection idle for longer isn't used again. Less than the engine's own
            keep-alive time (uvicorn and vLLM: 5 s).
        max_idle: how many idle connections are kept.
        ssl_context: for https; without one, the system's trust.
        advice: what to do where nothing listens.

    Attributes:
        origin: scheme, host and port.
        host_header: what the Host header says.
        base_path: the path of the base URL, b"" for none; part of each target given to `exchange`.
        url: origin and base path, without a slash at the end.

    Raises:
        ConfigError: `base_url` is no http(s) URL.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float = 10.0,
        idle_expiry_s: float = 4.0,
        max_idle: int = 64,
        ssl_context: ssl.SSLContext | None = None,
        advice: str = f"start it, or set {ADDRESS}",
    ) -> None:
        url = _parse(base_url)
        self.host_header = url.netloc
        self.base_path = url.raw_path.rstrip(b"/")
        self.origin = f"{url.scheme}://{url.netloc.decode()}"
        self.url = self.origin + self.base_path.decode()
        self._host = url.raw_host.decode()
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._ssl: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._ssl = ssl_context or ssl.create_default_context()
        self._connect_timeout_s = connect_timeout_s
        self._idle_expiry_s = idle_expiry_s
        self._max_idle = max_idle
        self._advice = advice
        self._connections: set[EngineConnection] = set()
        self._idle: deque[EngineConnection] = deque()
        self._connecting: set[asyncio.Task[EngineConnection]] = set()
        self._is_closed = False
        self._emptied: asyncio.Future[None] | None = None

    @property
    def num_connections(self) -> int:
        """Open connections, idle ones among them."""
        return len(self._connections)

    @property
    def num_idle(self) -> int:
        """Open connections that wait for an exchange."""
        return len(self._idle)

    @property
    def num_busy(self) -> int:
        """Connections that carry an exchange, or are being opened for one."""
        return len(self._connections) + len(self._connecting) - len(self._idle)

    def exchange(
        self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> Exchange:
        """Return a request ready to start; nothing is sent yet.

        `headers` go out as given, and before them Host, after them Content-Length where there is a
        body or could be one: they must contain neither, nor Transfer-Encoding.

        Raises:
            ValueError: the request line or a header would not stay on its line.
        """
        head = request_head(method, target, self.host_header, headers, len(body))
        return Exchange(self, method, target, head, body)

    async def aclose(self) -> None:
        """Close all connections; exchanges under way end with `UpstreamAborted`."""
        self._is_closed = True
        for task in self._connecting:
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)
        for connection in list(self._connections):
            connection.cancel()
        if self._connections:
            self._emptied = self._emptied or asyncio.get_running_loop().create_future()
            await self._emptied

    # What follows is called by exchanges and connections.

    def take(self) -> EngineConnection | None:
        """Return the connection that went idle last, unless that is too long ago."""
        if not self._idle:
            return None
        connection = self._idle.pop()
        if asyncio.get_running_loop().time() - connection.idle_since <= self._idle_expiry_s:
            return connection
        # Those that went idle before it are older still.
        connection.abandon()
        while self._idle:
            self._idle.pop().abandon()
        return None

    def connect(self) -> asyncio.Task[EngineConnection]:
        """Begin to open a connection; the task fails with `UpstreamError`."""
        task = asyncio.get_running_loop().create_task(self._open())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task

    def release(self, connection: EngineConnection) -> None:
        """Keep a connection for the next exchange; of too many, close the oldest."""
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)
        if len(self._idle) > self._max_idle:
            self._idle.popleft().abandon()

    def lost(self, connection: EngineConnection) -> None:
        """Forget a connection that is closed now."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._emptied is not None and not self._connections and not self._emptied.done():
            self._emptied.set_result(None)

    async def _open(self) -> EngineConnection:
        if self._is_closed:
            raise UpstreamAborted(f"the connections to {self.url} are closed: strop is stopping")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: EngineConnection(self), self._host, self._port, ssl=self._ssl
                )
        except TimeoutError as error:
            raise UpstreamUnreachable(
                f"expected an engine at {self.url}, got no connection within"
                f" {self._connect_timeout_s:g} s; check that it runs, or set {ADDRESS}"
            ) from error
        except (OSError, UnicodeError) as error:
            is_plain = isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER"
            advice = "it may speak no TLS: try http://" if is_plain else self._advice
            raise UpstreamUnreachable(
                f"expected an engine at {self.url}, got: {error}; {advice}"
            ) from error
        # Counted only now: uvloop never reports the loss of one whose making was cancelled.
        if not connection.is_lost:
            self._connections.add(connection)
        return connection


def _parse(base_url: str) -> httpx.URL:
    """Return the parts of a base URL; the settings have refused what would be left out of them."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(
            f"expected an engine URL like http://127.0.0.1:8000, got: {error}"
        ) from error
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise ConfigError(
            "expected an engine URL that begins with http:// or https:// and a host, got"
            f" {base_url!r}; correct engine.url"
        )
    return url
