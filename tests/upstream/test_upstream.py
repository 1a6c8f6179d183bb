"""Exchanges that go well, over real sockets: what is sent, what comes back, by which connection.

Broken engines and given-up exchanges are in test_upstream_faults.
"""

import asyncio
import gc
import gzip
import json
import random
import socket
import ssl
import subprocess
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from exchanges import LIMIT, ok, post, serving, started
from fake_engine import Call, FakeEngine, Framing
from loops import on_both_loops
from waiting import until

from strop.proxy.errors import ConfigError, UpstreamAborted, UpstreamError
from strop.proxy.upstream.exchange import HIGH_WATER_BYTES, SLICE_BYTES, Exchange
from strop.proxy.upstream.upstream import Upstream


@on_both_loops
async def test_request_arrives_as_given() -> None:
    """The engine gets the target, the headers and the body that the exchange was made with."""
    async with serving(ok) as (engine, upstream):
        exchange = upstream.exchange(b"POST", b"/v1/x?q=1", [(b"x-a", b"1")], b"hello")
        await exchange.start()

        request = engine.requests[0]
        assert ("POST", "/v1/x?q=1", b"hello") == (request.method, request.target, request.body)
        assert f"127.0.0.1:{engine.port}" == request.header("host")
        assert "1" == request.header("x-a")


@pytest.mark.parametrize("status", [200, 404, 500])
@on_both_loops
async def test_answer_comes_as_sent(status: int) -> None:
    """Status, headers and body of an answer are the engine's, whatever they are."""

    async def handler(call: Call) -> None:
        await call.answer(b"body", status, [("X-A", "1"), ("x-a", "2")])

    async with serving(handler) as (_, upstream):
        exchange = await started(upstream)

        assert status == exchange.status
        assert [(b"x-a", b"1"), (b"x-a", b"2")] == exchange.headers[:2]
        assert b"body" == await exchange.read_all(LIMIT)
        assert b"" == await exchange.read()


@pytest.mark.parametrize(("framing", "num_idle"), [("length", 1), ("chunked", 1), ("close", 0)])
@on_both_loops
async def test_connection_is_kept_unless_it_ends_the_body(framing: Framing, num_idle: int) -> None:
    """A body framed by length or chunks leaves its connection idle; one framed by it, closed."""
    body = random.Random(1).randbytes(300_000)

    async def handler(call: Call) -> None:
        await call.answer(body, framing=framing)

    async with serving(handler) as (_, upstream):
        assert body == await post(upstream)
        assert num_idle == upstream.num_idle


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
@on_both_loops
async def test_answers_without_body_end_at_their_head(method: bytes) -> None:
    """HEAD, 204 and 304 have no body even where a length is announced."""

    async def handler(call: Call) -> None:
        await call.head(200 if method == b"HEAD" else 304, framing="length", length=10)

    async with serving(handler) as (_, upstream):
        exchange = upstream.exchange(method, b"/", [], b"")
        await exchange.start()

        assert b"" == await exchange.read()


@on_both_loops
async def test_interim_answers_are_skipped() -> None:
    """100 Continue and 103 Early Hints are not the answer."""

    async def handler(call: Call) -> None:
        await call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await call.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await ok(call)

    async with serving(handler) as (_, upstream):
        exchange = await started(upstream)

        assert 200 == exchange.status
        assert b"link" not in dict(exchange.headers)


@on_both_loops
async def test_pieces_come_as_they_arrive() -> None:
    """A stream's bytes can be read as soon as they are there, and those waiting come joined."""
    read = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.head(200)
        await call.chunk(b"one")
        await read.wait()
        await call.chunk(b"two")
        await call.chunk(b"three")
        await call.end()

    async with serving(handler) as (_, upstream):
        exchange = await started(upstream)
        first = await exchange.read()
        read.set()
        await until(lambda: upstream.num_idle == 1)

        assert b"one" == first
        assert b"twothree" == await exchange.read()
        assert b"" == await exchange.read()


@on_both_loops
async def test_stream_byte_by_byte_is_whole() -> None:
    """Head, chunk sizes and body may be cut anywhere."""
    events = b"".join(b'data: {"n": %d}\n\n' % n for n in range(20))
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    answer += b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events)

    async def handler(call: Call) -> None:
        await call.send_bytewise(answer)

    async with serving(handler) as (_, upstream):
        assert events == await post(upstream)
        assert 1 == upstream.num_idle


