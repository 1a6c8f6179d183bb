"""What Ollama would refuse of a chat, or pass over, is said to it in its own way."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import SSE, Call, FakeEngine
from fake_ollama import FakeOllama, base_of
from running import Running, running, settings_for
from waiting import LIMIT_S

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
USER = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
HISTORY: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "done"}]},
    {"role": "assistant", "content": None, "reasoning_content": "hm"},
    {"role": "user", "content": "c"},
]


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """An Ollama with a model."""
    async with FakeEngine(FakeOllama(models={"tiny:latest": base_of("tiny")})) as engine:
        yield engine


@pytest.fixture
async def proxy(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of it."""
    async with running(settings_for(engine.url, kind="ollama"), tmp_path / "home") as proxy:
        yield proxy


async def test_a_history_of_any_client_is_read(engine: FakeEngine, proxy: Running) -> None:
    """It refuses an answer of thoughts alone, and a call without arguments.

    Parts would be messages of their own, a tool's result among them; it knows thoughts by one name.
    """
    answer = await proxy.chat(messages=HISTORY)

    sent = engine.requests[-1].json()["messages"]
    assert 200 == answer.status_code
    assert ["a\nb", "", "done", "", "c"] == [one["content"] for one in sent]
    assert ["hm", "hm"] == [one["reasoning"] for one in sent if one["role"] == "assistant"]
    assert "c1" == sent[2]["tool_call_id"]


async def test_what_is_recorded_is_what_the_client_said(proxy: Running) -> None:
    """A conversation is found again by its own messages."""
    await proxy.chat(messages=HISTORY)
    await proxy.chat(messages=[USER])

    recorded = [json.loads(row.completion.request)["messages"] for row in await proxy.rows()]
    assert [HISTORY, [USER]] == recorded


@pytest.mark.parametrize(
    ("effort", "expected"), [("minimal", "low"), ("xhigh", "high"), ("medium", "medium")]
)
async def test_an_effort_that_it_refuses_is_the_nearest_that_it_takes(
    effort: str, expected: str, engine: FakeEngine, proxy: Running
) -> None:
    """Clients of OpenAI have more of them."""
    answer = await proxy.chat(reasoning_effort=effort)

    assert 200 == answer.status_code
    assert expected == engine.requests[-1].json()["reasoning_effort"]


@pytest.mark.parametrize("name", ["MODEL", "Messages", "me\u017f\u017fages", "Stream", "TOP_P"])
async def test_a_name_in_another_case_is_refused(
    name: str, engine: FakeEngine, proxy: Running
) -> None:
    """Go would take it for the name, so another model could answer than the one recorded."""
    answer = await proxy.chat(**{name: "other"})

    assert (400, name) == (answer.status_code, answer.json()["error"]["param"])
    assert "/v1/chat/completions" not in [request.path for request in engine.requests]


async def test_names_that_it_does_not_read_may_have_any_case(proxy: Running) -> None:
    """Some clients send fields of their own."""
    assert 200 == (await proxy.chat(chatId="c")).status_code


async def test_the_end_of_its_one_choice_waits_for_the_record_whatever_n_says(
    tmp_path: Path,
) -> None:
    """It ignores `n`: a second choice would be waited for in vain."""
    said = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    is_read = asyncio.Event()
    ollama = FakeOllama(models={"tiny:latest": base_of("tiny")})

    async def handler(call: Call) -> None:
        if call.request.path != "/v1/chat/completions":
            return await ollama(call)
        await call.head(200, [("content-type", SSE)])
        await call.chunk(said + end)
        await is_read.wait()
        await call.chunk(b"data: [DONE]\n\n")
        return await call.end()

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url, kind="ollama"), tmp_path / "home") as proxy,
    ):
        asked = {"model": "tiny", "messages": [USER], "stream": True, "n": 2}
        async with proxy.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            pieces = answer.aiter_bytes()
            async with asyncio.timeout(LIMIT_S):
                first = await anext(pieces)
            is_read.set()
            rest = b"".join([piece async for piece in pieces])

    assert (said, end + b"data: [DONE]\n\n") == (first, rest)
