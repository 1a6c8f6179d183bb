"""Control calls, over real sockets: what is sent, what comes back, what is said where none does.

What engines are asked, and what they answer to that, is in the tests of their drivers.
"""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from exchanges import ok, serving
from fake_engine import Call, FakeEngine, Framing, Handler
from loops import on_both_loops
from waiting import LIMIT_S

from strop.proxy.engines.calls import MAX_ANSWER_BYTES, Calls, credentials
from strop.proxy.errors import EngineNotReady, UpstreamError, UpstreamUnreachable
from strop.proxy.upstream.upstream import Upstream

GZIP = [("content-type", "application/json"), ("content-encoding", "gzip")]


@asynccontextmanager
async def calls_to(
    handler: Handler, key: str = ""
) -> AsyncIterator[tuple[FakeEngine, Upstream, Calls]]:
    """Run an engine and the calls to it; no connection may be left at the end."""
    async with serving(handler) as (engine, upstream):
        yield engine, upstream, Calls(upstream, credentials(key))


@on_both_loops
async def test_a_call_is_sent_as_json_and_its_answer_comes_whole() -> None:
    """With the key, framed once, and with nothing that asks for a packed answer."""

    async def handler(call: Call) -> None:
        await call.answer(b'{"a":1}', 201, [("Content-Type", "application/json"), ("X-A", "b")])

    async with calls_to(handler, "secret") as (engine, upstream, calls):
        answer = await calls.ask("POST", "/v1/x", {"b": "ü"})

        assert (201, {"a": 1}, "b") == (answer.status_code, answer.json(), answer.headers["x-a"])
        assert 1 == upstream.num_idle
    (request,) = engine.requests
    assert ("POST", "/v1/x") == (request.method, request.target)
    assert '{"b":"ü"}'.encode() == request.body
    expected = {
        "host": f"127.0.0.1:{engine.port}",
        "user-agent": "strop",
        "accept-encoding": "identity",
        "authorization": "Bearer secret",
        "content-type": "application/json",
        "content-length": "10",
    }
    assert expected == dict(request.headers)
    assert len(expected) == len(request.headers)


@on_both_loops
async def test_a_call_goes_below_the_path_of_the_engine() -> None:
    """And comes from there, by what an error says."""

    async def handler(call: Call) -> None:
        await call.json({"error": "no"}, 404)

    async with FakeEngine(handler) as engine:
        upstream = Upstream(f"{engine.url}/gateway/a%20b/")
        with pytest.raises(UpstreamError, match=r"GET .*/gateway/a%20b/v1/models to be answered"):
            await Calls(upstream, []).must("GET", "/v1/models")
        await upstream.aclose()

    assert "/gateway/a%20b/v1/models" == engine.requests[0].target


@on_both_loops
async def test_content_goes_as_it_is_and_a_call_needs_none() -> None:
    """Without a type; one that could have some says that there is none."""
    async with calls_to(ok) as (engine, _, calls):
        await calls.ask("POST", "/", content=b"\0GGUF")
        await calls.ask("POST", "/")
        await calls.ask("GET", "/")

    sent = [(one.body, one.header("content-length")) for one in engine.requests]
    assert [(b"\0GGUF", "5"), (b"", "0"), (b"", None)] == sent
    assert [None] * 3 == [one.header("content-type") for one in engine.requests]


@on_both_loops
async def test_an_answer_may_have_no_body() -> None:
    """As where only its status is asked for, whatever it announces."""

    async def handler(call: Call) -> None:
        await call.head(404, framing="length", length=10)

    async with calls_to(handler) as (_, _, calls):
        answer = await calls.ask("HEAD", "/api/blobs/x")

    assert (404, b"") == (answer.status_code, answer.content)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@on_both_loops
async def test_an_answer_may_end_in_any_way(framing: Framing) -> None:
    """By its length, with its last chunk, or with the connection; packed, though nobody asked."""

    async def handler(call: Call) -> None:
        await call.answer(gzip.compress(b'{"a":1}'), headers=GZIP, framing=framing)

    async with calls_to(handler) as (_, _, calls):
        answer = await calls.ask("GET", "/")

    assert {"a": 1} == answer.json()


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


async def not_packed(call: Call) -> None:
    await call.answer(b"no gzip", headers=GZIP)


async def packed_and_cut_short(call: Call) -> None:
    await call.answer(gzip.compress(b"{}")[:-1], headers=GZIP)


@pytest.mark.parametrize(
    ("handler", "came"),
    [
        (close, "the end of the connection"),
        (reset, "a broken connection"),
        (garbage, "isn't HTTP/1.1"),
        (cut_short, "the end of the connection"),
        (not_packed, "decompressing"),
        (packed_and_cut_short, "inside its content coding"),
    ],
)
@on_both_loops
async def test_a_broken_answer_is_none(handler: Handler, came: str) -> None:
    """Whether the engine broke it or a proxy before it; the address and the reason are said."""
    async with calls_to(handler) as (_, _, calls):
        with pytest.raises(UpstreamUnreachable) as caught:
            await calls.ask("GET", "/v1/models")

    message = caught.value.message
    assert f" from {calls.url}/v1/models" in message
    assert came in message
    assert 1 == message.count("expected")


@on_both_loops
async def test_an_answer_in_an_unknown_coding_is_refused() -> None:
    """It isn't taken for what it says once it is unpacked; nobody waits for its end."""

    async def handler(call: Call) -> None:
        await call.head(200, [("content-encoding", "br")])
        await call.hang()

    async with calls_to(handler) as (engine, upstream, calls):
        with pytest.raises(UpstreamError, match=r"content coding 'br'"):
            await calls.ask("GET", "/v1/models", timeout_s=LIMIT_S)

        await engine.until(lambda: engine.num_open == 0)
        assert 0 == upstream.num_connections


