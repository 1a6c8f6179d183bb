"""Exchanges that end badly: engines that break off, and callers that give up at any moment."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from exchanges import LIMIT, ok, post, serving, started
from fake_engine import Call, FakeEngine
from loops import on_both_loops
from waiting import until

from strop.proxy.errors import UpstreamAborted, UpstreamDied, UpstreamUnreachable
from strop.proxy.upstream.exchange import Exchange
from strop.proxy.upstream.upstream import Upstream

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
# A port that is given to nobody.
NOBODY = "http://127.0.0.1:1"


def leave(call: Call, way: str) -> None:
    """Close the connection with FIN or RST."""
    if way == "fin":
        call.close()
    else:
        call.reset()


# Engines that break off.


@pytest.mark.parametrize("way", ["fin", "reset"])
@on_both_loops
async def test_request_is_sent_again_when_a_reused_connection_was_closed(way: str) -> None:
    """A kept connection that closes without a byte of answer costs nothing: a new one is used."""

    async def handler(call: Call) -> None:
        if len(engine.requests) == 2:
            leave(call, way)
        else:
            await ok(call)

    async with serving(handler) as (engine, upstream):
        await post(upstream, b"1")

        assert b'{"ok":true}' == await post(upstream, b"2")
        assert [b"1", b"2", b"2"] == [request.body for request in engine.requests]
        assert 2 == engine.num_opened


@on_both_loops
async def test_large_request_is_sent_again_whole() -> None:
    """A body cut off on a reused connection starts again from its beginning on the new one."""
    body = random.Random(5).randbytes(8 << 20)
    bodies: list[bytes] = []

    async def handler(call: Call) -> None:
        if len(engine.requests) == 2:
            call.reset()
        else:
            bodies.append(await call.read_body())
            await ok(call)

    async with serving(handler, reads_body=False) as (engine, upstream):
        await post(upstream, b"1")
        await post(upstream, body)

        assert [b"1", body] == bodies


@on_both_loops
async def test_request_is_sent_again_only_once() -> None:
    """The new connection has no second one behind it."""

    async def handler(call: Call) -> None:
        if len(engine.requests) == 1:
            await ok(call)
        else:
            call.close()

    async with serving(handler) as (engine, upstream):
        await post(upstream)

        with pytest.raises(UpstreamDied):
            await post(upstream)
        assert 3 == len(engine.requests)


@pytest.mark.parametrize("way", ["fin", "reset"])
@on_both_loops
async def test_request_on_a_new_connection_is_never_sent_again(way: str) -> None:
    """An engine that closes a new connection unanswered has died, and may have begun to answer."""

    async def handler(call: Call) -> None:
        leave(call, way)

    async with serving(handler) as (engine, upstream):
        with pytest.raises(UpstreamDied, match=r"expected an answer from http://127\.0\.0\.1:"):
            await post(upstream)
        assert 1 == len(engine.requests)


@pytest.mark.parametrize("begun", [b"H", HEAD, b"HTTP/1.1 100 Continue\r\n\r\n"])
@on_both_loops
async def test_request_is_not_sent_again_once_an_answer_began(begun: bytes) -> None:
    """One byte of an answer is proof that the engine has the request."""

    async def handler(call: Call) -> None:
        if len(engine.requests) == 1:
            await ok(call)
        else:
            await call.send(begun)
            call.close()

    async with serving(handler) as (engine, upstream):
        await post(upstream)

        with pytest.raises(UpstreamDied):
            await post(upstream)
        assert 2 == len(engine.requests)


@on_both_loops
async def test_connection_closed_while_idle_is_forgotten() -> None:
    """An engine may close an idle connection; the next exchange simply opens another."""

    async def handler(call: Call) -> None:
        await ok(call)
        call.close()

    async with serving(handler) as (engine, upstream):
        for _ in range(3):
            await post(upstream)
            await until(lambda: upstream.num_connections == 0)

        assert (3, 3) == (engine.num_opened, len(engine.requests))
        assert 0 == upstream.num_idle


@on_both_loops
async def test_unasked_for_bytes_close_an_idle_connection() -> None:
    """What comes without a request could pass for the next answer."""
    gate = asyncio.Event()

    async def handler(call: Call) -> None:
        await ok(call)
        await gate.wait()
        await call.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    async with serving(handler) as (_, upstream):
        await post(upstream)
        assert 1 == upstream.num_idle
        gate.set()
        await until(lambda: upstream.num_connections == 0)

        assert b'{"ok":true}' == await post(upstream)


@on_both_loops
async def test_bytes_after_the_end_close_the_connection() -> None:
    """A second answer in the same breath is dropped with its connection; the first stays whole."""
    answer = HEAD + b"content-length: 2\r\n\r\nhi"

    async def handler(call: Call) -> None:
        await call.send(answer + b"HTTP/1.1 500 Oh\r\ncontent-length: 3\r\n\r\nbad")

    async with serving(handler) as (engine, upstream):
        assert b"hi" == await post(upstream)
        assert 0 == upstream.num_idle
        assert b"hi" == await post(upstream)
        assert 2 == engine.num_opened


@pytest.mark.parametrize("way", ["fin", "reset"])
@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"content-length: 10\r\n\r\nhi",
        CHUNKED + b"5\r\nhi",
        CHUNKED + b"2\r\nhi\r\n",
        CHUNKED + b"2\r\nhi\r\n0\r\n",
    ],
)
@on_both_loops
async def test_answer_cut_short_is_never_taken_for_whole(answer: bytes, way: str) -> None:
    """What came can be read; then comes an error, not an end."""
    gate = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.send(answer)
        await gate.wait()
        leave(call, way)

    async with serving(handler) as (_, upstream):
        exchange = await started(upstream)
        assert b"hi" == await exchange.read()
        gate.set()

        with pytest.raises(UpstreamDied, match="expected the rest of the answer from http://"):
            await exchange.read()
        with pytest.raises(UpstreamDied):
            await exchange.read()
        assert 0 == upstream.num_connections


@on_both_loops
async def test_reset_is_not_the_end_of_a_body_without_length() -> None:
    """Where the connection's end is the body's, only an orderly one is."""
    gate = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.send(HEAD + b"\r\nhi")
        await gate.wait()
        call.reset()

    async with serving(handler) as (_, upstream):
        exchange = await started(upstream)
        assert b"hi" == await exchange.read()
        gate.set()

        with pytest.raises(UpstreamDied):
            await exchange.read()


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x15\x03\x01\x00\x02\x02",
        HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
@on_both_loops
async def test_garbage_is_an_error(garbage: bytes) -> None:
    """What isn't HTTP ends the exchange with an error that says so, and the connection."""

    async def handler(call: Call) -> None:
        await call.send(garbage)
        await call.hang()

    async with serving(handler) as (engine, upstream):
        with pytest.raises(UpstreamDied, match=r"isn't HTTP/1\.1"):
            await post(upstream)
        await engine.until(lambda: engine.num_open == 0)