@on_both_loops
async def test_read_all_has_a_limit() -> None:
    """An answer longer than the limit is an error, and its connection closed."""

    async def handler(call: Call) -> None:
        await call.head(200)
        await call.chunk(b"x" * 1001)
        await call.hang()

    async with serving(handler) as (engine, upstream):
        exchange = await started(upstream)

        with pytest.raises(UpstreamError, match=r"at most 1000 bytes from http://127\.0\.0\.1:"):
            await exchange.read_all(1000)
        await engine.until(lambda: engine.num_open == 0)


@on_both_loops
async def test_a_packed_answer_is_unpacked_only_as_it_is_read() -> None:
    """A little may say very much: once nobody wants it, the rest stays packed."""
    packed = gzip.compress(bytes(64 * 2**20))

    async def handler(call: Call) -> None:
        await call.answer(packed, headers=[("content-encoding", "gzip")])

    async with serving(handler) as (_, upstream):
        exchange = await started(upstream)
        exchange.unpack()
        await until(lambda: upstream.num_idle == 1)
        first = await exchange.read()
        exchange.abort()

        assert 0 < len(first) < 2**20
        with pytest.raises(UpstreamAborted):
            await exchange.read()


@on_both_loops
async def test_others_have_their_turn_while_an_answer_is_unpacked() -> None:
    """Who reads it may wait for nothing else: a client that is gone takes all at once."""
    packed = gzip.compress(bytes(16 * 2**20))
    num_turns = 0

    async def handler(call: Call) -> None:
        await call.answer(packed, headers=[("content-encoding", "gzip")])

    async def take_turns() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    async with serving(handler) as (_, upstream):
        exchange = await started(upstream)
        exchange.unpack()
        await until(lambda: upstream.num_idle == 1)
        other = asyncio.create_task(take_turns())
        turns = [num_turns async for _ in pieces(exchange)]
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)

    assert len(turns) > 16
    assert sorted(set(turns)) == turns


@on_both_loops
async def test_who_is_cancelled_while_others_have_their_turn_gives_up() -> None:
    """As in every other wait for an answer."""
    packed = gzip.compress(bytes(16 * 2**20))

    async def handler(call: Call) -> None:
        await call.answer(packed, headers=[("content-encoding", "gzip")])

    async with serving(handler) as (_, upstream):
        exchange = await started(upstream)
        exchange.unpack()
        await until(lambda: upstream.num_idle == 1)
        await exchange.read()
        reader = asyncio.create_task(exchange.read())
        asyncio.get_running_loop().call_soon(reader.cancel)
        await asyncio.wait([reader])

        assert reader.cancelled()
        with pytest.raises(UpstreamAborted):
            await exchange.read()


async def pieces(exchange: Exchange) -> AsyncIterator[bytes]:
    """Yield what is read, to the end."""
    while piece := await exchange.read():
        yield piece


@on_both_loops
async def test_unread_answer_holds_the_engine_back() -> None:
    """What nobody reads is not taken from the engine either, but for a bounded rest."""
    piece = bytes(64 * 1024)
    num_pieces = 512
    num_sent = 0

    async def handler(call: Call) -> None:
        nonlocal num_sent
        await call.head(200)
        for num_sent in range(num_pieces):  # noqa: B007  # counts what the engine could send
            await call.chunk(piece)
        await call.end()

    async with serving(handler) as (engine, upstream):
        exchange = await started(upstream)
        await engine.until(lambda: engine.is_stalled)
        for _ in range(1000):  # enough for all of it, if somebody took it
            await asyncio.sleep(0)

        assert num_sent < num_pieces // 2
        assert len(await exchange.read()) < 4 * HIGH_WATER_BYTES
        assert num_pieces * len(piece) > len(await exchange.read_all(LIMIT))
        assert num_pieces - 1 == num_sent
        assert 1 == upstream.num_idle


