"""A completion goes through unchanged, and is in the store before its last byte leaves."""

import asyncio
import gc
import gzip
import hashlib
import json
import re
import sqlite3
import threading
import zlib
from array import array
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from fake_adapters import Gate
from fake_engine import SSE, Call, DisconnectedError, FakeEngine, Unanswered
from fake_vllm import FakeVllm
from running import Running, pass_time, running, settings_for
from swapped import swapped
from waiting import LIMIT_S, until

from strop.proxy import call as relayed
from strop.proxy import heap
from strop.proxy import relay as relay_module
from strop.proxy.upstream.exchange import Exchange

MESSAGES = [{"role": "user", "content": "hi"}]
PARSED = FakeVllm(has_parser=True)


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """An engine that answers as vLLM does."""
    async with FakeEngine(FakeVllm()) as engine:
        yield engine


@pytest.fixture
async def proxy(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of it."""
    async with running(settings_for(engine.url), tmp_path / "home") as proxy:
        yield proxy


def masked(body: bytes) -> bytes:
    """Return an answer without what differs between any two: its time."""
    return re.sub(rb'"created":\d+', b'"created":0', body)


REQUESTS: list[dict[str, Any]] = [
    {},
    {"n": 2, "temperature": 1.0},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 2},
    {"return_token_ids": True},
    {"logprobs": None, "stream_options": {"include_usage": True}},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
]


@pytest.mark.parametrize("handler", [FakeVllm(), PARSED], ids=["plain", "parser"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("fields", REQUESTS, ids=lambda f: ",".join(f) or "bare")
async def test_what_the_engine_sends_unasked_is_what_the_client_gets(
    handler: FakeVllm, stream: bool, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Byte for byte: what strop asks for in addition is taken out again."""
    body = {"model": "tiny", "messages": MESSAGES, "request_id": "r1", "max_tokens": 12, **fields}
    if not stream:
        body.pop("stream_options", None)
    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
        httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as direct,
    ):
        expected = await direct.post("/v1/chat/completions", json={**body, "stream": stream})
        relayed = await proxy.client.post("/v1/chat/completions", json={**body, "stream": stream})

        assert masked(expected.content) == masked(relayed.content)
        assert expected.headers["content-type"] == relayed.headers["content-type"]
        (row,) = await proxy.rows()
        assert all(choice.token_ids for choice in row.completion.choices)
        assert all(
            len(choice.logprobs or ()) == len(choice.token_ids or ())
            for choice in row.completion.choices
        )


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("fields", [{}, {"logprobs": 3}, {"echo": True}, {"prompt": [5, 6]}])
async def test_text_completions_come_through_too(
    stream: bool, fields: dict[str, Any], engine: FakeEngine, proxy: Running
) -> None:
    """Their ids stand inside the choice; with echo strop asks for nothing."""
    body = {"model": "tiny", "prompt": "hi", "request_id": "r1", "stream": stream, **fields}
    async with httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as direct:
        expected = await direct.post("/v1/completions", json=body)
    relayed = await proxy.client.post("/v1/completions", json=body)

    assert masked(expected.content) == masked(relayed.content)
    (choice,) = (await proxy.row()).completion.choices
    assert ("echo" in fields) == (choice.token_ids is None)


