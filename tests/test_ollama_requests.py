"""What Ollama would refuse of a chat, or pass over, is said to it in its own way."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fake_ollama import FakeOllama, base_of
from running import Running, running, settings_for

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
