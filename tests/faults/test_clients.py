"""Clients that say nothing, too much or nonsense: they get a clear answer, and others theirs."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from faults_client import Answer, Client, Plan, ask
from faults_engine import NUM_TOKENS, WAY_HEADER, FaultyEngine
from faults_report import Reached, scaled
from running import Running, pass_time, running, settings_for
from waiting import until

from strop.proxy.client_connection import ClientConnection

pytestmark = pytest.mark.faults

GOOD = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
START = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
LENGTH = b"content-length: %d\r\n\r\n" % len(GOOD)
QUESTION = Plan({"model": "tiny", "messages": []})
# Reached only where a test lets time pass.
LIMIT_S = 100.0


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """An engine that answers as it is asked to."""
    async with FakeEngine(FaultyEngine(seed=9), reads_body=False) as engine:
        yield engine


@pytest.fixture
async def proxy(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of it."""
    async with running(settings_for(engine.url), tmp_path / "home") as proxy:
        yield proxy


async def tell(url: str, data: bytes) -> Answer:
    """Send bytes as they are, and return what comes back."""
    client = await Client.connect(url)
    answer = Answer()
    try:
        client.send(data)
        with contextlib.suppress(EOFError, OSError):
            await client.read_head(answer)
            await client.read_body(answer)
    finally:
        await client.leave()
    return answer


def num_clients(proxy: Running) -> int:
    return len(proxy.server.server_state.connections)


def num_arriving(proxy: Running) -> int:
    """Return how many requests have begun to come, and not ended."""
    connections = proxy.server.server_state.connections
    return sum(isinstance(one, ClientConnection) and one._is_arriving for one in connections)


async def test_silent_and_slow_clients_hold_up_nobody(
    engine: FakeEngine, tmp_path: Path, reached: Reached
) -> None:
    """Sockets that never send, half heads and bodies that drip: others are served as before.

    What does not come within `server.body_timeout_s` is given up: with a 408 where something came.
    """
    settings = settings_for(engine.url, server={"body_timeout_s": LIMIT_S})
    async with running(settings, tmp_path / "home") as proxy:
        silent = [await Client.connect(proxy.url) for _ in range(scaled(200))]
        half = [await Client.connect(proxy.url) for _ in range(scaled(50))]
        dripping = [await Client.connect(proxy.url) for _ in range(scaled(50))]
        for client in half:
            client.send(START + b"x-half: ")
        for client in dripping:
            client.send(START + LENGTH)

        async def refusal(client: Client) -> Answer:
            answer = Answer()
            await client.read_head(answer)
            await client.read_body(answer)
            return answer

        served = await asyncio.gather(*(ask(proxy.url, QUESTION) for _ in range(scaled(100))))
        await until(lambda: num_arriving(proxy) == len(half) + len(dripping))
        for at in range(2):
            pass_time(0.4 * LIMIT_S)
            for client in dripping:
                client.send(GOOD[at : at + 1])
            # Who is answered later was read later.
            served.append(await ask(proxy.url, QUESTION))
        pass_time(0.4 * LIMIT_S)
        refused = await asyncio.gather(*(refusal(client) for client in (*half, *dripping)))
        closed = [await client.reader.read() for client in silent]

        assert all(answer.is_answered for answer in served)
        assert {408} == {answer.status for answer in refused}
        assert {"body_timeout"} == {json.loads(answer.body)["error"]["code"] for answer in refused}
        assert {b""} == set(closed)
        assert len(served) == len(await proxy.rows())
        for client in (*silent, *half, *dripping):
            await client.leave()
        await until(lambda: num_clients(proxy) <= 1)
        reached(
            silent=len(silent), half_heads=len(half), dripping=len(dripping), served=len(served)
        )


async def test_clients_that_stop_reading_are_cut_off(
    engine: FakeEngine, tmp_path: Path, reached: Reached
) -> None:
    """A JSON answer that is too large for the sockets' buffers is not kept for ever."""
    settings = settings_for(engine.url, server={"stall_timeout_s": LIMIT_S})
    whole = b'{"choices":[],"x":"' + b"x" * 30_000_000 + b'"}'
    async with running(settings, tmp_path / "home") as proxy:
        engine.handler = lambda call: call.answer(whole)
        num_before = len(engine.requests)
        stalled = [await Client.connect(proxy.url) for _ in range(3)]
        for client in stalled:
            client.send(START + LENGTH + GOOD)
        await engine.until(lambda: len(engine.requests) == num_before + len(stalled))

        def are_cut_off() -> bool:
            # Again and again: what the kernel has taken since the last time counts as read.
            pass_time(LIMIT_S)
            return num_clients(proxy) == 0

        await until(are_cut_off)
        read = await ask(proxy.url, QUESTION)
        for client in stalled:
            await client.leave()

        assert read.body == whole
        assert 4 == len(await proxy.rows())
        reached(cut_off=len(stalled))


