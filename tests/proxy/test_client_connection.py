"""A client's connection: what it may send when, and how long it is kept."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_engine import SSE, Call, FakeEngine
from fake_vllm import FakeVllm
from faults_client import Answer, Client
from faults_engine import EVENTS, WHOLE
from running import Running, pass_time, running, settings_for
from waiting import until

from strop.proxy.client_connection import MAX_HEAD_BYTES, ClientConnection
from strop.proxy.http_server import KEEP_ALIVE_S

START = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
GOOD = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]}'
LIVE = b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
MAX_BODY_BYTES = 400_000
# Longer than an idle connection is kept.
BODY_TIMEOUT_S = 2.0 * KEEP_ALIVE_S


def post(body: bytes) -> bytes:
    """Return a whole request."""
    return START + b"content-length: %d\r\n\r\n" % len(body) + body


class Stoppable:
    """Streams its first event again and again until told to go on, or its client leaves."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self._vllm = FakeVllm()

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        if call.request.method == "GET":
            await self._vllm(call)
            return
        if b'"stream":true' not in call.request.body:
            await call.answer(WHOLE)
            return
        await call.head(200, [("content-type", SSE)])
        for _ in range(5000):
            await call.chunk(EVENTS[0])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.005):
                    await self.goes_on.wait()
                break
        for event in EVENTS:
            await call.chunk(event)
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()


@pytest.fixture
def handler() -> Stoppable:
    """What the engine does."""
    return Stoppable()