async def test_a_token_may_be_called_as_what_is_taken_out(
    engine: FakeEngine, proxy: Running
) -> None:
    """In the logprobs of a text completion tokens are names."""
    said = b'{"choices":[{"index":0,"text":"logprobs","logprobs":%b,"token_ids":%b}]}'
    logprobs = b'{"token_logprobs":[-0.5],"top_logprobs":[{"logprobs":-0.5}]}'

    async def handler(call: Call) -> None:
        await call.answer(said % (logprobs, b"[7]"))

    engine.handler = handler
    answer = await proxy.client.post("/v1/completions", json={"model": "tiny", "prompt": "hi"})

    assert said % (b"null", b"null") == answer.content
    (choice,) = (await proxy.row()).completion.choices
    assert ([7], [-0.5]) == (list(choice.token_ids or ()), list(choice.logprobs or ()))


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("chat/completions", {"messages": MESSAGES, "n": 2}),
        ("completions", {"prompt": ["a", "b"]}),
        ("completions", {"prompt": [[5, 6], [7]], "n": 1}),
        ("completions", {"prompt": [5, 6], "n": 2}),
    ],
    ids=["n", "prompts", "prompts of ids", "n of ids"],
)
async def test_a_stream_goes_on_while_a_choice_of_it_does(
    dialect: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Each of several prompts has choices of its own; what ends the last one waits for its row."""
    is_read = asyncio.Event()

    def event(index: int, reason: str | None) -> bytes:
        said = {"text": "x", "delta": {"content": "x"}, "index": index, "finish_reason": reason}
        return b"data: " + json.dumps({"choices": [said]}).encode() + b"\n\n"

    async def handler(call: Call) -> None:
        # Strop itself asks for something, too.
        if not call.request.target.endswith("?ours"):
            return await FakeVllm()(call)
        await call.head(200, [("content-type", SSE)])
        await call.chunk(event(0, "stop") + event(1, None))
        await is_read.wait()
        await call.chunk(event(1, "stop"))
        return await call.end()

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        asked = {"model": "tiny", "stream": True, **fields}
        async with proxy.client.stream("POST", f"/v1/{dialect}?ours", json=asked) as answer:
            pieces = answer.aiter_bytes()
            async with asyncio.timeout(LIMIT_S):
                first = await anext(pieces)
            is_read.set()
            rest = b"".join([piece async for piece in pieces])

    assert event(0, "stop") + event(1, None) == first
    assert event(1, "stop") == rest


async def test_an_engine_may_give_fewer_choices_than_were_asked_for(tmp_path: Path) -> None:
    """What ends the only one is the end, also without [DONE]; its answer is a whole one."""
    first = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'

    async def handler(call: Call) -> None:
        if call.request.method == "GET":
            return await FakeVllm()(call)
        return await call.stream([first, last])

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url, kind="openai"), tmp_path / "home") as proxy,
    ):
        answer = await proxy.chat(stream=True, n=2)

        assert first + last == answer.content
        assert "complete" == (await proxy.row()).completion.state


async def test_where_nothing_is_injected_the_hash_of_the_stream_is_the_engines(
    tmp_path: Path,
) -> None:
    """Odd spacing, comments, line separators and a missing [DONE] included."""
    stream = (
        b": hello\n\nevent: x\r\n"
        b'data: {"choices": [ {"index": 0, "delta": {"content": "a\xe2\x80\xa8b"}} ]}\r\n\r\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason": "stop"}]}\n\n: bye\n\ntail'
    )

    async def handler(call: Call) -> None:
        if call.request.method == "GET":
            return await FakeVllm()(call)
        await call.stream(stream[i : i + 7] for i in range(0, len(stream), 7))
        return None

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        answer = await proxy.chat(stream=True, logprobs=True, return_token_ids=True)

        assert hashlib.sha256(stream).hexdigest() == hashlib.sha256(answer.content).hexdigest()
        assert "complete" == (await proxy.row()).completion.state


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_completion_is_durable_before_its_last_byte_leaves(
    stream: bool, proxy: Running, tmp_path: Path
) -> None:
    """Whoever holds an answer can rate it: another connection to the file sees it at once."""
    for _ in range(20):
        answer = await proxy.chat(stream=stream)
        with sqlite3.connect(tmp_path / "home" / "strop.db") as other:
            (found,) = other.execute(
                "SELECT count(*) FROM completions WHERE id = ?",
                (answer.headers["x-strop-completion-id"],),
            ).fetchone()
        other.close()

        assert found == 1


async def test_a_record_holds_the_request_the_answer_and_its_snapshot(
    engine: FakeEngine, proxy: Running
) -> None:
    """The ids and logprobs are those that the engine sent."""
    fields = {"temperature": 0.7, "seed": 5, "max_tokens": 6}
    sent = json.dumps({"model": "tiny", "messages": MESSAGES, **fields}, indent=1)
    headers = {"content-type": "application/json", "x-request-id": "mine"}
    answer = await proxy.client.post("/v1/chat/completions", content=sent, headers=headers)
    async with httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as direct:
        asked = {**json.loads(sent), "logprobs": True, "return_token_ids": True}
        expected = (await direct.post("/v1/chat/completions", json=asked)).json()

    row = (await proxy.row()).completion
    assert sent.encode() == row.request
    assert fields == json.loads(row.sampling)
    assert ("tiny", "tiny", "base", "vllm") == (row.model, row.served, row.version, row.engine)
    assert ("mine", answer.json()["id"], 200, True) == (
        row.request_id,
        row.upstream_id,
        row.status,
        row.delivered,
    )
    (choice,) = row.choices
    entries = expected["choices"][0]["logprobs"]["content"]
    assert array("i", expected["prompt_token_ids"]) == row.prompt_ids
    assert array("i", expected["choices"][0]["token_ids"]) == choice.token_ids
    assert array("f", [entry["logprob"] for entry in entries]) == choice.logprobs
    assert answer.json()["choices"][0]["message"] == json.loads(choice.message)
    assert row.total_ms > 0


async def test_headers_cross_as_they_should(engine: FakeEngine, proxy: Running) -> None:
    """The headers that are strop's, the key and the request id stay here; the rest goes on.

    The engine may name its answer by the request id, so it gets one that nobody else sends.
    """
    answer = await proxy.client.post(
        "/v1/chat/completions?api-version=1",
        json={"model": "tiny", "messages": MESSAGES},
        headers={
            "authorization": "Bearer secret",
            "x-request-id": "r",
            "x-strop-session": "s",
            "x-api-key": "secret",
            "cookie": "c=1",
            "referer": f"{proxy.url}/page",
            "x-forwarded-for": "203.0.113.9",
            "x-forwarded-user": "ann@example.com",
            "x-auth-request-email": "ann@example.com",
            "tailscale-user-login": "ann@example.com",
            "cf-connecting-ip": "203.0.113.9",
            "cf-access-jwt-assertion": "ann",
            "remote-email": "ann@example.com",
            "x-authentik-email": "ann@example.com",
            "forwarded": "for=203.0.113.9",
            "via": "1.1 door",
            "traceparent": "00-1-2-01",
            "x-codex-turn-state": "t",
            "connection": "keep-alive, x-hop",
            "x-hop": "1",
        },
    )

    request = engine.requests[-1]
    names = {name for name, _ in request.headers}
    assert request.target == "/v1/chat/completions?api-version=1"
    assert {"traceparent", "x-codex-turn-state", "content-type"} <= names
    assert (
        not {
            "authorization",
            "x-api-key",
            "referer",
            "x-forwarded-for",
            "x-forwarded-user",
            "x-auth-request-email",
            "tailscale-user-login",
            "cf-connecting-ip",
            "cf-access-jwt-assertion",
            "remote-email",
            "x-authentik-email",
            "forwarded",
            "via",
            "x-strop-session",
            "cookie",
            "accept-encoding",
            "x-hop",
        }
        & names
    )
    own = answer.headers["x-strop-completion-id"].removeprefix("cmp_")
    assert [own] == [value for name, value in request.headers if name == "x-request-id"]


async def test_an_engines_error_passes_through_and_is_recorded(
    engine: FakeEngine, proxy: Running
) -> None:
    """Status and words are the engine's own, and nothing says that strop wrote them."""

    async def handler(call: Call) -> None:
        await call.json({"error": {"message": "too long", "code": 400}}, 400)

    engine.handler = handler
    answer = await proxy.chat()

    assert (400, {"error": {"message": "too long", "code": 400}}) == (
        answer.status_code,
        answer.json(),
    )
    assert "x-strop-error-source" not in answer.headers
    row = (await proxy.row()).completion
    assert ("upstream_error", 400, "too long") == (row.state, row.status, row.error)


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress),
        ("GZip", gzip.compress),
        ("deflate", zlib.compress),
        ("zstd", zstandard.compress),
        ("identity", bytes),
        ("", bytes),
    ],
    ids=["gzip", "capitals", "deflate", "zstd", "identity", "none"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_what_an_engine_packs_unasked_is_unpacked(
    stream: bool,
    coding: str,
    packed: Callable[[bytes], bytes],
    engine: FakeEngine,
    tmp_path: Path,
) -> None:
    """The client gets what the engine sends unpacked, without strop's own fields; so the record."""
    body = {"model": "tiny", "messages": MESSAGES, "request_id": "r1", "stream": stream}

    async def packing(call: Call) -> None:
        async with httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as client:
            url, content = call.request.target, call.request.body
            plain = await client.request(call.request.method, url, content=content)
        kind = ("content-type", plain.headers["content-type"])
        await call.head(plain.status_code, [kind, ("Content-Encoding", coding)])
        data = packed(plain.content)
        for at in range(0, len(data), 100):
            await call.chunk(data[at : at + 100])
        await call.end()

    async with (
        FakeEngine(packing) as packer,
        running(settings_for(packer.url), tmp_path / "home") as proxy,
        httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as direct,
    ):
        expected = await direct.post("/v1/chat/completions", json=body)
        answer = await proxy.client.post("/v1/chat/completions", json=body)

        assert masked(expected.content) == masked(answer.content)
        assert "content-encoding" not in answer.headers
        assert all(choice.token_ids for choice in (await proxy.row()).completion.choices)


@pytest.mark.parametrize(
    ("coding", "names"), [("br", "'br'"), ("gzip, gzip", "'gzip, gzip'"), ("gzip", "incorrect")]
)
async def test_what_cannot_be_unpacked_is_a_502_that_says_so(
    coding: str, names: str, engine: FakeEngine, proxy: Running
) -> None:
    """With the engine's address; nothing of it reaches the client."""

    async def handler(call: Call) -> None:
        kind = ("content-type", "application/json")
        await call.answer(b"\x0b\x02\x80", 200, [kind, ("content-encoding", coding)])

    engine.handler = handler
    answer = await proxy.chat()

    assert (502, "proxy") == (answer.status_code, answer.headers["x-strop-error-source"])
    message = answer.json()["error"]["message"]
    assert names in message
    assert engine.url in message
    assert "upstream_error" == (await proxy.row()).completion.state


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_packed_answer_may_be_too_long_to_keep(stream: bool, tmp_path: Path) -> None:
    """A stream is relayed whole, and its record says so; a body would have to be held whole."""
    said = b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}' % bytes(1000).hex().encode()
    whole = b"data: %b\n\n" % said * 2000 + b"data: [DONE]\n\n" if stream else said * 2000

    async def handler(call: Call) -> None:
        if call.request.method == "GET":
            return await FakeVllm()(call)
        kind = ("content-type", SSE if stream else "application/json")
        packed = zstandard.compress(whole)
        return await call.answer(packed, 200, [kind, ("content-encoding", "zstd")])

    async with (
        FakeEngine(handler) as engine,
        running(
            settings_for(engine.url, kind="openai", capture={"max_answer_bytes": 2**20}),
            tmp_path / "home",
        ) as proxy,
    ):
        answer = await proxy.chat(stream=stream)
        row = (await proxy.row()).completion

    if stream:
        assert hashlib.sha256(whole).digest() == hashlib.sha256(answer.content).digest()
        assert ("complete", ()) == (row.state, row.choices)
        assert "longer than capture.max_answer_bytes" in (row.error or "")
    else:
        assert (502, "upstream_error") == (answer.status_code, row.state)
        assert "expected at most 1048576 bytes" in (row.error or "")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_packed_answer_that_is_cut_off_is_no_whole_one(
    stream: bool, engine: FakeEngine, proxy: Running
) -> None:
    """Its framing is whole where the server that packs it has lost the one behind it."""
    said = b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'
    whole = b"data: %b\n\ndata: [DONE]\n\n" % said if stream else said

    async def handler(call: Call) -> None:
        kind = ("content-type", SSE if stream else "application/json")
        await call.answer(gzip.compress(whole)[:-1], 200, [kind, ("content-encoding", "gzip")])

    engine.handler = handler
    answer = await proxy.chat(stream=stream)

    assert (200 if stream else 502) == answer.status_code
    (error,) = answer.content.removeprefix(b"data: ").splitlines()[:1]
    assert "upstream_died" == json.loads(error)["error"]["code"]
    assert "upstream_error" == (await proxy.row()).completion.state