@on_both_loops
async def test_large_body_is_sent_no_faster_than_it_is_taken() -> None:
    """A request's body waits in the proxy once, not again in the connection."""
    body = random.Random(0).randbytes(16 << 20)
    may_read = asyncio.Event()
    bodies = []

    async def handler(call: Call) -> None:
        await may_read.wait()
        bodies.append(await call.read_body())
        await ok(call)

    async with serving(handler, reads_body=False) as (engine, upstream):
        posting = asyncio.create_task(post(upstream, body))
        await engine.until(lambda: len(engine.requests) == 1)
        (connection,) = upstream._connections
        await until(lambda: connection.is_write_paused)
        num_waiting_bytes = connection.transport.get_write_buffer_size()
        may_read.set()
        await posting

        assert num_waiting_bytes <= 2 * SLICE_BYTES
        assert [body] == bodies
        assert 1 == upstream.num_idle


@on_both_loops
async def test_answer_before_the_end_of_the_body_ends_the_sending() -> None:
    """An engine that refuses a large body unread is heard, and its connection not used again."""

    async def handler(call: Call) -> None:
        await call.json({"error": "too large"}, 413)

    async with serving(handler, reads_body=False) as (_, upstream):
        exchange = await started(upstream, bytes(64 << 20))

        assert 413 == exchange.status
        assert b'{"error":"too large"}' == await exchange.read_all(LIMIT)
        await until(lambda: upstream.num_connections == 0)


@on_both_loops
async def test_connection_used_last_is_used_first() -> None:
    """One connection is enough for exchanges in turn; of several, the last to go idle is taken."""
    gates = [asyncio.Event(), asyncio.Event()]
    served = []

    async def handler(call: Call) -> None:
        served.append(call.connection)
        if len(served) <= 2:
            await gates[call.connection].wait()
        await ok(call)

    async with serving(handler) as (engine, upstream):
        both = [asyncio.create_task(post(upstream)) for _ in range(2)]
        await engine.until(lambda: len(engine.requests) == 2)
        gates[1].set()
        await until(lambda: upstream.num_idle == 1)
        gates[0].set()
        await asyncio.gather(*both)

        for _ in range(3):
            await post(upstream)

        assert [0, 0, 0] == served[2:]
        assert 2 == engine.num_opened


@on_both_loops
async def test_connection_idle_for_too_long_is_not_used() -> None:
    """Older than `idle_expiry_s`, idle connections are closed when the next one is wanted."""
    async with serving(ok, idle_expiry_s=-1.0) as (engine, upstream):
        await post(upstream)
        await post(upstream)

        assert 2 == engine.num_opened
        await engine.until(lambda: engine.num_open == 1)


@on_both_loops
async def test_idle_connections_are_bounded() -> None:
    """Of more than `max_idle`, the one that has been idle for longest is closed."""
    gates = [asyncio.Event() for _ in range(4)]

    async def handler(call: Call) -> None:
        await gates[call.connection].wait()
        await ok(call)

    async with serving(handler, max_idle=2) as (engine, upstream):
        posts = {asyncio.create_task(post(upstream)) for _ in gates}
        await engine.until(lambda: len(engine.requests) == 4)
        for gate in reversed(gates):
            gate.set()
            _, posts = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        await engine.until(lambda: engine.num_open == 2)

        assert {0, 1} == {connection.index for connection in engine.open}
        assert (2, 2) == (upstream.num_idle, upstream.num_connections)


@on_both_loops
async def test_streams_do_not_queue() -> None:
    """There is no limit on connections: many streams run at once."""
    num_streams = 150
    gate = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.head(200)
        await call.chunk(b"data: 1\n\n")
        await gate.wait()
        await call.end()

    async with serving(handler) as (_, upstream):
        streams = await asyncio.gather(*(started(upstream) for _ in range(num_streams)))

        assert [b"data: 1\n\n"] * num_streams == [await stream.read() for stream in streams]
        gate.set()
        assert [b""] * num_streams == [await stream.read() for stream in streams]


@on_both_loops
async def test_small_writes_are_not_delayed() -> None:
    """Connections have TCP_NODELAY set."""
    async with serving(ok) as (_, upstream):
        await post(upstream)

        (connection,) = upstream._connections
        connected = connection.transport.get_extra_info("socket")
        assert 0 != connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@on_both_loops