@pytest.fixture
async def proxy(handler: Stoppable, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy whose limits are so long that none is reached before the tests let time pass."""
    server = {"body_timeout_s": BODY_TIMEOUT_S, "max_body_bytes": MAX_BODY_BYTES}
    async with FakeEngine(handler) as engine:
        settings = settings_for(engine.url, kind="openai", server=server)
        async with running(settings, tmp_path / "home") as proxy:
            yield proxy


async def read(client: Client) -> Answer:
    """Return the next answer on a connection."""
    answer = Answer()
    await client.read_head(answer)
    await client.read_body(answer)
    return answer


def connections(proxy: Running) -> list[ClientConnection]:
    """Return the proxy's ends of its clients' connections."""
    found = proxy.server.server_state.connections
    return [one for one in found if isinstance(one, ClientConnection)]


async def end_of(client: Client) -> bytes:
    """Return what comes until the proxy closes the connection."""
    async with asyncio.timeout(30):
        return await client.reader.read()


async def test_line_ends_keep_no_connection_open(proxy: Running) -> None:
    """They may stand between two requests, and are none."""
    client, other = await Client.connect(proxy.url), await Client.connect(proxy.url)
    client.send(LIVE)
    answer = await read(client)
    client.send(b"\r\n")
    # Who is answered later was read later.
    other.send(LIVE)
    await read(other)
    await other.leave()
    pass_time(KEEP_ALIVE_S)

    assert 200 == answer.status
    assert b"" == await end_of(client)
    await client.leave()


async def test_the_rest_of_a_body_keeps_no_connection_open(proxy: Running) -> None:
    """It was answered before its end: the connection is good for another, and then idle."""
    client = await Client.connect(proxy.url)
    body = b"x" * (MAX_BODY_BYTES + 1)
    client.send(START + b"content-length: %d\r\n\r\n" % len(body))
    refused = await read(client)
    client.send(body + LIVE)
    answer = await read(client)
    client.send(START + b"content-length: %d\r\n\r\n" % len(body))
    again = await read(client)
    pass_time(KEEP_ALIVE_S)
    client.send(body)
    (connection,) = connections(proxy)
    await until(lambda: not connection._is_arriving)
    pass_time(KEEP_ALIVE_S)

    assert [413, 200, 413] == [refused.status, answer.status, again.status]
    assert b"" == await end_of(client)
    await client.leave()


async def test_trailers_have_an_end(proxy: Running) -> None:
    """They are as long as a head at most: the parser gathers each whole before it gives it away."""
    client = await Client.connect(proxy.url)
    client.send(START + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
    await until(lambda: proxy.server.server_state.tasks)
    client.send(b"x: " + b"a" * MAX_HEAD_BYTES)
    answer = await read(client)

    assert 431 == answer.status
    assert "head_too_large" == json.loads(answer.body)["error"]["code"]
    assert b"" == await end_of(client)
    await client.leave()


async def test_a_body_is_no_part_of_the_next_head(proxy: Running) -> None:
    """However the two come together."""
    client = await Client.connect(proxy.url)
    long = GOOD.replace(b"hi", b"x" * (3 * MAX_HEAD_BYTES))
    client.send(post(long) + LIVE[:20])
    first = await read(client)
    client.send(LIVE[20:])
    second = await read(client)
    await client.leave()

    assert (200, 200) == (first.status, second.status)


async def test_a_client_that_asks_twice_and_leaves_is_seen_to_leave(proxy: Running) -> None:
    """Its first request ends, which another one waits behind."""
    client = await Client.connect(proxy.url)
    client.send(post(STREAM))
    await client.read_head(Answer())
    client.send(post(GOOD))
    (connection,) = connections(proxy)
    await until(lambda: connection.pipeline)
    await client.leave(is_rude=True)

    assert ["client_cancelled"] == [row.completion.state for row in await proxy.rows()]


async def test_a_request_waits_for_the_answer_before_it(proxy: Running, handler: Stoppable) -> None:
    """Nothing of it is read meanwhile, so its time is not up."""
    client, other = await Client.connect(proxy.url), await Client.connect(proxy.url)
    client.send(post(STREAM))
    first = Answer()
    await client.read_head(first)
    client.send(post(GOOD)[:-5])
    other.send(post(GOOD)[:-5])
    await until(lambda: any(one.pipeline for one in connections(proxy)))
    await until(lambda: 2 == len(proxy.server.server_state.tasks))
    pass_time(BODY_TIMEOUT_S)
    late = await read(other)
    client.send(post(GOOD)[-5:])
    handler.goes_on.set()
    await client.read_body(first)
    second = await read(client)
    await client.leave()
    await other.leave()

    assert 408 == late.status
    assert first.is_answered
    assert WHOLE.partition(b'"logprobs"')[0] in second.body


async def test_what_waited_behind_an_answer_has_all_of_its_time(
    proxy: Running, handler: Stoppable
) -> None:
    """From that answer's end, however long it waited."""
    client, other = await Client.connect(proxy.url), await Client.connect(proxy.url)
    client.send(post(STREAM))
    first = Answer()
    await client.read_head(first)
    client.send(post(GOOD)[:-5])
    await until(lambda: any(one.pipeline for one in connections(proxy)))
    pass_time(0.75 * BODY_TIMEOUT_S)
    handler.goes_on.set()
    await client.read_body(first)
    other.send(LIVE)
    await read(other)
    pass_time(0.5 * BODY_TIMEOUT_S)
    await end_of(other)
    client.send(post(GOOD)[-5:])
    second = await read(client)
    await client.leave()
    await other.leave()

    assert (True, 200) == (first.is_answered, second.status)


async def test_what_waited_and_never_comes_is_a_408(proxy: Running, handler: Stoppable) -> None:
    """Its time begins anew, and ends."""
    client = await Client.connect(proxy.url)
    client.send(post(STREAM))
    first = Answer()
    await client.read_head(first)
    client.send(post(GOOD)[:-5])
    await until(lambda: any(one.pipeline for one in connections(proxy)))
    handler.goes_on.set()
    await client.read_body(first)
    pass_time(BODY_TIMEOUT_S)
    second = await read(client)
    await client.leave()

    assert (True, 408) == (first.is_answered, second.status)


async def test_a_request_that_began_before_the_last_answer_ended_has_its_time(
    proxy: Running, handler: Stoppable
) -> None:
    """An idle connection's time does not run for it."""
    client, idle = await Client.connect(proxy.url), await Client.connect(proxy.url)
    client.send(post(STREAM) + START)
    first, second = Answer(), Answer()
    await client.read_head(first)
    handler.goes_on.set()
    await client.read_body(first)
    handler.goes_on.clear()
    client.send(post(STREAM).removeprefix(START))
    await client.read_head(second)
    # Another connection, idle from now on, is closed when its time is up.
    idle.send(LIVE)
    await read(idle)
    pass_time(KEEP_ALIVE_S)
    await end_of(idle)
    handler.goes_on.set()
    await client.read_body(second)
    await client.leave()
    await idle.leave()

    assert (True, True) == (first.is_answered, second.is_answered)


async def test_nonsense_behind_two_requests_does_not_mix_with_an_answer(proxy: Running) -> None:
    """The stream that runs is cut off, and what waits behind it is not begun."""
    client = await Client.connect(proxy.url)
    client.send(post(STREAM))
    await client.read_head(Answer())
    client.send(post(GOOD) + b"nonsense\r\n\r\n")
    rest = await end_of(client)
    await client.leave()

    assert b"HTTP/1.1" not in rest
    assert ["client_cancelled"] == [row.completion.state for row in await proxy.rows()]


@pytest.mark.parametrize("extra", [b"", b"connection: keep-alive\r\n"], ids=["bare", "keep-alive"])
async def test_a_client_of_http_1_0_gets_no_chunks(
    extra: bytes, proxy: Running, handler: Stoppable
) -> None:
    """It doesn't know them: its stream ends with the connection, and JSON has its length."""
    handler.goes_on.set()
    heads, bodies = [], []
    for body in (STREAM, GOOD):
        client = await Client.connect(proxy.url)
        start = START.replace(b"HTTP/1.1", b"HTTP/1.0") + extra
        client.send(start + b"content-length: %d\r\n\r\n" % len(body) + body)
        head, _, rest = (await end_of(client)).partition(b"\r\n\r\n")
        heads.append(head.lower())
        bodies.append(rest)
        await client.leave()

    assert not any(b"transfer-encoding" in head for head in heads)
    assert b"content-length: %d" % len(bodies[1]) in heads[1]
    assert bodies[0].startswith(b"data: ")
    assert bodies[0].endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("num_before", [0, 1], ids=["first", "kept alive"])
@pytest.mark.parametrize(
    ("calls_before", "calls_behind"), [(1, 0), (0, 1), (0, 2)], ids=["late", "early", "unread"]
)
async def test_a_request_that_crosses_a_stop_is_answered(
    calls_before: int, calls_behind: int, num_before: int, proxy: Running
) -> None:
    """Also one that nobody has read when the time is over; it is told that it was the last."""
    client = await Client.connect(proxy.url)
    for _ in range(num_before):
        client.send(LIVE)
        await read(client)
    (connection,) = await until(lambda: connections(proxy))
    for _ in range(calls_before):
        connection.shutdown()
    os.write(client.writer.get_extra_info("socket").fileno(), LIVE)
    for _ in range(calls_behind):
        connection.shutdown()
    said = await end_of(client)
    await client.leave()

    assert 1 == said.count(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in said


@pytest.mark.parametrize("came", [b"", LIVE[:9]], ids=["nothing", "half a head"])
async def test_a_stop_closes_what_asks_for_nothing(came: bytes, proxy: Running) -> None:
    """A moment later, and doesn't wait for who never ends."""
    client = await Client.connect(proxy.url)
    client.send(LIVE)
    await read(client)
    client.send(came)
    (connection,) = connections(proxy)
    connection.shutdown()

    assert b"" == await end_of(client)
    # What was put off then finds it gone.
    connection.shutdown()
    await client.leave()


async def test_a_stop_waits_for_no_rest_of_what_was_answered(proxy: Running) -> None:
    """A body that was too large may be coming for a long time."""
    client = await Client.connect(proxy.url)
    client.send(START + b"content-length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1))
    refused = await read(client)
    (connection,) = connections(proxy)
    os.write(client.writer.get_extra_info("socket").fileno(), b"x")
    for _ in range(2):
        connection.shutdown()

    assert 413 == refused.status
    assert connection.transport.is_closing()
    await client.leave()