@pytest.mark.parametrize("own", [(), (("x-accel-buffering", "yes"),)], ids=["silent", "said"])
async def test_a_stream_asks_servers_in_front_not_to_gather_it(
    own: tuple[tuple[str, str], ...], engine: FakeEngine, proxy: Running
) -> None:
    """Unless the engine says something of it; what is no stream says nothing."""
    whole = (await proxy.chat()).headers

    async def handler(call: Call) -> None:
        await call.head(200, [("content-type", SSE), *own])
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    engine.handler = handler
    streamed = (await proxy.chat(stream=True)).headers

    assert "x-accel-buffering" not in whole
    assert [dict(own).get("x-accel-buffering", "no")] == streamed.get_list("x-accel-buffering")


@pytest.mark.parametrize("kind", ["Text/Event-Stream", "text/event-stream ;Charset=UTF-8"])
async def test_a_stream_is_one_however_its_media_type_is_written(
    kind: str, engine: FakeEngine, proxy: Running
) -> None:
    """Case and spaces make no difference."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"token_ids":[7]}]}\n\n'

    async def handler(call: Call) -> None:
        await call.head(200, [("content-type", kind)])
        await call.chunk(event + b"data: [DONE]\n\n")
        await call.end()

    engine.handler = handler
    answer = await proxy.chat(stream=True)

    assert event.replace(b"[7]", b"null") + b"data: [DONE]\n\n" == answer.content
    (choice,) = (await proxy.row()).completion.choices
    assert [7] == list(choice.token_ids or ())


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_an_engine_that_dies_before_its_answer_is_a_502(
    way: str, engine: FakeEngine, proxy: Running
) -> None:
    """The error says what happened, and that strop says so."""

    async def handler(call: Call) -> None:
        getattr(call, way)()

    engine.handler = handler
    answer = await proxy.chat()

    assert (502, "proxy") == (answer.status_code, answer.headers["x-strop-error-source"])
    assert "upstream_died" == answer.json()["error"]["code"]
    assert "upstream_error" == (await proxy.row()).completion.state


@pytest.mark.parametrize("way", ["close", "reset", "end"])
async def test_an_engine_that_dies_mid_stream_ends_it_with_an_error_event(
    way: str, engine: FakeEngine, proxy: Running
) -> None:
    """No [DONE]: a client must not take half an answer for a whole one. What came is recorded."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"half"},"token_ids":[7]}]}\n\n'

    async def handler(call: Call) -> None:
        await call.head(200, [("content-type", SSE)])
        await call.chunk(event)
        if way == "end":
            await call.end()
        else:
            getattr(call, way)()

    engine.handler = handler
    answer = await proxy.chat(stream=True)

    relayed, error = answer.content.split(b"\n\n")[:2]
    assert event.replace(b"[7]", b"null").strip() == relayed or way == "reset"
    last = json.loads((error if error else relayed).removeprefix(b"data: "))
    assert "upstream_died" == last["error"]["code"]
    assert b"[DONE]" not in answer.content
    row = (await proxy.row()).completion
    assert "upstream_error" == row.state


