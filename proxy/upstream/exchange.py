"""One exchange with an engine: a request, and its answer as it comes.

Does not know which connections there are (see `upstream`), what the bytes mean, or how long an
answer may take: whoever watches the time calls `Exchange.abort`.
"""

import asyncio
from collections.abc import Iterator
from time import monotonic
from typing import Protocol

from strop.proxy.errors import UpstreamAborted, UpstreamDied, UpstreamError
from strop.proxy.upstream.engine_connection import EngineConnection
from strop.proxy.upstream.http1 import Answer, AnswerError
from strop.proxy.wire import coding

# Unread body bytes above which the connection is no longer read from.
HIGH_WATER_BYTES = 256 * 1024
# A longer request body is written slice by slice, as fast as the engine takes it.
SLICE_BYTES = 256 * 1024


class Pool(Protocol):
    """Where an exchange gets its connection from."""

    origin: str

    def take(self) -> EngineConnection | None:
        """Return an idle connection that the engine has probably not closed."""
        ...

    def connect(self) -> asyncio.Task[EngineConnection]:
        """Begin to open a new connection; the task fails with `UpstreamError`."""
        ...


class Exchange:
    """One request and its answer, used by one task; only `abort` may be called by others.

    Made by `Upstream.exchange`. A task cancelled in an await of these methods aborts its exchange.

    Attributes:
        last_progress: monotonic time at which bytes last came, or at which the task began to wait
            for the engine if that is later. Says something only while `is_waiting`.
        sent_at: monotonic time at which the request went to the socket; 0.0 before.
        head_at: monotonic time at which the head of the answer came; 0.0 before.
    """

    def __init__(self, pool: Pool, method: bytes, target: bytes, head: bytes, body: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self.last_progress = monotonic()
        self.sent_at = 0.0
        self.head_at = 0.0
        self._pool = pool
        self._target = target
        self._head = head
        self._body = body
        self._answer = Answer(has_body=method != b"HEAD")
        self._unpacker: coding.Unpacker | None = None
        self._unpacked: Iterator[bytes] | None = None
        self._is_sent = False
        self._has_received = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._connecting: asyncio.Task[EngineConnection] | None = None
        self._connection: EngineConnection | None = None

    @property
    def status(self) -> int:
        """The status of the answer; 0 before its head came."""
        return self._answer.status if self._answer.has_head else 0

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the answer, names in lower case, in the order they came; no trailers."""
        return self._answer.headers

    @property
    def is_waiting(self) -> bool:
        """Whether the task is waiting for the engine now, rather than busy elsewhere."""
        return self._waiter is not None or self._connecting is not None

    async def start(self) -> None:
        """Send the request, and return when the head of the answer is there.

        A reused connection that closes before any byte of an answer was most likely closed for
        being idle: then, once, the request is sent again on a new connection.

        Raises:
            UpstreamUnreachable: no connection could be made.
            UpstreamDied: the engine closed before the head's end, or spoke something else.
            UpstreamAborted: `abort` was called.
        """
        if self._error is None:
            reused = self._pool.take()
            await self._send(reused or await self._connect())
            is_dead = isinstance(self._error, UpstreamDied)
            if reused is not None and is_dead and not self._has_received:
                self._error = None
                await self._send(await self._connect())
        if self._error is not None:
            raise self._error

    def unpack(self) -> None:
        """Read the body without the content coding in its head, and `headers` without that.

        Raises:
            UpstreamError: it is another than strop knows.
        """
        answer, name = self._answer, b"content-encoding"
        said = b", ".join(v for k, v in answer.headers if k == name).decode("latin-1")
        answer.headers = [header for header in answer.headers if header[0] != name]
        if said.lower() in ("", "identity"):
            return
        self._unpacker = coding.unpacker(said)
        if self._unpacker is None:
            raise UpstreamError(
                f"expected an answer that can be read from {self._url}, got one in the content"
                f" coding {said!r}, though none was asked for; strop reads"
                f" {', '.join(coding.KNOWN)}: let it, or the proxy before it, compress nothing"
            )

    async def read(self) -> bytes:
        """Return body bytes that came since the last call, waiting for some; b"" at the end.

        All of them, unless they are unpacked: a little may become very much, and comes in pieces,
        others having their turn in between.

        Raises:
            UpstreamDied: the connection closed before the body's end, or its framing or the coding
                that is unpacked is broken.
            UpstreamAborted: `abort` was called.
        """
        answer = self._answer
        if self._unpacked is not None:
            await self._pause()
        while not (data := self._next_unpacked()):
            while not answer.body:
                if self._error is not None:
                    raise self._error
                if answer.is_complete:
                    if self._unpacker is not None and not self._unpacker.is_whole:
                        raise self._died("an end inside its content coding")
                    return b""
                await self._wait()
            data = answer.take()
            if self._connection is not None:
                self._connection.resume()
            if self._unpacker is not None:
                self._unpacked = self._unpacker.feed(data)
            elif data:
                return data
        return data

    async def _pause(self) -> None:
        """Let others have their turn: whoever reads may never wait, as where the client is gone."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.abort()
            raise

    def _next_unpacked(self) -> bytes:
        """Return the next piece of what came and is unpacked, b"" where there is none."""
        if self._unpacked is None:
            return b""
        try:
            data = next(self._unpacked, b"")
            if not data:
                self._unpacked = None
            return data
        except coding.BROKEN as error:
            raise UpstreamDied(
                f"expected an answer from {self._url} as its Content-Encoding says, got: {error};"
                " look at the engine's log, or at the proxy before it"
            ) from error

    async def read_all(self, limit: int) -> bytes:
        """Return the rest of the body.

        Raises:
            UpstreamError: it is longer than `limit` bytes; the exchange is aborted.
            UpstreamDied: as for `read`.
            UpstreamAborted: as for `read`.
        """
        pieces = []
        num_bytes = 0
        while piece := await self.read():
            pieces.append(piece)
            num_bytes += len(piece)
            if num_bytes > limit:
                self.abort()
                raise UpstreamError(
                    f"expected at most {limit} bytes from {self._url}, got more; ask for less"
                )
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def abort(self) -> None:
        """Close the connection and wake the task with `UpstreamAborted`.

        May be called at any moment, and again; does nothing once the whole answer has come, and is
        unpacked.
        """
        if self._answer.is_complete and self._unpacked is None:
            return
        self._answer.take()
        self._unpacked = None
        if self._error is None:
            self._end(UpstreamAborted(f"the exchange with {self._url} was given up"))
        if self._connecting is not None:
            self._connecting.cancel()

    def close(self) -> None:
        """Say that no more will be read: `abort`, unless the whole answer has come.

        The connection of a whole answer went back to the pool with its last byte.
        """
        self.abort()
        if self._error is not None:
            # What was raised holds the frames that it went through, and with them all of the call.
            self._error = UpstreamAborted(f"the exchange with {self._url} is over")

    @property
    def _url(self) -> str:
        return self._pool.origin + self._target.partition(b"?")[0].decode("latin-1")

    async def _connect(self) -> EngineConnection:
        task = self._connecting = self._pool.connect()
        try:
            connection = await task
        except asyncio.CancelledError:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().abandon()  # it came to be in the very tick of the cancellation
            self.abort()
            caller = asyncio.current_task()
            if self._error is None or (caller is not None and caller.cancelling()):
                raise
            raise self._error from None
        except UpstreamError as error:
            self._error = self._error or error
            raise self._error from error.__cause__
        finally:
            self._connecting = None
        if self._error is not None:
            connection.abandon()
            raise self._error
        return connection

    async def _send(self, connection: EngineConnection) -> None:
        """Send the request on `connection`; return when the head is there or the exchange over."""
        self._connection = connection
        self._is_sent = False
        self.sent_at = monotonic()
        if connection.carry(self):
            if len(self._body) <= SLICE_BYTES:
                self._is_sent = True
                connection.transport.write(self._head + self._body)
            else:
                await self._send_slices(connection)
            while self._is_unanswered:
                await self._wait()

    async def _send_slices(self, connection: EngineConnection) -> None:
        """Write the body as fast as it is taken, or until the engine answers before its end."""
        connection.transport.write(self._head)
        body = memoryview(self._body)
        for at in range(0, len(body), SLICE_BYTES):
            while connection.is_write_paused and self._is_unanswered:
                await self._wait()
            if not self._is_unanswered:
                return
            connection.transport.write(body[at : at + SLICE_BYTES])
        self._is_sent = True

    @property
    def _is_unanswered(self) -> bool:
        return not self._answer.has_head and self._error is None

    async def _wait(self) -> None:
        self.last_progress = monotonic()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._waiter = None

    # What follows is called by the connection.

    def wake(self) -> None:
        """Let the waiting task look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def receive(self, data: bytes) -> None:
        """Take what came from the engine."""
        answer = self._answer
        self.last_progress = monotonic()
        self._has_received = True
        try:
            answer.feed(data)
        except AnswerError as error:
            self._die(str(error), error)
            return
        if answer.has_head and not self.head_at:
            self.head_at = self.last_progress
        if answer.is_complete:
            self._end(None)
        elif answer.num_unread_bytes > HIGH_WATER_BYTES and self._connection is not None:
            self._connection.pause()
        self.wake()

    def lost(self, reason: Exception | None) -> None:
        """Take the end of the connection, and why it ended if not by the engine's will."""
        if reason is not None:
            self._die(f"a broken connection ({reason})", reason)
            return
        try:
            self._answer.feed_eof()
        except AnswerError as error:
            self._die(str(error), error)
        else:
            self._end(None)

    def _die(self, came: str, cause: Exception) -> None:
        died = self._died(came)
        died.__cause__ = cause
        self._end(died)

    def _died(self, came: str) -> UpstreamDied:
        expected = "the rest of the answer" if self._answer.has_head else "an answer"
        return UpstreamDied(
            f"expected {expected} from {self._url}, got: {came}; look at the engine's log"
        )

    def _end(self, error: UpstreamError | None) -> None:
        """Let go of the connection, to the pool or closed, and let the task see why."""
        self._error = error
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._answer.is_complete and self._answer.is_reusable and self._is_sent:
                connection.release()
            else:
                connection.abandon()
        self.wake()
