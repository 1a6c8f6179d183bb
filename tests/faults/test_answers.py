"""Engines that answer nonsense: the client gets it or an error, the row is written, strop lives."""

import copy
import json
import logging
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_engine import SSE, Call, FakeEngine
from fake_vllm import FakeVllm
from faults_client import Plan, ask
from faults_report import Reached, scaled
from running import running, settings_for

from strop.proxy import recording
from strop.proxy.alias import Served
from strop.proxy.engines.base import Ask, Capabilities
from strop.proxy.redaction import Redaction
from strop.proxy.store.store import Store
from strop.proxy.wire import sse
from strop.proxy.wire import tap as wire_tap
from strop.proxy.wire.stream_copy import StreamCopy

pytestmark = pytest.mark.faults

QUESTION = Plan({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]})
STREAM = Plan({**QUESTION.fields, "stream": True})
CAPABILITIES = Capabilities(
    token_ids=True, stream_logprobs=True, score_tokens=False, adapters=2, is_local=True
)

CHUNKS: list[Any] = [
    {
        "id": "a",
        "model": "m",
        "prompt_token_ids": [1, 2],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1},
        "choices": [
            {
                "index": 0,
                "delta": {
                    "role": "assistant",
                    "content": "a",
                    "tool_calls": [
                        {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}
                    ],
                },
                "logprobs": {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]},
                "token_ids": [5],
                "finish_reason": None,
            }
        ],
    },
    {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "content": "b",
                    "tool_calls": [{"index": 0, "function": {"arguments": "}"}}],
                },
                "logprobs": {"content": [{"logprob": -1}]},
                "token_ids": [6],
                "finish_reason": "stop",
            }
        ],
        "error": None,
    },
]
WHOLE: Any = {
    "id": "a",
    "prompt_token_ids": [1, 2],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "a",
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
            },
            "text": "a",
            "logprobs": {"content": [{"logprob": -0.5}], "token_logprobs": [-1.0], "tokens": ["a"]},
            "token_ids": [5],
            "finish_reason": "stop",
        }
    ],
}
ODD: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**63, 2**64, 10**30, 1.5, "", "x", "\ud800", "a\0b", "7"),
    *([], {}, [1], [None], ["x"], [1.5], [2**40], {"a": 1}, {"index": 0}, [[[[]]]], float("nan")),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated(value: Any, chance: random.Random) -> Any:
    """Return `value` with a few members replaced, left out or doubled."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 3))):
        path = chance.choice(list(places(value)))
        if not path:
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        action = chance.random()
        if action < 0.7:
            holder[path[-1]] = copy.deepcopy(chance.choice(ODD))
        elif action < 0.85:
            del holder[path[-1]]
        else:
            holder[path[-1]] = [holder[path[-1]], holder[path[-1]]]
    return value


def copied(stream: bytes) -> StreamCopy:
    whole = StreamCopy(len(stream))
    whole.add(stream)
    return whole


def draft(id_: str, chance: random.Random) -> recording.Draft:
    """Return what the relay knows after an engine has answered nonsense."""
    is_stream = chance.random() < 0.6
    if is_stream:
        chunks = [b"data: " + json.dumps(one).encode() for one in mutated(CHUNKS, chance)]
        answer = b"\n\n".join([*chunks, b"data: [DONE]", b""])
    else:
        answer = json.dumps(mutated(WHOLE, chance)).encode()
    if chance.random() < 0.2:
        answer = answer[: chance.randrange(len(answer))]
    fields: dict[str, object] = {"model": "m", "messages": [], "prompt": "", "stream": is_stream}
    return recording.Draft(
        id=id_,
        created_ms=1,
        key_id="local",
        engine="vllm",
        capabilities=CAPABILITIES,
        ask=Ask(chance.choice(("chat", "completions")), b"{}", fields, "m"),
        served=Served("base", "m"),
        state="complete",
        delivered=True,
        status=200,
        error=None,
        answer=b"" if is_stream else answer,
        stream=copied(answer) if is_stream else None,
        ttft_ms=1.0,
        total_ms=1.0,
        overhead_ms=1.0,
        request_id=None,
        session=None,
        redaction=Redaction(),
    )


async def test_whatever_an_engine_answers_is_recorded(tmp_path: Path, reached: Reached) -> None:
    """Members of the wrong type, out of range, doubled, missing or cut off: each makes its row."""
    chance = random.Random(40)
    store = await Store.open(tmp_path / "strop.db", synchronous="normal")
    count = scaled(3000)
    for number in range(count):
        one = draft(f"cmp_{number}", chance)

        await store.commit_completion(partial(recording.complete, one), 1)
    page = await store.list_completions(limit=count)
    await store.close()

    assert count == len(page.data)
    reached(answers=count)


def test_a_stream_of_half_surrogates_is_read_whole() -> None:
    """Some engines escape the two halves of a character in two events."""
    one = draft("cmp_1", random.Random(1))
    halves = [b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"},"token_ids":[1]}]}']
    halves.append(halves[0].replace(b"d83d", b"de00").replace(b"[1]", b"[2]"))
    stream = b"".join(b"data: " + half + b"\n\n" for half in halves)
    ask_ = Ask("chat", b"{}", {"messages": [], "stream": True}, "m")
    whole = msgspec.structs.replace(one, answer=b"", stream=copied(stream), ask=ask_)

    (choice,) = recording.complete(whole).choices

    assert "\N{GRINNING FACE}" == json.loads(choice.message)["content"]
    assert [1, 2] == list(choice.token_ids or ())


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
def test_bytes_that_are_no_text_cost_a_record_only_themselves(is_stream: bool) -> None:
    """As a client's own decoder has it; the snapshot beside them is kept."""
    one = draft("cmp_1", random.Random(1))
    said = b'{"content":"so \xff"}'
    body = b'{"choices":[{"index":0,"message":%b,"delta":%b,"token_ids":[1]}]}' % (said, said)
    ask_ = Ask("chat", b"{}", {"messages": [], "stream": is_stream}, "m")
    stream = copied(sse.event(body)) if is_stream else None

    completion = recording.complete(
        msgspec.structs.replace(one, answer=body, stream=stream, ask=ask_)
    )

    (choice,) = completion.choices
    assert "so \ufffd" == json.loads(choice.message)["content"]
    assert ([1], None) == (list(choice.token_ids or ()), completion.error)