@on_both_loops
async def test_broken_chunk_is_an_error_after_what_came_before() -> None:
    """Framing that breaks in the middle ends the exchange there."""

    async def handler(call: Call) -> None:
        await call.send(CHUNKED + b"2\r\nhi\r\nzz\r\n")
        await call.hang()

    async with serving(handler) as (_, upstream):
        with pytest.raises(UpstreamDied, match=r"isn't HTTP/1\.1"):
            await post(upstream)


@on_both_loops
async def test_server_that_speaks_first_is_an_error() -> None:
    """Something that isn't an HTTP server may talk or hang up before it was asked."""

    async def handler(_: Call) -> None:
        raise AssertionError

    def speak(transport: asyncio.Transport) -> None:
        transport.write(b"220 smtp ready\r\n")
        transport.close()

    async with FakeEngine(handler, on_connect=speak) as engine:
        upstream = Upstream(engine.url)
        with pytest.raises(UpstreamDied):
            await post(upstream)
        await until(lambda: upstream.num_connections == 0)


@on_both_loops
async def test_connection_lost_before_it_is_used_is_not_counted() -> None:
    """A connection may be gone by the time that its maker hears of it."""
    loop = asyncio.get_running_loop()
    create_connection = loop.create_connection

    async def late(*arguments: Any, **options: Any) -> Any:
        transport, connection = await create_connection(*arguments, **options)
        await until(lambda: connection.is_lost)
        return transport, connection

    async with FakeEngine(ok, on_connect=lambda transport: transport.close()) as engine:
        upstream = Upstream(engine.url)
        loop.create_connection = late  # type: ignore[method-assign]

        with pytest.raises(UpstreamDied):
            await post(upstream)
        assert 0 == upstream.num_connections
        await upstream.aclose()


@on_both_loops
async def test_unreachable_engine_is_named_without_secrets() -> None:
    """The error says where the engine was expected, and not what was asked of it."""
    upstream = Upstream(f"{NOBODY}/base")

    with pytest.raises(UpstreamUnreachable) as caught:
        await started(upstream, target=b"/base/v1/x?key=hunter2")

    assert f"{NOBODY}/base" in caught.value.message
    assert "hunter2" not in caught.value.message
    assert 0 == upstream.num_connections


