"""What stock clients send goes on as it is, and what they expect comes back.

Each shape here was seen from a client: the OpenAI SDKs, Codex, Claude Code, pi, LangChain, aider
and others.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import SSE, Call, FakeEngine
from fake_vllm import FakeVllm
from running import Running, running, settings_for

INJECTED = {"logprobs", "return_token_ids"}
QUESTION = {"role": "user", "content": "hi"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{ "a":1.0 }'}}
    ],
}
CUSTOM_TOOL = {"type": "custom", "custom": {"name": "sh", "format": {"type": "text"}}}
CUSTOM_CALL = {"id": "c2", "type": "custom", "custom": {"name": "sh", "input": "ls\n"}}


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


def received(engine: FakeEngine) -> dict[str, Any]:
    """Return what the engine got last, without what strop asks for in addition."""
    return {k: v for k, v in engine.requests[-1].json().items() if k not in INJECTED}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("query", ["?beta=true", "?api-version=1", "?a=%2F&a=b;c", "?"])
async def test_a_query_string_goes_on(
    query: str, stream: bool, engine: FakeEngine, proxy: Running
) -> None:
    """SDKs for other clouds add one to every request."""
    body = {"model": "tiny", "messages": [QUESTION], "stream": stream}

    answer = await proxy.client.post(f"/v1/chat/completions{query}", json=body)

    assert 200 == answer.status_code
    assert f"/v1/chat/completions{query}".rstrip("?") == engine.requests[-1].target.rstrip("?")


async def test_head_of_the_root_is_answered_without_a_body(proxy: Running) -> None:
    """Claude Code asks it before anything else, to see whether somebody is there."""
    answer = await proxy.client.head("/")

    assert (200, b"") == (answer.status_code, answer.content)


FIELDS: list[dict[str, Any]] = [
    {"client_metadata": {"x-codex-window-id": "t:0"}, "prompt_cache_key": "k"},
    {"store": False, "include": ["reasoning.encrypted_content"], "metadata": {"a": "b"}},
    {"context_management": {"edits": []}, "output_config": {"effort": "high"}},
    {"reasoning": {"effort": "low", "summary": "auto"}, "reasoning_effort": "low"},
    {"thinking": {"type": "adaptive"}, "chat_template_kwargs": {"enable_thinking": False}},
    {"max_tokens": 5, "max_completion_tokens": 6, "stop": ["a", "\u2028"], "seed": 2**70},
    {"temperature": 0, "top_p": 1.0, "user": "é", "logit_bias": {"5": -100}, "x": None},
    {"parallel_tool_calls": True, "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"tools": [CUSTOM_TOOL, {"type": "web_search"}, {"type": "namespace", "name": "agents"}]},
    {"functions": [{"name": "f", "parameters": {}}], "function_call": "auto"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ",".join(fields))
async def test_every_field_of_a_request_goes_on(
    fields: dict[str, Any], engine: FakeEngine, proxy: Running
) -> None:
    """Known or not, and whatever it holds: only the engine says what it can't take."""
    sent = {"model": "tiny", "messages": [QUESTION], **fields}

    answer = await proxy.client.post("/v1/chat/completions", json=sent)

    assert 200 == answer.status_code, answer.text
    assert sent == received(engine)
    assert "complete" == (await proxy.row()).completion.state


async def test_every_field_goes_on_where_a_rating_is_taken_out(
    engine: FakeEngine, proxy: Running
) -> None:
    """Only the messages change."""
    answer = {"role": "assistant", "content": "ho"}
    rated = [{"role": "user", "content": "/rl good"}, {**answer, "content": "[strop] Rated."}]
    rest = {k: v for fields in FIELDS for k, v in fields.items()}
    history = [QUESTION, answer]

    await proxy.client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [*history, *rated, QUESTION], **rest},
    )

    assert {"model": "tiny", "messages": [*history, QUESTION], **rest} == received(engine)


HISTORIES: dict[str, list[dict[str, Any]]] = {
    "developer": [{"role": "developer", "content": "Be brief."}, QUESTION],
    "system in the middle": [QUESTION, {"role": "system", "content": "Now."}, QUESTION],
    "parts": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ],
        }
    ],
    "null content": [QUESTION, CALLED, {"role": "tool", "tool_call_id": "c1", "content": "1"}],
    "tool result in parts": [
        QUESTION,
        {**CALLED, "content": ""},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "1"}]},
    ],
    "custom call": [
        QUESTION,
        {"role": "assistant", "tool_calls": [CUSTOM_CALL]},
        {"role": "tool", "tool_call_id": "c2", "content": "a.txt"},
    ],
    "several in a row": [QUESTION, QUESTION, CALLED, CALLED, QUESTION, QUESTION],
    "what SDKs add": [
        QUESTION,
        {
            "role": "assistant",
            "content": "ho",
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "parsed": None,
            "reasoning_content": " a \n",
            "name": "x",
            "provider_specific_fields": {"refusal": None},
        },
        QUESTION,
    ],
    "ends with the assistant": [QUESTION, {"role": "assistant", "content": "It is"}],
    "none": [],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