async def test_an_error_that_an_engine_ends_its_stream_with_is_no_whole_answer(
    engine: FakeEngine, proxy: Running
) -> None:
    """As vLLM ends it, with [DONE] behind; the client has both, the record what happened."""
    half = b'data: {"choices":[{"index":0,"delta":{"content":"half"},"token_ids":null}]}\n\n'
    end = b'data: {"error":{"message":"out of memory","code":500}}\n\ndata: [DONE]\n\n'

    async def handler(call: Call) -> None:
        await call.head(200, [("content-type", SSE)])
        await call.chunk(half)
        await call.chunk(end)
        await call.end()

    engine.handler = handler
    answer = await proxy.chat(stream=True)

    assert half + end == answer.content
    row = (await proxy.row()).completion
    assert ("upstream_error", False, "out of memory") == (row.state, row.delivered, row.error)


async def test_an_engine_that_says_nothing_is_a_504(engine: FakeEngine, tmp_path: Path) -> None:
    """After `engine.first_byte_timeout_s`."""
    settings = settings_for(engine.url, engine={"first_byte_timeout_s": 0.05})
    async with running(settings, tmp_path / "home") as proxy:
        engine.handler = silent = Unanswered(FakeVllm())
        answer = await proxy.chat()

        assert (504, "upstream_timeout") == (answer.status_code, answer.json()["error"]["code"])
        assert "upstream_timeout" == (await proxy.row()).completion.state
        await silent.left.wait()


async def test_no_engine_is_a_503_and_a_late_one_is_found(tmp_path: Path) -> None:
    """The proxy starts without its engine, says so, and serves once it is there."""
    engine = FakeEngine(FakeVllm())
    await engine.start()
    await engine.stop()
    async with running(settings_for(engine.url), tmp_path / "home", ready=False) as proxy:
        refused = await proxy.chat()
        await engine.start()
        await proxy.services.serving.wait_until_ready()
        served = await proxy.chat()
        await engine.stop()
        unreachable = await proxy.chat()

        assert (503, "engine_not_ready") == (refused.status_code, refused.json()["error"]["code"])
        assert "retry-after" in refused.headers
        assert served.status_code == 200
        assert (502, "upstream_unreachable") == (
            unreachable.status_code,
            unreachable.json()["error"]["code"],
        )
        assert ["complete", "upstream_error"] == [r.completion.state for r in await proxy.rows()]