async def test_what_to_do_about_an_unreachable_engine_is_as_given() -> None:
    """Nobody can start the one that strop starts itself; another may be one of several."""
    advice = r"; start it, or set engine\.url \(or engine\.replicas\)$"

    with pytest.raises(UpstreamUnreachable, match=advice):
        await started(Upstream(NOBODY))
    with pytest.raises(UpstreamUnreachable, match=r"; wait a little$"):
        await started(Upstream(NOBODY, advice="wait a little"))


@on_both_loops
async def test_https_for_an_engine_that_speaks_none_is_explained() -> None:
    """It runs, so to start it is no advice."""

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        upstream = Upstream(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")

        with pytest.raises(UpstreamUnreachable, match=r"; it may speak no TLS: try http://$"):
            await post(upstream)


@on_both_loops
async def test_connecting_has_a_time_limit() -> None:
    """A server that never answers TLS's hello is unreachable after `connect_timeout_s`."""
    late = r"no connection within 0\.05 s; .* set engine\.url \(or engine\.replicas\)$"
    async with FakeEngine(ok) as engine:
        upstream = Upstream(engine.url.replace("http:", "https:"), connect_timeout_s=0.05)

        with pytest.raises(UpstreamUnreachable, match=late):
            await post(upstream)
        await engine.until(lambda: engine.num_open == 0)


@on_both_loops
async def test_dead_exchange_stays_dead() -> None:
    """After its error an exchange gives the same one again, and aborting it changes nothing."""
    exchange = Upstream(NOBODY).exchange(b"GET", b"/", [], b"")

    with pytest.raises(UpstreamUnreachable):
        await exchange.start()
    exchange.abort()

    with pytest.raises(UpstreamUnreachable):
        await exchange.read()


# Callers that give up. Each stage is a moment in which the exchange's task waits.


@asynccontextmanager
async def waiting_in(stage: str) -> AsyncIterator[tuple[Exchange, "asyncio.Task[bytes]", Upstream]]:
    """Give an exchange whose task waits at `stage`; the engine must see its connection closed."""

    async def handler(call: Call) -> None:
        if stage == "read":
            await call.head(200)
            await call.chunk(b"data: 1\n\n")
        await call.hang()

    async with FakeEngine(handler, reads_body=stage != "send") as engine:
        url = engine.url.replace("http:", "https:") if stage == "connect" else engine.url
        upstream = Upstream(url)
        body = bytes(64 << 20) if stage == "send" else b"{}"
        exchange = upstream.exchange(b"POST", b"/", [], body)

        async def use() -> bytes:
            await exchange.start()
            return await exchange.read_all(LIMIT)

        task = asyncio.create_task(use())
        await engine.until(lambda: engine.num_opened == 1)
        if stage != "connect":
            await engine.until(lambda: len(engine.requests) == 1)
        if stage == "read":
            await until(lambda: exchange.status == 200)
        await until(lambda: exchange.is_waiting)

        yield exchange, task, upstream

        await until(lambda: upstream.num_connections == 0)
        for connection in engine.open:
            connection.transport.resume_reading()
        await engine.until(lambda: engine.num_open == 0)


STAGES = ["connect", "send", "head", "read"]


@pytest.mark.parametrize("stage", STAGES)
@on_both_loops
async def test_aborted_exchange_lets_go_at_once(stage: str) -> None:
    """Whatever the task waits for, it gets UpstreamAborted, and the engine sees the end."""
    async with waiting_in(stage) as (exchange, task, _):
        exchange.abort()
        exchange.abort()

        with pytest.raises(UpstreamAborted):
            await task
        with pytest.raises(UpstreamAborted):
            await exchange.read()


@pytest.mark.parametrize("stage", STAGES)
@on_both_loops
async def test_cancelled_task_leaves_no_connection(stage: str) -> None:
    """Cancelling the task that waits aborts its exchange, and stays a cancellation."""
    async with waiting_in(stage) as (exchange, task, _):
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(UpstreamAborted):
            await exchange.read()


@pytest.mark.parametrize("stage", STAGES)
@on_both_loops
async def test_cancellation_wins_over_abort(stage: str) -> None:
    """A task that is cancelled is told so, aborted in the same moment or not."""
    async with waiting_in(stage) as (exchange, task, _):
        task.cancel()
        exchange.abort()

        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("stage", STAGES)
@on_both_loops
async def test_closing_all_aborts_what_is_under_way(stage: str) -> None:
    """`aclose` ends waiting exchanges, and leaves nothing open."""
    async with waiting_in(stage) as (_, task, upstream):
        await asyncio.gather(upstream.aclose(), upstream.aclose())

        assert 0 == upstream.num_connections
        with pytest.raises(UpstreamAborted):
            await task


@on_both_loops
async def test_nothing_starts_after_closing_all() -> None:
    """A closed pool opens no connection."""
    async with serving(ok) as (engine, upstream):
        await post(upstream)
        await upstream.aclose()

        with pytest.raises(UpstreamAborted, match="closed"):
            await post(upstream)
        assert 1 == engine.num_opened


@on_both_loops
async def test_exchange_aborted_before_its_start_sends_nothing() -> None:
    """`start` after `abort` raises and touches no connection."""
    async with serving(ok) as (engine, upstream):
        exchange = upstream.exchange(b"POST", b"/", [], b"")
        exchange.abort()

        with pytest.raises(UpstreamAborted):
            await exchange.start()
        assert 0 == engine.num_opened


@on_both_loops
async def test_abort_after_the_end_does_nothing() -> None:
    """A whole answer can be read after `abort`, and its connection is used again."""
    async with serving(ok) as (engine, upstream):
        exchange = await started(upstream)
        await until(lambda: upstream.num_idle == 1)
        exchange.abort()

        assert b'{"ok":true}' == await exchange.read_all(LIMIT)
        exchange.close()
        await post(upstream)
        assert 1 == engine.num_opened


@on_both_loops
async def test_closing_an_unread_answer_closes_its_connection() -> None:
    """`close` in the middle of a body is `abort`."""

    async def handler(call: Call) -> None:
        await call.head(200)
        await call.chunk(b"data: 1\n\n")
        await call.hang()

    async with serving(handler) as (engine, upstream):
        exchange = await started(upstream)
        exchange.close()

        await engine.until(lambda: engine.num_open == 0)
        assert 0 == upstream.num_connections


@pytest.mark.parametrize("who", ["caller", "engine"])
@on_both_loops
async def test_exchange_that_is_held_back_can_end(who: str) -> None:
    """An unread answer whose connection is paused can be given up, and can break off."""
    gate = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.head(200)
        sending = asyncio.create_task(call.chunk(bytes(16 << 20)))
        await gate.wait()
        call.reset()
        await sending

    async with serving(handler) as (engine, upstream):
        exchange = await started(upstream)
        await engine.until(lambda: engine.is_stalled)
        if who == "caller":
            exchange.close()
            expected: type[Exception] = UpstreamAborted
        else:
            expected = UpstreamDied
        gate.set()

        with pytest.raises(expected):
            await exchange.read_all(LIMIT)
        await engine.until(lambda: engine.num_open == 0)
        await until(lambda: upstream.num_connections == 0)


@on_both_loops
async def test_abort_while_a_reused_connection_waits_sends_nothing_again() -> None:
    """Giving up is not a closed connection: there is no second attempt."""

    async def handler(call: Call) -> None:
        if len(engine.requests) == 1:
            await ok(call)
        else:
            await call.hang()

    async with serving(handler) as (engine, upstream):
        await post(upstream)
        exchange = upstream.exchange(b"POST", b"/", [], b"")
        task = asyncio.create_task(exchange.start())
        await engine.until(lambda: len(engine.requests) == 2)
        exchange.abort()

        with pytest.raises(UpstreamAborted):
            await task
        assert (1, 2) == (engine.num_opened, len(engine.requests))


@on_both_loops
async def test_five_hundred_given_up_exchanges_leave_nothing() -> None:
    """Aborted, cancelled or closed at random moments, exchanges leave no connection behind."""
    chance = random.Random(7)
    num_exchanges = 500
    num_whole = 0

    async def handler(call: Call) -> None:
        await call.head(200)
        for _ in range(4):
            await call.chunk(b"data: x\n\n")
            await asyncio.sleep(0)
        await call.end()

    async def use(exchange: Exchange) -> None:
        nonlocal num_whole
        await exchange.start()
        await exchange.read_all(LIMIT)
        num_whole += 1

    async def give_up(upstream: Upstream) -> None:
        exchange = upstream.exchange(b"POST", b"/", [], b"{}")
        task = asyncio.create_task(use(exchange))
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
        ways: list[Callable[[], object]] = [exchange.abort, exchange.close, task.cancel]
        chance.choice(ways)()
        await asyncio.wait([task])
        assert (
            task.cancelled()
            or task.exception() is None
            or isinstance(task.exception(), UpstreamAborted)
        )

    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url, max_idle=0)
        for _ in range(num_exchanges // 20):
            await asyncio.gather(*(give_up(upstream) for _ in range(20)))

        await until(lambda: upstream.num_connections == 0)
        await engine.until(lambda: engine.num_open == 0)
        assert 0 < num_whole < num_exchanges
        assert 100 < engine.num_opened