async def test_every_kind_of_message_goes_on(
    history: list[dict[str, Any]], engine: FakeEngine, proxy: Running
) -> None:
    """Roles and contents are the engine's to judge."""
    answer = await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": history}
    )

    assert 200 == answer.status_code, answer.text
    assert history == received(engine)["messages"]
    assert "complete" == (await proxy.row()).completion.state


async def test_a_stream_tells_usage_only_where_it_is_asked_for(proxy: Running) -> None:
    """Then in an event of its own, with no choices, before the end."""
    told = await proxy.chat(stream=True, stream_options={"include_usage": True})
    silent = await proxy.chat(stream=True)

    *_, usage, done = told.text.rstrip("\n").split("\n\n")
    assert "data: [DONE]" == done
    event = json.loads(usage.removeprefix("data: "))
    assert [] == event["choices"]
    rows = await proxy.rows()
    assert rows[0].completion.completion_tokens == event["usage"]["completion_tokens"]
    assert '"usage"' not in silent.text


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_custom_tools_call_comes_back_and_is_found_again(
    stream: bool, tmp_path: Path
) -> None:
    """Its input is plain text, and no JSON arguments."""

    async def handler(call: Call) -> None:
        if call.request.method == "GET":
            return await FakeVllm()(call)
        said = {"role": "assistant", "content": None, "tool_calls": [CUSTOM_CALL]}
        if not call.request.json().get("stream"):
            choice = {"index": 0, "message": said, "finish_reason": "tool_calls"}
            return await call.json({"id": "a", "choices": [choice]})
        delta = {**said, "tool_calls": [{"index": 0, **CUSTOM_CALL}]}
        choice = {"index": 0, "delta": delta, "finish_reason": "tool_calls"}
        event = json.dumps({"id": "a", "choices": [choice]}).encode()
        return await call.answer(
            b"data: " + event + b"\n\ndata: [DONE]\n\n", headers=[("content-type", SSE)]
        )

    history = [
        QUESTION,
        {"role": "assistant", "tool_calls": [CUSTOM_CALL]},
        {"role": "tool", "tool_call_id": "c2", "content": "a.txt"},
    ]
    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        answer = await proxy.chat(stream=stream, tools=[CUSTOM_TOOL])
        await proxy.chat(stream=stream, tools=[CUSTOM_TOOL], messages=history)

        assert '"input":"ls\\n"' in answer.text.replace(": ", ":")
        called, reported = await proxy.rows()
        assert called.completion.id == reported.parent
        assert called.completion.id == reported.turn


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/realtime?model=tiny", "/v1/chat/completions"]
)
async def test_a_websocket_is_refused_at_once(
    path: str, engine: FakeEngine, proxy: Running
) -> None:
    """With an ordinary answer, on which clients turn to HTTP; nothing waits for more to come."""
    num_requests = len(engine.requests)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", proxy.server.servers[0].sockets[0].getsockname()[1]
    )
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )

    status = int((await reader.readline()).split()[1])

    assert status in (404, 405, 426)
    assert num_requests == len(engine.requests)
    writer.close()
    await writer.wait_closed()


async def test_an_offer_to_upgrade_is_passed_over(engine: FakeEngine, proxy: Running) -> None:
    """Some HTTP libraries offer HTTP/2 with every request, and go on in HTTP/1.1."""
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMA"}

    answer = await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": [QUESTION]}, headers=headers
    )

    assert 200 == answer.status_code
    names = {name for name, _ in engine.requests[-1].headers}
    assert not {"connection", "upgrade"} & names


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_key_may_come_in_either_header(
    header: str, engine: FakeEngine, tmp_path: Path
) -> None:
    """As OpenAI's clients send it, or Anthropic's."""
    key = "client-key-1"
    value = f"Bearer {key}" if header == "authorization" else key
    settings = settings_for(engine.url, server={"client_keys": (key,)})
    async with running(settings, tmp_path / "home") as proxy:
        body = {"model": "tiny", "messages": [QUESTION]}
        refused = await proxy.client.post("/v1/chat/completions", json=body)
        served = await proxy.client.post("/v1/chat/completions", json=body, headers={header: value})

    assert (401, 200) == (refused.status_code, served.status_code)