async def start_and_leave(proxy: Running, engine: FakeEngine, *, stream: bool, read: bool) -> None:
    """Open a request by hand and break it off, after its first event or before any byte."""
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": stream}).encode()
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    num_before = len(engine.requests)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    if read:
        await reader.readuntil(b"data: ")
    else:
        await engine.until(lambda: len(engine.requests) > num_before)
    writer.close()
    await writer.wait_closed()


async def dies(call: Call) -> None:
    """Break an answer off."""
    await call.head(200, [("content-type", SSE)])
    await call.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n')
    call.reset()


async def hangs(call: Call) -> None:
    """Begin an answer, and never end it."""
    await call.head(200, [("content-type", SSE)])
    await call.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n')
    await call.hang()


@pytest.mark.parametrize("leaves", [False, True], ids=["engine dies", "client leaves"])
async def test_what_was_cut_off_is_freed_at_once(
    leaves: bool, engine: FakeEngine, proxy: Running
) -> None:
    """Not when the collector runs next: an answer may have megabytes."""
    engine.handler = hangs if leaves else dies
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        # Three failures would let strop ask the engine itself.
        for _ in range(2):
            if leaves:
                await start_and_leave(proxy, engine, stream=True, read=True)
            else:
                await proxy.chat(stream=True)
        await until(
            lambda: not proxy.services.relay.num_calls and not proxy.server.server_state.tasks
        )
        # No isinstance: some objects of others warn when they are looked at.
        kept = [one for one in gc.get_objects() if type(one) in (relayed.Call, Exchange)]
    finally:
        gc.enable()
        gc.unfreeze()

    assert [] == kept