async def test_finished_exchange_needs_no_garbage_collection() -> None:
    """On the hot path nothing refers to itself: an exchange is freed with its last reference."""
    async with serving(ok) as (_, upstream):
        gc.collect()
        gc.disable()
        try:
            exchange = await started(upstream)
            await exchange.read_all(LIMIT)
            gone: list[Callable[[], object]] = [
                weakref.ref(exchange),
                weakref.ref(exchange._answer),
            ]
            del exchange

            assert [None, None] == [reference() for reference in gone]
        finally:
            gc.enable()


@on_both_loops
async def test_times_are_those_of_the_exchange() -> None:
    """Sending, head and last bytes come in this order, and progress counts only while waiting."""
    gate = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.head(200)
        await call.chunk(b"1")
        await gate.wait()
        await call.end()

    async with serving(handler) as (_, upstream):
        exchange = upstream.exchange(b"GET", b"/", [], b"")
        assert (0.0, 0.0, 0) == (exchange.sent_at, exchange.head_at, exchange.status)
        made_at = exchange.last_progress

        await exchange.start()
        assert made_at <= exchange.sent_at <= exchange.head_at <= exchange.last_progress
        assert not exchange.is_waiting

        await exchange.read()
        came_at = exchange.last_progress
        await until(lambda: asyncio.get_running_loop().time() > came_at)
        reading = asyncio.create_task(exchange.read())
        await until(lambda: exchange.is_waiting)
        assert came_at < exchange.last_progress

        gate.set()
        assert b"" == await reading
        assert not exchange.is_waiting


@on_both_loops
async def test_address_may_be_ipv6() -> None:
    """An IPv6 literal is connected to, and stands in brackets in Host."""
    async with FakeEngine(ok, host="::1") as engine:
        upstream = Upstream(engine.url)
        answer = await post(upstream)
        await upstream.aclose()

        assert {"ok": True} == json.loads(answer)
        assert f"[::1]:{engine.port}" == engine.requests[0].header("host")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    extra = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *extra], check=True, capture_output=True)
    return cert, key


@on_both_loops
async def test_https_is_spoken_to_a_trusted_engine(certificate: tuple[Path, Path]) -> None:
    """With a context that trusts the engine, bodies of any size cross TLS, on one connection."""
    cert, key = certificate
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    body = random.Random(3).randbytes(2 << 20)

    async def echo(call: Call) -> None:
        await call.answer(call.request.body, framing="chunked")

    async with FakeEngine(echo, ssl_context=server) as engine:
        trusting = ssl.create_default_context(cafile=str(cert))
        upstream = Upstream(engine.url, ssl_context=trusting)
        answers = [await post(upstream, body) for _ in range(2)]
        await upstream.aclose()

        assert [body, body] == answers
        assert 1 == engine.num_opened


@pytest.mark.parametrize(
    ("base_url", "url", "host", "base_path"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", b"127.0.0.1:8000", b""),
        ("http://localhost/", "http://localhost", b"localhost", b""),
        ("http://LOCALHOST:80", "http://localhost", b"localhost", b""),
        ("https://host.example:443/api/", "https://host.example/api", b"host.example", b"/api"),
        ("https://host.example:8443/a/b", "https://host.example:8443/a/b", None, b"/a/b"),
        ("http://[::1]:8000", "http://[::1]:8000", b"[::1]:8000", b""),
        ("http://bücher.example", "http://xn--bcher-kva.example", None, b""),
    ],
)
def test_base_url_is_split(base_url: str, url: str, host: bytes | None, base_path: bytes) -> None:
    """Origin, Host and path prefix come from the base URL, default ports left out."""
    upstream = Upstream(base_url)

    assert (url, base_path) == (upstream.url, upstream.base_path)
    assert (host or upstream.origin.split("//")[1].encode()) == upstream.host_header
    assert url == upstream.origin + base_path.decode()


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "127.0.0.1:8000",
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://host:notaport",
        "http://999.0.0.1",
    ],
)
def test_other_base_urls_are_refused(base_url: str) -> None:
    """What isn't an http(s) URL is refused at once."""
    with pytest.raises(ConfigError, match="expected an engine URL"):
        Upstream(base_url)
