"""The load generator: a closed and an open loop over keep-alive connections.

Compares each body with the one expected and counts what differs; knows nothing of targets. A run
begins and ends with no request in flight, so that requests answered can be compared with rows
written exactly.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from bench.connection import Connection, TracingConnection
from bench.workloads import Expected, Workload

_DRAIN_S = 30.0
_MAX_FAILURES = 200
_MAX_OPEN_CONNECTIONS = 256
# New in each run: a recording proxy would otherwise find the conversations of an earlier one.
_conversations = count(1)


@dataclass(slots=True)
class Seen:
    """What one run saw.

    Attributes:
        seconds: from the first request to the last answer.
        answered: requests answered with 200.
        failed: requests answered otherwise, or not at all.
        altered: answers whose body is not the engine's own.
        difference: how the first failed or altered one differs.
        latency_ns: per answer, to its last byte.
        ttft_ns: per answer, to the first byte of its body.
        arrivals_ns: when each event of a paced stream came, by the answer's id.
        completions: strop's ids of the answers, where these were asked for.
    """

    seconds: float = 0.0
    answered: int = 0
    failed: int = 0
    altered: int = 0
    difference: str = ""
    latency_ns: "array[int]" = field(default_factory=lambda: array("q"))
    ttft_ns: "array[int]" = field(default_factory=lambda: array("q"))
    arrivals_ns: dict[str, list[int]] = field(default_factory=dict)
    completions: list[str] = field(default_factory=list)


class Run(ABC):
    """What both loops share: connections, the count in flight, and the judgement of answers.

    Args:
        port: the target's, on 127.0.0.1.
        workload: what to send.
        is_traced: whether strop's completion ids are kept.
    """

    def __init__(self, port: int, workload: Workload, *, is_traced: bool = False) -> None:
        self._port = port
        self._workload = workload
        self._expected = Expected(workload.ask)
        self._kind = TracingConnection if is_traced else Connection
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._num_in_flight = 0
        self._started_ns = self._ended_ns = 0
        self._over = asyncio.Event()
        self._is_drained = asyncio.Event()
        self._opening: set[asyncio.Task[None]] = set()
        self.seen = Seen()

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        """Judge an answer, and let the connection go on."""
        seen = self.seen
        if status == 200:
            seen.answered += 1
            seen.latency_ns.append(connection.now_ns - connection.request_ns)
            seen.ttft_ns.append(connection.first_ns - connection.request_ns)
            if not self._expected.is_met(body):
                seen.altered += 1
                seen.difference = seen.difference or self._expected.difference(body)
            if connection.arrivals_ns is not None:
                answer = self._expected.id_of(body).decode("latin-1")
                seen.arrivals_ns[answer] = connection.arrivals_ns
            if connection.completion:
                seen.completions.append(connection.completion)
                connection.completion = ""
        else:
            seen.failed += 1
            seen.difference = seen.difference or f"status {status}: {body[:300]!r}"
        self._count_out()
        if connection.is_open and not self._over.is_set():
            self._free(connection)

    def lost(self, connection: Connection) -> None:
        """Count what was in flight as failed, and let another connection take its place."""
        self._connections.discard(connection)
        if connection.is_busy:
            connection.is_busy = False
            self.seen.failed += 1
            self.seen.difference = self.seen.difference or "the connection was closed"
            self._count_out()
        if not self._over.is_set():
            self._gone(connection)

    def _open_another(self) -> None:
        task = self._loop.create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            self._over.set()
            self.seen.difference = self.seen.difference or f"can't connect again: {error}"
            return
        if self._over.is_set():
            connection.close()
        else:
            self._free(connection)

    async def _connect(self) -> Connection:
        keeps_arrivals = bool(self._workload.pause_ms)
        _, connection = await self._loop.create_connection(
            lambda: self._kind(self, keeps_arrivals=keeps_arrivals), "127.0.0.1", self._port
        )
        self._connections.add(connection)
        return connection

    def _send(self, connection: Connection, since_ns: int = 0) -> None:
        if connection.turn == 0:
            connection.conversation = next(_conversations)
        request = self._workload.request(self._port, connection.conversation, connection.turn)
        connection.turn ^= 1
        self._num_in_flight += 1
        connection.send(request, since_ns)

    def _count_out(self) -> None:
        self._num_in_flight -= 1
        self._ended_ns = time.monotonic_ns()
        if self.seen.failed >= _MAX_FAILURES:
            self._over.set()
        if not self._num_in_flight and self._over.is_set():
            self._is_drained.set()

    @abstractmethod
    def _free(self, connection: Connection) -> None:
        """Decide what a free connection does next."""

    @abstractmethod
    def _gone(self, connection: Connection) -> None:
        """Decide what to do about a connection that is no more."""

    async def _drain(self) -> Seen:
        self._over.set()
        if self._num_in_flight:
            try:
                async with asyncio.timeout(_DRAIN_S):
                    await self._is_drained.wait()
            except TimeoutError:
                self.seen.failed += self._num_in_flight
                self.seen.difference = self.seen.difference or f"no answer in {_DRAIN_S:.0f} s"
                self._ended_ns = time.monotonic_ns()
        for connection in self._connections:
            connection.is_busy = False
            connection.close()
        self.seen.seconds = (self._ended_ns - self._started_ns) / 1e9
        return self.seen


class ClosedLoop(Run):
    """Each of a fixed number of connections sends its next request when it has its answer."""

    async def run(self, connections: int, duration_s: float, ramp_s: float = 0.0) -> Seen:
        """Send for that long, wait for the last answers, and return what was seen.

        The first requests are spread over `ramp_s`. Ends before its time where the target is gone
        or fails again and again.
        """
        fresh = [await self._connect() for _ in range(connections)]
        self._started_ns = time.monotonic_ns()
        start = self._loop.time()
        for number, connection in enumerate(fresh):
            if ramp_s:
                await asyncio.sleep(start + ramp_s * number / connections - self._loop.time())
            if connection.is_open:
                self._send(connection)
                continue
            # Another has taken its place.
            self.seen.failed += 1
            self.seen.difference = self.seen.difference or "closed before its first request"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(duration_s):
                await self._over.wait()
        return await self._drain()

    def _free(self, connection: Connection) -> None:
        self._send(connection)

    def _gone(self, connection: Connection) -> None:  # noqa: ARG002
        self._open_another()


class OpenLoop(Run):
    """Requests fall due at a constant rate, whether or not earlier ones are answered.

    A request that finds no free connection waits for one, and its latency counts from when it fell
    due.
    """

    def __init__(self, port: int, workload: Workload) -> None:
        super().__init__(port, workload)
        self._idle: list[Connection] = []
        self._waiting: deque[int] = deque()

    async def run(self, rate: float, duration_s: float) -> Seen:
        """Send `rate` requests a second for that long, and return what was seen."""
        self._started_ns = time.monotonic_ns()
        start = self._loop.time()
        for number in range(int(rate * duration_s)):
            await asyncio.sleep(start + number / rate - self._loop.time())
            if self._over.is_set():
                break
            self._waiting.append(time.monotonic_ns())
            self._dispatch()
        # The last ones may wait for a connection that is being made.
        if self._opening:
            await asyncio.wait(self._opening, timeout=_DRAIN_S)
        if self._waiting:
            self.seen.failed += len(self._waiting)
            self.seen.difference = self.seen.difference or "never sent"
        return await self._drain()

    def _free(self, connection: Connection) -> None:
        self._idle.append(connection)
        self._dispatch()

    def _gone(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            self._send(self._idle.pop(), self._waiting.popleft())
        num_open = len(self._connections) + len(self._opening)
        if len(self._waiting) > len(self._opening) and num_open < _MAX_OPEN_CONNECTIONS:
            self._open_another()
