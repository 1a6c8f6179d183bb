"""A thousand streams at once through one proxy process, and a client that doesn't read its own."""

import asyncio
import itertools
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest
from fake_engine import SSE, Call, FakeEngine
from faults_client import Answer, Client, Plan, ask
from faults_engine import DONE, EVENTS, WAY_HEADER, FaultyEngine
from faults_load import open_files
from faults_process import Serve, behind, database, serving
from faults_report import Reached, scaled
from waiting import until

pytestmark = pytest.mark.faults

NUM_STREAMS: Final = 1000
# The proxy's and the engine's end of each stream, and what else is open.
OPEN_FILES: Final = 2 * NUM_STREAMS + 256
MAX_IDLE: Final = 64
STREAM: Final = Plan({"model": "tiny", "messages": [], "stream": True})

_BLOCK: Final = EVENTS[0] * 4000
# A few sockets' buffers, each as large as the kernel lets them grow.
_MAX_BUFFERED_BYTES: Final = 48 * 1024 * 1024


class Together(FaultyEngine):
    """An engine whose streams, asked to, stop in the middle until all of them have come so far."""

    def __init__(self, seed: int, count: int) -> None:
        super().__init__(seed)
        self.most = 0
        self._count = count
        self._num_here = 0
        self._are_here = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        if call.request.header(WAY_HEADER) != "together":
            await super().__call__(call)
            return
        await call.read_body()
        await call.head(200, [("content-type", SSE)])
        middle = len(EVENTS) // 2
        for event in EVENTS[:middle]:
            await call.chunk(event)
        self._num_here += 1
        self.most = max(self.most, self._num_here)
        if self._num_here == self._count:
            self._are_here.set()
        await self._are_here.wait()
        for event in EVENTS[middle:]:
            await call.chunk(event)
        await call.chunk(DONE)
        await call.end()
        self._num_here -= 1
        if not self._num_here:
            self._are_here.clear()


async def sockets_back(proxy: Serve, engine: FakeEngine, before: int | None) -> None:
    """Return once the proxy has no more sockets than before, but those kept for the engine."""
    await engine.until(lambda: engine.num_open <= MAX_IDLE)
    await until(lambda: before is None or (proxy.num_sockets or 0) <= before + engine.num_open)


async def test_a_thousand_streams_at_once_are_all_whole_and_recorded_once(
    tmp_path: Path, reached: Reached
) -> None:
    """None ends before all have begun; then each ends as one alone does, with a row of its own.

    The sockets are back where they were, each time.
    """
    home, num_rounds = tmp_path / "home", scaled(1)
    engine_side = Together(50, NUM_STREAMS)
    together = Plan(STREAM.fields, {WAY_HEADER: "together"})
    async with AsyncExitStack() as stack:
        stack.enter_context(open_files(OPEN_FILES))
        engine = await stack.enter_async_context(FakeEngine(engine_side, reads_body=False))
        # As a terminal's limit is: the proxy raises its own.
        with open_files(512):
            proxy = await stack.enter_async_context(serving(home, *behind(engine.url)))
        num_sockets = proxy.num_sockets
        answers: list[Answer] = []
        for _ in range(num_rounds):
            answers += await asyncio.gather(*(ask(proxy.url, together) for _ in range(NUM_STREAMS)))
            await proxy.wait_until_idle()
            await sockets_back(proxy, engine, num_sockets)
        rss_mib = proxy.rss_mib
        alone = await ask(proxy.url, STREAM)

    assert NUM_STREAMS == engine_side.most
    assert alone.is_answered
    assert {alone.body} == {answer.body for answer in answers}
    with database(home) as opened:
        rows = opened.execute("SELECT id, state FROM completions").fetchall()
        choices = opened.execute("SELECT count(*) FROM choices").fetchone()[0]
    assert Counter(id_ for id_, _ in rows) == Counter(
        answer.completion_id for answer in (*answers, alone)
    )
    assert {"complete"} == {state for _, state in rows}
    assert len(rows) == choices
    reached(at_once=engine_side.most, rounds=num_rounds, rows=len(rows), rss_mib=rss_mib)


class Flood(FaultyEngine):
    """An engine that streams without end to whoever asks for a flood, and counts what it sent."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.num_sent_bytes = 0

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        if call.request.header(WAY_HEADER) != "flood":
            await super().__call__(call)
            return
        await call.read_body()
        await call.head(200, [("content-type", SSE)])
        for _ in itertools.count():
            await call.chunk(_BLOCK)
            self.num_sent_bytes += len(_BLOCK)


async def test_a_slow_reader_holds_up_nobody(tmp_path: Path, reached: Reached) -> None:
    """While its stream stands still, all the streams of others run from begin to end.

    What the engine has sent it and it has not read is bounded, and so is what the proxy holds.
    """
    home, num_slow, num_fast = tmp_path / "home", 3, scaled(200)
    engine_side = Flood(seed=51)
    flood = Plan(STREAM.fields, {WAY_HEADER: "flood"})
    async with (
        FakeEngine(engine_side, reads_body=False) as engine,
        serving(home, *behind(engine.url)) as proxy,
    ):
        num_sockets, rss_mib = proxy.num_sockets, proxy.rss_mib
        slow = []
        for _ in range(num_slow):
            client = await Client.connect(proxy.url)
            client.send(b"".join(flood.request()))
            await client.read_head(Answer())
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's can
            slow.append(client)
        await engine.until(lambda: engine.num_stalled == num_slow)
        num_sent_bytes = engine_side.num_sent_bytes
        fast = [await ask(proxy.url, STREAM) for _ in range(10)]
        fast += await asyncio.gather(*(ask(proxy.url, STREAM) for _ in range(num_fast)))
        num_in_flight = (await proxy.get("/health"))["in_flight"]
        num_more_bytes = engine_side.num_sent_bytes - num_sent_bytes
        grown_mib = proxy.rss_mib - rss_mib
        for client in slow:
            await client.leave(is_rude=True)
        await proxy.wait_until_idle()
        await sockets_back(proxy, engine, num_sockets)

    assert all(answer.is_answered for answer in fast)
    assert 1 == len({answer.body for answer in fast})
    assert num_slow == num_in_flight
    assert num_sent_bytes < num_slow * _MAX_BUFFERED_BYTES
    assert num_more_bytes < num_slow * _MAX_BUFFERED_BYTES
    assert grown_mib < 2 * num_slow * _MAX_BUFFERED_BYTES / 2**20
    with database(home) as opened:
        states = dict(
            opened.execute("SELECT state, count(*) FROM completions GROUP BY state").fetchall()
        )
    assert {"complete": len(fast), "client_cancelled": num_slow} == states
    reached(
        slow=num_slow,
        fast=len(fast),
        mib_sent_to_the_slow=num_sent_bytes / 2**20,
        mib_more_meanwhile=num_more_bytes / 2**20,
        rss_mib_more=grown_mib,
    )
