"""The same connections as a transport of httpx, for control calls."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from exchanges import ok
from fake_engine import Call, FakeEngine, Handler
from loops import on_both_loops
from waiting import LIMIT_S

from strop.proxy.upstream import Upstream


@asynccontextmanager
async def client_of(
    handler: Handler, timeout_s: float = LIMIT_S
) -> AsyncIterator[tuple[FakeEngine, Upstream, httpx.AsyncClient]]:
    """Run an engine and a client of httpx, which closes the connections at its end."""
    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        async with httpx.AsyncClient(
            transport=upstream, base_url=upstream.url, timeout=timeout_s
        ) as client:
            yield engine, upstream, client
        assert 0 == upstream.num_connections


@on_both_loops
async def test_client_gets_the_answer() -> None:
    """Status, headers and JSON reach the client, and its request the engine, framed once."""

    async def handler(call: Call) -> None:
        await call.answer(b'{"a":1}', 201, [("Content-Type", "application/json"), ("X-A", "b")])

    async with client_of(handler) as (engine, upstream, client):
        answer = await client.post("/v1/x", params={"q": "1"}, json={"b": 2})

        assert (201, {"a": 1}, "b") == (answer.status_code, answer.json(), answer.headers["x-a"])
        request = engine.requests[0]
        assert ("POST", "/v1/x?q=1", {"b": 2}) == (request.method, request.target, request.json())
        names = [name for name, _ in request.headers]
        assert (1, 1) == (names.count("host"), names.count("content-length"))
        assert 1 == upstream.num_idle


@on_both_loops
async def test_client_may_send_a_stream() -> None:
    """A request body that comes in pieces is sent whole, with its length."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with client_of(ok) as (engine, _, client):
        await client.post("/", content=pieces())

        assert b"onetwo" == engine.requests[0].body
        assert engine.requests[0].header("transfer-encoding") is None


@on_both_loops
async def test_client_may_leave_a_stream_early() -> None:
    """An answer that isn't read to its end closes its connection."""

    async def handler(call: Call) -> None:
        await call.head(200)
        await call.chunk(b"data: 1\n\n")
        await call.hang()

    async with client_of(handler) as (engine, upstream, client):
        async with client.stream("GET", "/") as answer:
            first = await anext(answer.aiter_raw())

        assert b"data: 1\n\n" == first
        await engine.until(lambda: engine.num_open == 0)
        assert 0 == upstream.num_connections


async def close(call: Call) -> None:
    call.close()


async def reset(call: Call) -> None:
    call.reset()


async def garbage(call: Call) -> None:
    await call.send(b"SSH-2.0-OpenSSH\r\n")


async def cut_short(call: Call) -> None:
    await call.head(200, framing="length", length=10)
    await call.send(b"hi")
    call.close()


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (close, httpx.RemoteProtocolError),
        (garbage, httpx.RemoteProtocolError),
        (cut_short, httpx.RemoteProtocolError),
        (reset, httpx.ReadError),
    ],
)
@on_both_loops
async def test_engine_errors_are_those_of_httpx(
    handler: Handler, expected: type[httpx.TransportError]
) -> None:
    """A broken answer is the error that httpx's own transport gives for it."""
    async with client_of(handler) as (_, _, client):
        with pytest.raises(expected) as caught:
            await client.get("/")

        assert expected is type(caught.value)


@pytest.mark.parametrize("has_head", [False, True])
@on_both_loops
async def test_late_bytes_are_a_read_timeout(has_head: bool) -> None:
    """The read timeout holds for the head and for each piece, and closes the connection."""

    async def handler(call: Call) -> None:
        if has_head:
            await call.head(200)
        await call.hang()

    async with client_of(handler, timeout_s=0.05) as (engine, _, client):
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/")
        await engine.until(lambda: engine.num_open == 0)


@on_both_loops
async def test_closed_port_is_a_connect_error() -> None:
    """Nobody there is ConnectError."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async with httpx.AsyncClient(transport=Upstream(f"http://127.0.0.1:{port}")) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/")


@on_both_loops
async def test_slow_connect_is_a_connect_timeout() -> None:
    """No connection in time is ConnectTimeout; TLS that nobody answers stands for it."""
    async with FakeEngine(ok) as engine:
        url = engine.url.replace("http:", "https:")
        transport = Upstream(url, connect_timeout_s=0.05)

        async with httpx.AsyncClient(transport=transport, timeout=LIMIT_S) as client:
            with pytest.raises(httpx.ConnectTimeout):
                await client.get(url)


@on_both_loops
async def test_closed_transport_is_a_read_error() -> None:
    """A request that the pool's end cuts off doesn't hang."""

    async def handler(call: Call) -> None:
        await call.hang()

    async with client_of(handler) as (engine, upstream, client):
        asking = asyncio.create_task(client.get("/"))
        await engine.until(lambda: len(engine.requests) == 1)
        await upstream.aclose()

        with pytest.raises(httpx.ReadError):
            await asking


@pytest.mark.parametrize(
    "url", ["http://other.example/", "https://127.0.0.1:{port}/", "http://127.0.0.1:1/"]
)
@on_both_loops
async def test_other_origins_are_refused(url: str) -> None:
    """A redirect can't take a request, and its key, elsewhere, nor is it sent here by mistake."""
    async with client_of(ok) as (engine, _, client):
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get(url.format(port=engine.port))
        assert 0 == engine.num_opened


@on_both_loops
async def test_injected_header_is_a_local_protocol_error() -> None:
    """What would break the request's lines is not sent."""
    async with client_of(ok) as (engine, _, client):
        with pytest.raises(httpx.LocalProtocolError):
            await client.get("/", headers=[(b"x", b"1\r\ny: 2")])
        assert 0 == engine.num_opened