async def no_head(call: Call) -> None:
    await call.hang()


async def no_body(call: Call) -> None:
    await call.head(200)
    await call.hang()


async def no_end(call: Call) -> None:
    await call.head(200)
    while True:
        await call.chunk(b" ")
        await asyncio.sleep(0)


@pytest.mark.parametrize("handler", [no_head, no_body, no_end])
@on_both_loops
async def test_an_answer_has_to_be_whole_in_time(handler: Handler) -> None:
    """One that goes on for ever is none; the engine sees that nobody waits any longer."""
    async with calls_to(handler) as (engine, upstream, calls):
        with pytest.raises(
            UpstreamUnreachable, match=rf"^expected an answer from {calls.url}/x, got: none within"
        ):
            await calls.ask("GET", "/x", timeout_s=0.05)

        await engine.until(lambda: engine.num_open == 0)
        assert 0 == upstream.num_connections


@on_both_loops
async def test_an_answer_has_a_greatest_length() -> None:
    """Beyond, the engine is there, but what it says is nothing that was asked for."""

    async def handler(call: Call) -> None:
        await call.head(200)
        await call.chunk(bytes(MAX_ANSWER_BYTES + 1))
        await call.hang()

    async with calls_to(handler) as (engine, _, calls):
        with pytest.raises(
            UpstreamError, match=rf"at most {MAX_ANSWER_BYTES} bytes from {calls.url}/x"
        ) as caught:
            await calls.ask("GET", "/x", timeout_s=LIMIT_S)

        assert UpstreamError is type(caught.value)
        await engine.until(lambda: engine.num_open == 0)


@on_both_loops
async def test_an_engine_that_cannot_be_reached_is_said_to_be_so() -> None:
    """Be it that nothing listens there, or that what does says nothing; no longer than it takes."""
    nobody = Calls(Upstream("http://127.0.0.1:1"), [])
    with pytest.raises(UpstreamUnreachable, match=rf"expected an engine at {nobody.url}, got: "):
        await nobody.ask("GET", "/")

    async with FakeEngine(ok) as engine:
        url = engine.url.replace("http:", "https:")
        silent = Calls(Upstream(url, connect_timeout_s=0.05), [])
        with pytest.raises(UpstreamUnreachable, match=r"no connection within 0\.05 s"):
            await silent.ask("GET", "/", timeout_s=LIMIT_S)
        patient = Calls(Upstream(url, connect_timeout_s=LIMIT_S), [])
        with pytest.raises(UpstreamUnreachable, match=r"none within 0\.05 s"):
            await patient.ask("GET", "/", timeout_s=0.05)
        await engine.until(lambda: engine.num_open == 0)


@on_both_loops
async def test_a_call_ends_when_strop_does() -> None:
    """It doesn't hang once the connections are closed, nor is another opened."""
    async with calls_to(no_head) as (engine, upstream, calls):
        asking = asyncio.create_task(calls.ask("GET", "/"))
        await engine.until(lambda: len(engine.requests) == 1)
        await upstream.aclose()

        with pytest.raises(UpstreamUnreachable, match="given up"):
            await asking
        with pytest.raises(UpstreamUnreachable, match="strop is stopping"):
            await calls.ask("GET", "/")
        assert 1 == engine.num_opened


@on_both_loops
async def test_a_call_that_is_cancelled_leaves_nothing() -> None:
    """The cancellation stays one, and the engine sees the end."""
    async with calls_to(no_body) as (engine, upstream, calls):
        asking = asyncio.create_task(calls.ask("GET", "/"))
        await engine.until(lambda: len(engine.requests) == 1)
        asking.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asking
        await engine.until(lambda: engine.num_open == 0)
        assert 0 == upstream.num_connections


@on_both_loops
async def test_a_call_on_a_connection_that_was_closed_is_sent_again() -> None:
    """Once, on a new one: servers close what is idle, and one may do so in that very moment."""

    async def handler(call: Call) -> None:
        if call.connection == 0 and len(engine.requests) == 2:
            call.close()
        else:
            await ok(call)

    async with calls_to(handler) as (engine, _, calls):
        answers = [await calls.ask("POST", "/", {"n": n}) for n in range(2)]

    assert [{"ok": True}] * 2 == [one.json() for one in answers]
    assert [{"n": 0}, {"n": 1}, {"n": 1}] == [one.json() for one in engine.requests]
    assert 2 == engine.num_opened


@pytest.mark.parametrize("key", ["1\r\ny: 2", "1\n", "\0"])
@on_both_loops
async def test_a_key_that_would_break_its_line_is_not_sent(key: str) -> None:
    """It is an error like any other of the engine's, and isn't shown."""
    async with calls_to(ok, key) as (engine, _, calls):
        with pytest.raises(UpstreamUnreachable, match=r"engine\.key .* without CR, LF") as caught:
            await calls.ask("GET", "/")

    assert 0 == engine.num_opened
    assert key not in caught.value.message


@pytest.mark.parametrize("status", [200, 404])
@on_both_loops
async def test_who_has_no_list_of_models_may_be_named_by_either_setting(status: int) -> None:
    """The server may be one of several."""

    async def handler(call: Call) -> None:
        await call.answer(b"<html>", status, [("content-type", "text/html")])

    async with calls_to(handler) as (_, _, calls):
        with pytest.raises(EngineNotReady, match=r"check engine\.url \(or engine\.replicas\)"):
            await calls.list_models()