BROKEN_HTTP: dict[str, tuple[int, bytes]] = {
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello\r\n\r\n"),
    "HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "words": (400, b"hello there\r\n\r\n"),
    "a NUL in a header": (400, START + b"x-a: a\0b\r\n" + LENGTH + GOOD),
    "a bare CR in a header": (400, START + b"x-a: a\rb\r\n" + LENGTH + GOOD),
    "a folded header": (400, START + b"x-a: a\r\n b\r\n" + LENGTH + GOOD),
    "a header of 1 MB": (431, START + b"x-a: " + b"a" * 1_000_000 + b"\r\n" + LENGTH + GOOD),
    "100,000 headers": (431, START + b"x: y\r\n" * 100_000 + LENGTH + GOOD),
    "a path of 1 MB": (431, b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n"),
    "a negative length": (400, START + b"content-length: -5\r\n\r\n" + GOOD),
    "a length in words": (400, START + b"content-length: many\r\n\r\n" + GOOD),
    "two lengths": (400, START + b"content-length: 5\r\n" + LENGTH + GOOD),
    "a length of 4 EB": (413, START + b"content-length: 4611686018427387904\r\n\r\n"),
    "a length beyond integers": (400, START + b"content-length: " + b"9" * 30 + b"\r\n\r\n"),
    "a length and chunks": (
        400,
        START + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunks that are none": (400, START + b"transfer-encoding: chunked\r\n\r\nZZ\r\nhello\r\n"),
    "an unknown encoding": (400, START + b"transfer-encoding: gzip\r\n\r\n" + GOOD),
    "bytes in the path": (400, b"GET /\xff\xfe HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
    "CONNECT": (400, b"CONNECT a:1 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
    "no host": (403, b"GET /health HTTP/1.1\r\n\r\n"),
    "another host": (403, b"GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n"),
}


async def test_what_is_not_good_http_is_a_clear_4xx(proxy: Running) -> None:
    """An OpenAI error object of the proxy's own; nothing is recorded, and others are served."""
    answers = {}
    for name, (_, data) in BROKEN_HTTP.items():
        answers[name] = await tell(proxy.url, data)
        assert (await ask(proxy.url, QUESTION)).is_answered

    expected = {name: status for name, (status, _) in BROKEN_HTTP.items()}
    assert expected == {name: answer.status for name, answer in answers.items()}
    for answer in answers.values():
        assert "proxy" == answer.headers["x-strop-error-source"]
        assert json.loads(answer.body)["error"]["message"]
    assert len(BROKEN_HTTP) == len(await proxy.rows())


def nested(depth: int) -> bytes:
    return b"[" * depth + b"1" + b"]" * depth


def with_field(field: bytes) -> bytes:
    return GOOD[:-1] + b"," + field + b"}"


BAD_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"model=tiny",
    "half of it": GOOD[:-5],
    "more than it": GOOD + b"x",
    "a number": b"7",
    "null": b"null",
    "a NUL byte": GOOD.replace(b"hi", b"h\0i"),
    "no UTF-8": GOOD.replace(b"hi", b"\xff\xfe"),
    "NaN": with_field(b'"temperature":NaN'),
    "beyond a double": with_field(b'"temperature":1e999'),
    "an integer of 5,000 digits": with_field(b'"seed":' + b"9" * 5000),
    "nested 100,000 deep": with_field(b'"tools":' + nested(100_000)),
    "a model nested 1,000 deep": b'{"messages":[],"model":' + nested(1_000) + b"}",
    "a model of 1 MB": b'{"messages":[],"model":"' + b"x" * 1_000_000 + b'"}',
    "a lone surrogate as model": b'{"messages":[],"model":"\\ud800"}',
    "messages that are words": b'{"model":"tiny","messages":"hi"}',
}


async def test_a_body_that_makes_no_sense_is_a_clear_4xx(proxy: Running) -> None:
    """It says what is wrong in a few words, not by sending it all back."""
    answers = {}
    for name, body in BAD_BODIES.items():
        answers[name] = await tell(proxy.url, with_body(body))
        assert (await ask(proxy.url, QUESTION)).is_answered

    assert {} == {n: a.status for n, a in answers.items() if a.status not in (400, 404)}
    assert {} == {n: len(a.body) for n, a in answers.items() if len(a.body) > 1_000}
    assert all(json.loads(answer.body)["error"]["message"] for answer in answers.values())
    assert len(BAD_BODIES) == len(await proxy.rows())


def with_body(body: bytes) -> bytes:
    return START + b"content-length: %d\r\n\r\n" % len(body) + body


ODD_BODIES: dict[str, bytes] = {
    "100 KB of unicode": GOOD.replace(b"hi", "\U0001f600".encode() * 25_000),
    "escaped NULs": GOOD.replace(b"hi", b"\\u0000" * 10),
    "lone surrogates": GOOD.replace(b"hi", b"\\ud800 \\udfff").replace(b"user", b"\\udc00"),
    "messages that are none": b'{"model":"tiny","messages":[1,null,"x",[],{},{"role":[]}]}',
    "nested 900 deep": with_field(b'"tools":' + nested(900)),
    "wrong types": with_field(
        b'"stream":"yes","stream_options":7,"metadata":{"session_id":[1],"user_id":{}},'
        b'"tools":1,"logprobs":{},"n":null,"stop":{"a":[]}'
    ),
    "an integer of 4,000 digits": with_field(b'"seed":' + b"9" * 4000),
    "a session of lone surrogates": with_field(b'"metadata":{"session_id":"\\ud800"}'),
    "a command of lone surrogates": GOOD.replace(b"hi", b"/rl good \\ud800"),
    "a billion choices": with_field(b'"stream":true,"n":1000000000'),
    "minus one choice": with_field(b'"stream":true,"n":-1'),
}


async def test_an_odd_body_is_the_engines_to_judge(proxy: Running) -> None:
    """What is JSON goes on as it is, is recorded, and can be read again."""
    answers = {name: await tell(proxy.url, with_body(body)) for name, body in ODD_BODIES.items()}

    assert {} == {name: answer for name, answer in answers.items() if not answer.is_answered}
    recorded = [row.completion.request for row in await proxy.rows()]
    # The command is answered here.
    assert [body for body in ODD_BODIES.values() if b"/rl" not in body] == recorded


async def test_an_offer_to_upgrade_is_declined(proxy: Running) -> None:
    """The JDK's client sends `Upgrade: h2c` with its first request: it is served in HTTP/1.1."""
    offer = (
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIA\r\n"
    )
    client = await Client.connect(proxy.url)
    answers = [Answer(), Answer(), Answer()]
    client.send(START + offer + LENGTH + GOOD[:10])
    await client.writer.drain()
    client.send(GOOD[10:])
    await client.read_head(answers[0])
    await client.read_body(answers[0])
    client.send(START + LENGTH + GOOD + START + offer + LENGTH + GOOD)
    for answer in answers[1:]:
        await client.read_head(answer)
        await client.read_body(answer)
    await client.leave()

    assert all(answer.is_answered for answer in answers)
    assert [GOOD] * 3 == [row.completion.request for row in await proxy.rows()]


async def test_nonsense_behind_a_request_does_not_mix_with_its_answer(
    engine: FakeEngine, proxy: Running
) -> None:
    """The stream that runs is cut off: an error in the midst of it would be taken for its part."""
    client = await Client.connect(proxy.url)
    answer = Answer()
    body = with_field(b'"stream":true')
    way = WAY_HEADER.encode() + b": slow\r\n"
    client.send(START + way + b"content-length: %d\r\n\r\n" % len(body) + body)
    await client.read_head(answer)
    client.send(b"nonsense\r\n\r\n")
    rest = await client.reader.read()
    await client.leave()

    assert b"HTTP/1.1" not in rest
    assert rest.count(b"yes ") < NUM_TOKENS
    assert ["client_cancelled"] == [row.completion.state for row in await proxy.rows()]


async def test_a_rating_header_of_nonsense_fails_no_request(proxy: Running) -> None:
    """What became of it stands in the answer's headers, whatever it was."""
    for value in (
        b"\xff{",
        b"[" * 20_000,
        b"9" * 5000,
        b"1e999",
        b'{"rating":"good","comment":"\\ud800\\u0000"}',
    ):
        headers = b"x-strop-feedback: " + value + b"\r\nx-strop-feedback-for: \xff\xfe\r\n"

        answer = await tell(proxy.url, START + headers + LENGTH + GOOD)

        assert answer.is_answered
        assert answer.headers["x-strop-feedback-status"].startswith("error ")


async def test_a_session_in_the_path_is_decoded_once(proxy: Running) -> None:
    """A percent sign in its name is its own, and a slash is none of the path's."""
    for name in ("a%252Fb", "a%25b", "%C3%A9"):
        data = START.replace(b"/v1/", f"/s/{name}/v1/".encode()) + LENGTH + GOOD
        assert (await tell(proxy.url, data)).is_answered

    assert ["a%2Fb", "a%b", "é"] == [row.session for row in await proxy.rows()]


async def test_embeddings_end_as_completions_do(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that hangs is a 504, one that stalls midway is cut off, one that dies a 502."""
    limits = {"first_byte_timeout_s": LIMIT_S}
    hang, *others = (
        Plan({}, {WAY_HEADER: way}, path="/v1/embeddings")
        for way in ("hang", "fin_early", "rst", "ok")
    )
    async with running(settings_for(engine.url, engine=limits), tmp_path / "home") as proxy:
        hanging = asyncio.create_task(ask(proxy.url, hang))
        await engine.until(lambda: any(one.path == hang.path for one in engine.requests))
        pass_time(LIMIT_S)
        answers = [await hanging, *[await ask(proxy.url, plan) for plan in others]]

    assert [504, 502, 200, 200] == [answer.status for answer in answers]
    assert [True, True, False, True] == [answer.is_whole for answer in answers]
    assert [] == [
        record for record in caplog.records if record.levelno >= logging.ERROR and record.exc_info
    ]