OK_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
NONSENSE: dict[str, bytes] = {
    "no HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "a status beyond those that exist": b"HTTP/1.1 999 Odd\r\ncontent-length: 2\r\n\r\n{}",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nhello",
    "less than announced": OK_HEAD + b"content-length: 10\r\n\r\n{}",
    "more than announced": OK_HEAD + b"content-length: 2\r\n\r\n{}{}{}",
    "two lengths": OK_HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a length and chunks": OK_HEAD
    + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks that are none": OK_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "a control character in a header": OK_HEAD + b"x-a: \x01\r\ncontent-length: 2\r\n\r\n{}",
    "bytes in a header": OK_HEAD + b"x-a: \xff\xfe\r\ncontent-length: 2\r\n\r\n{}",
    "a colon in a name": OK_HEAD + b"x:a: 1\r\n: 2\r\ncontent-length: 2\r\n\r\n{}",
    "a head of 1 MB": OK_HEAD + b"x-a: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "no JSON": OK_HEAD + b"content-length: 5\r\n\r\nhello",
    "JSON that is no object": OK_HEAD + b"content-length: 3\r\n\r\n[1]",
    "JSON 900 deep": OK_HEAD + b"content-length: 1801\r\n\r\n" + b"[" * 900 + b"1" + b"]" * 900,
    "JSON 1,000 deep": OK_HEAD
    + b"content-length: 2042\r\n\r\n"
    + b'{"choices":[{"message":{"x":'
    + b"[" * 1000
    + b"]" * 1000
    + b"}}] }".ljust(14),
    "an empty stream": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"content-length: 0\r\n\r\n",
}


async def test_an_engine_that_speaks_nonsense_breaks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One row each, no lease left, an answer of some kind, and the next request is served."""

    async def handler(call: Call) -> None:
        name = call.request.header("x-nonsense")
        if name in NONSENSE:
            await call.send(NONSENSE[name])
            call.close()
        else:
            await FakeVllm()(call)

    answers = {}
    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        for name in NONSENSE:
            answers[name] = await ask(proxy.url, Plan(QUESTION.fields, {"x-nonsense": name}))
            assert (await ask(proxy.url, QUESTION)).is_answered
        rows = await proxy.rows()
        lost = proxy.services.metrics.registry.get_sample_value("strop_completions_lost_total")

        assert {} == {name: one for name, one in answers.items() if one.status in (0, 500)}
        assert 2 * len(NONSENSE) == len(rows)
        assert 0 == lost
        assert 0 == proxy.services.serving.leases.count("base")
    assert [] == [record.exc_text for record in caplog.records if record.exc_info]


async def test_an_event_without_an_end_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for an event's end, or for the stream's, is given up at a limit."""
    monkeypatch.setattr(wire_tap, "MAX_WAITING_BYTES", 100_000)
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    for first in (b"data: ", end):

        async def handler(call: Call, first: bytes = first) -> None:
            if call.request.method == "GET":
                await FakeVllm()(call)
                return
            await call.head(200, [("content-type", SSE)])
            await call.chunk(first)
            while True:
                await call.chunk(b": " + b"x" * 10_000 + (b"\n\n" if first == end else b""))

        async with (
            FakeEngine(handler) as engine,
            running(settings_for(engine.url), tmp_path / f"home-{len(first)}") as proxy,
        ):
            answer = await ask(proxy.url, STREAM)

            assert b'"upstream_error"' in answer.body
            assert not answer.is_answered
            assert "upstream_error" == (await proxy.row()).completion.state


@pytest.mark.parametrize(
    "models",
    [
        OK_HEAD + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
        OK_HEAD + b"content-length: 200000\r\n\r\n" + b"[" * 200_000,
        OK_HEAD + b"content-length: 16\r\n\r\n" + b'{"data":[[1],2]}',
        OK_HEAD + b"content-length: 21\r\n\r\n" + b'{"data":[{"id":null}]}'[:21],
    ],
    ids=["gzip", "deep", "types", "cut"],
)
async def test_an_engine_that_comes_to_its_senses_is_found(
    models: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its list of models was, the proxy looks again."""
    caplog.set_level(logging.CRITICAL)
    is_sane = False

    async def handler(call: Call) -> None:
        if is_sane:
            await FakeVllm()(call)
        else:
            await call.send(models)

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home", ready=False) as proxy,
    ):
        await engine.until(lambda: len(engine.requests) >= 1)
        refused = await ask(proxy.url, QUESTION)
        is_sane = True
        proxy.services.serving.suspect()
        await proxy.services.serving.wait_until_ready()

        assert 503 == refused.status
        assert (await ask(proxy.url, QUESTION)).is_answered
