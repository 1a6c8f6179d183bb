"""A connection to an engine; carries one exchange at a time, and none while it is idle.

Does not know what a request or an answer is: it moves bytes, and holds them back on demand.
"""

import asyncio
from typing import Protocol, cast


class Carried(Protocol):
    """What a connection tells the exchange that it carries."""

    def receive(self, data: bytes) -> None:
        """Take what came from the engine."""
        ...

    def lost(self, reason: Exception | None) -> None:
        """Take the end of the connection, and why it ended if not by the engine's will."""
        ...

    def wake(self) -> None:
        """Look again whether the engine takes more."""
        ...

    def abort(self) -> None:
        """Give up."""
        ...


class Pool(Protocol):
    """Where a connection belongs."""

    def release(self, connection: "EngineConnection") -> None:
        """Take back a connection whose answer ended exactly where it should."""
        ...

    def lost(self, connection: "EngineConnection") -> None:
        """Forget a connection that is closed now."""
        ...


class EngineConnection(asyncio.Protocol):
    """One connection; carries one exchange at a time, and none while it is idle."""

    def __init__(self, pool: Pool) -> None:
        self.transport: asyncio.Transport
        self.idle_since = 0.0
        self.is_write_paused = False
        self.is_lost = False
        self._pool = pool
        self._exchange: Carried | None = None
        self._is_paused = False

    def carry(self, exchange: Carried) -> bool:
        """Give what comes to `exchange`; if the connection has closed, tell it so at once."""
        if self.transport.is_closing():
            exchange.lost(None)
            return False
        self._exchange = exchange
        return True

    def release(self) -> None:
        """Be idle from now on."""
        self._exchange = None
        self.resume()
        self._pool.release(self)

    def abandon(self) -> None:
        """Close at once, whatever is under way."""
        self._exchange = None
        self.transport.abort()

    def cancel(self) -> None:
        """Close at once, and abort the exchange under way."""
        if self._exchange is not None:
            self._exchange.abort()
        self.transport.abort()

    def pause(self) -> None:
        """Receive nothing until `resume`."""
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Receive again."""
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's inherits from nothing

    def data_received(self, data: bytes) -> None:
        """Give the bytes to the exchange; unasked-for ones could pass for the next answer."""
        if self._exchange is None:
            self.transport.abort()
        else:
            self._exchange.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the pool."""
        self.is_lost = True
        self._pool.lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost(exc)

    def pause_writing(self) -> None:
        """Note that the engine takes no more for now."""
        self.is_write_paused = True

    def resume_writing(self) -> None:
        """Let a body that is being sent go on."""
        self.is_write_paused = False
        if self._exchange is not None:
            self._exchange.wake()