async def test_the_memory_that_calls_took_goes_back_once_none_is_left(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not beside one, and not again until there was another."""
    num_calls: list[int] = []
    is_back, loop = asyncio.Event(), asyncio.get_running_loop()

    def trim() -> bool:
        num_calls.append(it.services.relay.num_calls)
        loop.call_soon_threadsafe(is_back.set)
        return True

    async def slow(call: Call) -> None:
        # The sweeper, of the same loop, is due many times before it.
        await asyncio.sleep(0.1)
        await FakeVllm()(call)

    monkeypatch.setattr(relay_module, "SWEEP_INTERVAL_S", 0.001)
    monkeypatch.setattr(heap, "trim", trim)
    engine.handler = slow
    async with running(settings_for(engine.url), tmp_path / "home") as it:
        await it.chat()
        await is_back.wait()
        await asyncio.sleep(0.05)

    assert [0] == num_calls


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_client_that_leaves_before_the_first_byte_cancels_the_engine(
    stream: bool, engine: FakeEngine, proxy: Running
) -> None:
    """JSON as well as streams, from the first moment."""
    engine.handler = silent = Unanswered(FakeVllm())
    await start_and_leave(proxy, engine, stream=stream, read=False)

    row = (await proxy.row()).completion
    assert ("client_cancelled", False) == (row.state, row.delivered)
    await silent.left.wait()


async def test_a_client_that_leaves_mid_stream_cancels_the_engine_and_keeps_what_there_was(
    engine: FakeEngine, proxy: Running
) -> None:
    """The ids that had come are in the record."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"half"},"token_ids":[7]}]}\n\n'
    is_gone = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.head(200, [("content-type", SSE)])
        await call.chunk(event)
        await call.hang()
        is_gone.set()

    engine.handler = handler
    await start_and_leave(proxy, engine, stream=True, read=True)
    await is_gone.wait()

    row = (await proxy.row()).completion
    assert "client_cancelled" == row.state
    assert {"role": "assistant", "content": "half"} == json.loads(row.choices[0].message)
    assert array("i", [7]) == row.choices[0].token_ids


async def test_a_client_may_leave_while_what_the_engine_lost_is_loaded_for_it(
    tmp_path: Path,
) -> None:
    """The engine's 404 was not for it: it is nobody's error."""
    loading = Gate()
    # Too seldom to find out before the request does.
    async with swapped(tmp_path / "home", health_interval_s=3600) as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")
        it.fake.restart()
        it.fake.before_load = loading
        connections = it.proxy.server.server_state.connections
        await start_and_leave(it.proxy, it.engine, stream=False, read=False)
        await loading.reached.wait()
        await until(lambda: not connections)
        loading.opened.set()

        row = (await it.proxy.row()).completion

    assert ("client_cancelled", False) == (row.state, row.delivered)


async def test_with_finish_the_engine_goes_on_without_its_client(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """The whole answer is recorded, as not delivered."""
    gate = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 2:
            await gate.wait()

    settings = settings_for(engine.url, capture={"on_disconnect": "finish"})
    async with running(settings, tmp_path / "home") as proxy:
        engine.handler = FakeVllm(before_event=wait)
        await start_and_leave(proxy, engine, stream=True, read=True)
        await until(lambda: not proxy.server.server_state.connections)
        gate.set()

        row = (await proxy.row()).completion
        assert ("complete", False) == (row.state, row.delivered)


async def test_stopping_cuts_what_the_drain_did_not_wait_for_and_records_it(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """The client is told; the row says `shutdown`."""
    settings = settings_for(engine.url, server={"drain_s": 0.0})
    home = tmp_path / "home"
    async with running(settings, home) as proxy:
        engine.handler = Call.hang
        waiting = asyncio.create_task(proxy.chat())
        await engine.until(lambda: proxy.services.relay.num_calls == 1)
        proxy.server.should_exit = True
        answer = await waiting

        assert (503, "shutting_down") == (answer.status_code, answer.json()["error"]["code"])
    with sqlite3.connect(home / "strop.db") as database:
        states = database.execute("SELECT state FROM completions").fetchall()
    database.close()
    assert [("shutdown",)] == states


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_an_answer_that_is_whole_when_the_drain_ends_is_given(
    stream: bool, engine: FakeEngine, tmp_path: Path
) -> None:
    """It only waits for the disk; the row says that it was delivered."""
    settings = settings_for(engine.url, server={"drain_s": 0.0})
    async with running(settings, tmp_path / "home") as proxy:
        disk = threading.Event()
        writing = proxy.services.store._writer.submit(lambda _connection: disk.wait())
        asking = asyncio.create_task(proxy.chat(stream=stream))
        calls = proxy.services.relay._ledger
        await until(lambda: any(one.state for one in calls.calls))
        (task,) = proxy.server.server_state.tasks
        proxy.server.should_exit = True
        await until(task.cancelling)
        disk.set()
        await writing
        answer = await asking

        assert 200 == answer.status_code
        assert b"shutting_down" not in answer.content


async def test_who_stops_strop_twice_does_not_wait_for_the_disk(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """What waits for its record is told."""
    settings = settings_for(engine.url, server={"drain_s": 0.0})
    async with running(settings, tmp_path / "home") as proxy:
        disk = threading.Event()
        writing = proxy.services.store._writer.submit(lambda _connection: disk.wait())
        asking = asyncio.create_task(proxy.chat())
        await until(lambda: any(one.state for one in proxy.services.relay._ledger.calls))
        (task,) = proxy.server.server_state.tasks
        proxy.server.should_exit = True
        await until(task.cancelling)
        await asyncio.sleep(0)
        task.cancel()
        try:
            answer = await asking
        finally:
            disk.set()
            await writing

        assert (503, "shutting_down") == (answer.status_code, answer.json()["error"]["code"])


async def test_a_draining_proxy_takes_nothing_new(proxy: Running) -> None:
    """On a connection that was open before."""
    proxy.services.relay.is_draining = True
    answer = await proxy.chat()

    assert (503, "shutting_down") == (answer.status_code, answer.json()["error"]["code"])
    assert [] == await proxy.rows()


@pytest.mark.parametrize("mode", ["best_effort", "required"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_store_that_fails_loses_answers_only_where_that_is_allowed(
    mode: str, stream: bool, engine: FakeEngine, tmp_path: Path
) -> None:
    """best_effort serves and counts the loss; required withholds the end and then refuses."""
    settings = settings_for(engine.url, capture={"mode": mode, "commit_timeout_s": 0.1})
    async with running(settings, tmp_path / "home") as proxy:
        lock = sqlite3.connect(tmp_path / "home" / "strop.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        answer = await proxy.chat(stream=stream)
        await until(lambda: not proxy.services.relay.num_calls)
        later = await proxy.chat(stream=stream)
        lock.execute("ROLLBACK")
        lock.close()

        if mode == "best_effort":
            assert (200, 200) == (answer.status_code, later.status_code)
            assert not stream or answer.content.endswith(b"data: [DONE]\n\n")
        else:
            assert b'"store_unavailable"' in answer.content
            assert b"[DONE]" not in answer.content
            assert (503, "store_unavailable") == (later.status_code, later.json()["error"]["code"])
        lost = proxy.services.metrics.registry.get_sample_value("strop_completions_lost_total")
        assert lost is not None
        assert lost >= 1
        await until(lambda: proxy.services.store.health.ok)
        assert 200 == (await proxy.chat()).status_code


@pytest.mark.parametrize("mode", ["best_effort", "required"])
async def test_a_store_that_is_too_slow_has_failed_until_it_is_not(
    mode: str, engine: FakeEngine, tmp_path: Path
) -> None:
    """One answer waits for it, and is recorded late; the next one is served or refused at once."""
    settings = settings_for(engine.url, capture={"mode": mode, "commit_timeout_s": 0.1})
    async with running(settings, tmp_path / "home") as proxy:
        store, disk = proxy.services.store, threading.Event()
        writing = store._writer.submit(lambda _connection: disk.wait())
        answer = await proxy.chat()
        health = store.health
        later = await proxy.chat()
        disk.set()
        await writing
        await until(lambda: store.health.ok)
        num_rows = len(await proxy.rows())

    assert "longer than capture.commit_timeout_s = 0.1 s" in str(health.reason)
    expected, num_expected = ((200, 200), 2) if mode == "best_effort" else ((503, 503), 1)
    assert expected == (answer.status_code, later.status_code)
    assert num_expected == num_rows
    if mode == "required":
        assert "2" == answer.headers["retry-after"] == later.headers["retry-after"]


async def test_the_admin_key_stays_here_where_callers_keys_are_passed_on(tmp_path: Path) -> None:
    """A service gets its callers' keys, but never the one that opens this machine's /admin."""
    async with (
        FakeEngine(FakeVllm()) as service,
        running(settings_for(service.url, kind="openai"), tmp_path / "home") as proxy,
    ):
        admin_key = (tmp_path / "home" / "admin.key").read_text().strip()
        given = []
        for key in (admin_key, "theirs"):
            for path, body in (
                ("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES}),
                ("/v1/embeddings", {"model": "tiny", "input": "a"}),
            ):
                headers = {"authorization": f"Bearer {key}"}
                await proxy.client.post(path, json=body, headers=headers)
                given.append(dict(service.requests[-1].headers).get("authorization"))

    assert [None, None, "Bearer theirs", "Bearer theirs"] == given


async def test_what_is_acknowledged_survives_a_power_cut_unless_told_otherwise(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """SQLite's FULL is 2, its NORMAL 1."""
    found = []
    for number, capture in enumerate(({}, {"synchronous": "NORMAL"})):
        settings = settings_for(engine.url, capture=capture)
        async with running(settings, tmp_path / str(number)) as proxy:
            writer = proxy.services.store._writer
            asked = writer.submit(lambda c: c.execute("PRAGMA synchronous").fetchone()[0])
            found.append(await asked)

    assert [2, 1] == found


async def test_sampled_tokens_are_counted(proxy: Running) -> None:
    """Those that the engine gave ids of."""
    await proxy.chat(max_tokens=5)
    await proxy.chat(max_tokens=7, stream=True)

    num = sum(len(c.token_ids or ()) for row in await proxy.rows() for c in row.completion.choices)
    counted = proxy.services.metrics.registry.get_sample_value("strop_sampled_tokens_total")
    assert 0 < num == counted


async def test_a_version_is_pinned_by_its_name(proxy: Running) -> None:
    """`<name>@base`; the answer says which version served."""
    answer = await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny@base", "messages": MESSAGES}
    )

    assert (200, "base") == (answer.status_code, answer.headers["x-strop-adapter"])
    row = (await proxy.row()).completion
    assert ("tiny@base", "tiny") == (row.model, row.served)


async def test_an_unknown_model_is_a_404_that_lists_the_known_ones(proxy: Running) -> None:
    """Nothing reaches the engine, and nothing is recorded."""
    answer = await proxy.client.post(
        "/v1/chat/completions", json={"model": "x", "messages": MESSAGES}
    )

    assert (404, "model_not_found") == (answer.status_code, answer.json()["error"]["code"])
    assert "tiny, tiny@base" in answer.json()["error"]["message"]
    assert [] == await proxy.rows()


@pytest.mark.parametrize(
    ("path", "content", "code", "param"),
    [
        ("/v1/chat/completions", b"", "invalid_request", None),
        ("/v1/chat/completions", b"{", "invalid_request", None),
        ("/v1/chat/completions", b"[]", "invalid_request", None),
        ("/v1/chat/completions", b'{"model":"tiny"}', "invalid_request", "messages"),
        ("/v1/chat/completions", b'{"model":"tiny","messages":"x"}', "invalid_request", "messages"),
        ("/v1/chat/completions", b'{"messages":[]}', "model_not_found", "model"),
        ("/v1/chat/completions", b'{"model":7,"messages":[]}', "model_not_found", "model"),
        ("/v1/completions", b'{"model":"tiny"}', "invalid_request", "prompt"),
        (
            "/v1/chat/completions",
            b'{"model":"tiny","messages":[],"lora_request":{"path":"/etc"}}',
            "invalid_request",
            "lora_request",
        ),
    ],
)
async def test_bad_input_is_an_error_that_names_the_field(
    path: str, content: bytes, code: str, param: str | None, proxy: Running
) -> None:
    """An OpenAI error object of ours; nothing is recorded, others are served as before."""
    answer = await proxy.client.post(path, content=content)

    error = answer.json()["error"]
    assert (code, param, "proxy") == (
        error["code"],
        error["param"],
        answer.headers["x-strop-error-source"],
    )
    assert [] == await proxy.rows()
    assert 200 == (await proxy.chat()).status_code


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_huge_body_is_refused(framing: str, engine: FakeEngine, tmp_path: Path) -> None:
    """Before it is read to its end, however it is framed."""
    settings = settings_for(engine.url, server={"max_body_bytes": 2048})
    async with running(settings, tmp_path / "home") as proxy:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(64):
                yield b"x" * 1024

        content = pieces() if framing == "chunked" else b"x" * 65536
        answer = await proxy.client.post("/v1/chat/completions", content=content)

        assert (413, "body_too_large") == (answer.status_code, answer.json()["error"]["code"])


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/feedback"]
)
async def test_a_compressed_body_is_refused_by_name(path: str, proxy: Running) -> None:
    """415, with what would be taken (RFC 9110, section 15.5.16); the connection serves on."""
    content = gzip.compress(b'{"model": "tiny"}')

    answer = await proxy.client.post(path, content=content, headers={"content-encoding": "GZip"})
    plain = [
        await proxy.client.post(path, content=b"{}", headers={"content-encoding": none})
        for none in ("Identity", "")
    ]

    assert (415, "identity") == (answer.status_code, answer.headers["accept-encoding"])
    message = answer.json()["error"]["message"]
    assert "expected a request body without a Content-Encoding, got 'GZip'" in message
    assert [400, 400] == [one.status_code for one in plain]
    assert 200 == (await proxy.chat()).status_code


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback", "/v1/embeddings"])
async def test_a_body_that_does_not_come_is_a_408(
    path: str, engine: FakeEngine, tmp_path: Path
) -> None:
    """After `server.body_timeout_s`, wherever it was to go."""
    settings = settings_for(engine.url, server={"body_timeout_s": 10.0})
    async with running(settings, tmp_path / "home") as proxy:
        host, port = proxy.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n"
        writer.write(head.encode() + b"{")
        await until(lambda: proxy.server.server_state.tasks)
        pass_time(10.0)
        answer = await reader.readuntil(b"\r\n")
        writer.close()
        await writer.wait_closed()

        assert answer.startswith(b"HTTP/1.1 408 ")


async def test_embeddings_are_passed_through_and_not_recorded(
    engine: FakeEngine, proxy: Running
) -> None:
    """Bytes both ways, compressed ones too: the engine may know how."""
    codings = []

    async def handler(call: Call) -> None:
        codings.append(call.request.header("content-encoding"))
        await call.answer(b'{ "you": ' + call.request.body + b"}", 201)

    engine.handler = handler
    answer = await proxy.client.post("/v1/embeddings", content=b'{"input": "x"}')
    zipped = {"content-encoding": "gzip"}
    unread = await proxy.client.post("/v1/embeddings", content=b"\x1f\x8b", headers=zipped)

    assert (201, b'{ "you": {"input": "x"}}') == (answer.status_code, answer.content)
    assert b'{ "you": \x1f\x8b}' == unread.content
    assert [None, "gzip"] == codings
    assert [] == await proxy.rows()


async def test_embeddings_go_under_the_engines_own_name_for_its_base(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """Where they ask for it by strop's; all else goes as it came, byte for byte."""
    came: list[bytes] = []

    async def handler(call: Call) -> None:
        came.append(call.request.body)
        await call.json({"object": "list", "data": []})

    sent = [
        b'{ "input": "x", "model": "nice" }',
        b'{"model": "nice@base", "input": 123456789012345678901234567890}',
        b'{ "model": "nice@v1" }',
        b'{ "model": "tiny" }',
        b'{ "model": "its-embedder" }',
        b'{ "model": ["nice"] }',
        b'[ "nice" ]',
        b"nice",
    ]
    settings = settings_for(engine.url, model={"name": "nice"})
    async with running(settings, tmp_path / "home") as proxy:
        engine.handler = handler
        for body in sent:
            assert 200 == (await proxy.client.post("/v1/embeddings", content=body)).status_code

    assert [
        b'{"input":"x","model":"tiny"}',
        b'{"model":"tiny","input":123456789012345678901234567890}',
        *sent[2:],
    ] == came


async def test_the_engines_own_name_may_ask_for_its_base_too(
    engine: FakeEngine, proxy: Running
) -> None:
    """As chats do; what only speaks of it goes as it came."""
    came: list[bytes] = []

    async def handler(call: Call) -> None:
        came.append(call.request.body)
        await call.json({"object": "list", "data": []})

    engine.handler = handler
    spoken_of = b'{ "model": "tiny", "input": "tiny@base" }'
    for body in (b'{ "model": "tiny@base" }', spoken_of):
        assert 200 == (await proxy.client.post("/v1/embeddings", content=body)).status_code

    assert [b'{"model":"tiny"}', spoken_of] == came


async def test_embeddings_wait_for_the_engine_to_say_its_models(tmp_path: Path) -> None:
    """Before, nobody knows what it calls its base; as for a completion, that is a 503."""
    async with running(settings_for("http://127.0.0.1:9"), tmp_path / "home", ready=False) as proxy:
        answer = await proxy.client.post("/v1/embeddings", json={"model": "m", "input": "x"})

    assert (503, "engine_not_ready") == (answer.status_code, answer.json()["error"]["code"])


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/audio/speech", "/v1", "/invocations", "/adapters", "/x"]
)
async def test_what_is_not_allowed_is_a_404(path: str, engine: FakeEngine, proxy: Running) -> None:
    """An engine's admin routes can't be reached through here."""
    num_before = sum(r.method == "POST" for r in engine.requests)
    answer = await proxy.client.post(path, json={})

    assert (404, "not_found") == (answer.status_code, answer.json()["error"]["code"])
    assert num_before == sum(r.method == "POST" for r in engine.requests)


async def test_without_capture_nothing_is_recorded(engine: FakeEngine, tmp_path: Path) -> None:
    """`capture.mode = "off"` relays only."""
    async with running(
        settings_for(engine.url, capture={"mode": "off"}), tmp_path / "home"
    ) as proxy:
        answer = await proxy.chat(stream=True)

        assert answer.content.endswith(b"data: [DONE]\n\n")
        assert [] == await proxy.rows()


async def test_the_callers_key_goes_on_only_to_an_openai_engine(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """And only where it isn't strop's own."""
    body = {"model": "tiny", "messages": MESSAGES}
    seen = []
    for server in ({}, {"client_keys": ("a-client-key",)}):
        async with running(
            settings_for(engine.url, kind="openai", server=server), tmp_path / "home"
        ) as proxy:
            headers = {"authorization": "Bearer a-client-key"}
            await proxy.client.post("/v1/chat/completions", json=body, headers=headers)
            seen.append(engine.requests[-1].header("authorization"))

    assert ["Bearer a-client-key", None] == seen


async def test_a_client_that_stops_reading_is_given_up(engine: FakeEngine, tmp_path: Path) -> None:
    """After `server.stall_timeout_s`; others are served meanwhile."""

    async def handler(call: Call) -> None:
        if call.request.method == "GET":
            return await FakeVllm()(call)
        if b"flood" not in call.request.body:
            return await FakeVllm()(call)
        await call.head(200, [("content-type", SSE)])
        try:
            while True:
                await call.chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n' * 2000)
        except DisconnectedError:
            return None

    settings = settings_for(engine.url, server={"stall_timeout_s": 0.2})
    async with running(settings, tmp_path / "home") as proxy:
        engine.handler = handler
        host, port = proxy.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps(
            {"model": "tiny", "messages": [{"role": "user", "content": "flood"}], "stream": True}
        )
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body.encode())
        )
        await engine.until(lambda: any(b"flood" in r.body for r in engine.requests))
        served = await proxy.chat()

        assert 200 == served.status_code
        rows = await proxy.rows()
        assert ["client_cancelled", "complete"] == sorted(r.completion.state for r in rows)
        writer.close()
