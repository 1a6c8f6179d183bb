"""Tool calls and reasoning from the embedded engine, on a model that plays a fixed part."""

import json
from pathlib import Path
from typing import Any

import engine_process
import openai
import pytest
import scripted_models
from engine_process import EngineProcess

pytestmark = pytest.mark.engine

TOOL_CALL = {
    "id": "c1",
    "type": "function",
    "function": {
        "name": scripted_models.CALL["name"],
        "arguments": json.dumps(scripted_models.CALL["arguments"]),
    },
}


@pytest.fixture(scope="module")
def actor(scripted: Path) -> EngineProcess:
    """An engine that calls tools and thinks."""
    return engine_process.shared(scripted)


@pytest.mark.parametrize("tools", [None, scripted_models.TOOLS])
def test_asking_for_a_snapshot_changes_nothing_else_of_tools_and_reasoning(
    actor: EngineProcess, tools: list[Any] | None
) -> None:
    """Markup of tool calls and thoughts is silent, and its ids come only where asked for."""
    body = {"messages": engine_process.HELLO, "tools": tools, "temperature": 0, "max_tokens": 80}
    actor.stream("/v1/chat/completions", body)

    asked = actor.stream("/v1/chat/completions", {**body, **engine_process.SNAPSHOT})
    plain = actor.stream("/v1/chat/completions", body)

    assert engine_process.without_snapshot(plain) == engine_process.without_snapshot(asked)
    assert len(asked) > len(plain)


@pytest.mark.parametrize("tools", [None, scripted_models.TOOLS])
def test_a_stream_has_the_logprob_of_each_token_where_only_these_are_asked_for(
    actor: EngineProcess, tools: list[Any] | None
) -> None:
    """Those of markup too, as vLLM's."""
    body = {"messages": engine_process.HELLO, "tools": tools, "temperature": 0, "logprobs": True}

    (choice,) = engine_process.expect_ok(actor.post("/v1/chat/completions", body)).json()["choices"]
    events = actor.stream("/v1/chat/completions", body)

    streamed = [
        entry["token"]
        for event in events
        for one in event["choices"]
        for entry in (one["logprobs"] or {"content": []})["content"]
    ]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == streamed


def test_tool_calls_are_parsed_in_both_modes(actor: EngineProcess) -> None:
    """A call has a name and JSON arguments, its markup is no content, and it ends as one."""
    body = {"messages": engine_process.HELLO, "tools": scripted_models.TOOLS, "temperature": 0}

    (choice,) = engine_process.expect_ok(actor.post("/v1/chat/completions", body)).json()["choices"]
    events = actor.stream("/v1/chat/completions", body)

    (call,) = choice["message"]["tool_calls"]
    deltas = [c["delta"] for event in events for c in event["choices"]]
    (streamed,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    for function in (call["function"], streamed["function"]):
        assert scripted_models.CALL["name"] == function["name"]
        assert scripted_models.CALL["arguments"] == json.loads(function["arguments"])
    assert 0 == streamed["index"]
    assert choice["message"]["content"] is None
    assert "" == engine_process.text_of(events)
    assert "tool_calls" == choice["finish_reason"]
    assert "tool_calls" == events[-1]["choices"][0]["finish_reason"]


def test_a_tools_result_is_answered(actor: EngineProcess) -> None:
    """The call goes back into the template with its result."""
    body: dict[str, Any] = {
        "messages": engine_process.HELLO,
        "tools": scripted_models.TOOLS,
        "temperature": 0,
    }
    message = actor.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    result = {"role": "tool", "content": "21", "tool_call_id": message["tool_calls"][0]["id"]}

    body["messages"] = [*engine_process.HELLO, message, result]
    answer = engine_process.expect_ok(actor.post("/v1/chat/completions", body)).json()

    assert scripted_models.REPORT == answer["choices"][0]["message"]["content"]


def test_reasoning_is_split_off_in_both_modes(actor: EngineProcess) -> None:
    """Thoughts come as `reasoning`, the answer as content, and the markers in neither."""
    body = {"messages": engine_process.HELLO, "temperature": 0}

    message = actor.chat(temperature=0)["choices"][0]["message"]
    events = actor.stream("/v1/chat/completions", body)

    assert scripted_models.THOUGHT == message["reasoning"].strip()
    assert scripted_models.ANSWER == message["content"].strip()
    assert message["reasoning"] == engine_process.text_of(events, "reasoning")
    assert message["content"] == engine_process.text_of(events)


def test_thinking_can_be_switched_off_or_hidden(actor: EngineProcess) -> None:
    """The template's own switch is passed on; `include_reasoning` hides what was thought."""
    off = actor.chat(
        temperature=0, chat_template_kwargs={"enable_thinking": False}, **engine_process.SNAPSHOT
    )
    hidden = actor.chat(temperature=0, include_reasoning=False, **engine_process.SNAPSHOT)

    messages = [body["choices"][0]["message"] for body in (off, hidden)]
    assert [None, None] == [message["reasoning"] for message in messages]
    assert [scripted_models.ANSWER] * 2 == [message["content"].strip() for message in messages]
    lengths = [len(body["choices"][0]["token_ids"]) for body in (off, hidden)]
    assert lengths[0] < lengths[1]


def test_no_tool_is_called_with_tool_choice_none(actor: EngineProcess) -> None:
    """Without tools in the prompt the model answers in words."""
    message = actor.chat(temperature=0, tools=scripted_models.TOOLS, tool_choice="none")

    assert "stop" == message["choices"][0]["finish_reason"]
    assert "tool_calls" not in message["choices"][0]["message"]


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_call_that_is_asked_for_begins_the_answer(actor: EngineProcess, choice: object) -> None:
    """After a tool's result, where the model would answer in words; its logprobs stay raw."""
    messages = [
        *engine_process.HELLO,
        {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "content": "21", "tool_call_id": "c1"},
    ]
    body = {"messages": messages, "tools": scripted_models.TOOLS, "max_tokens": 40}
    path = "/v1/chat/completions"

    free = actor.post(path, {**body, "temperature": 0}).json()["choices"][0]
    forced = actor.post(
        path, {**body, "temperature": 0, "tool_choice": choice, **engine_process.SNAPSHOT}
    ).json()["choices"][0]

    assert scripted_models.REPORT == free["message"]["content"]
    first = forced["logprobs"]["content"][0]
    assert first["token"] == "<tool_call>"
    assert first["logprob"] < -1


async def test_the_openai_client_works(actor: EngineProcess) -> None:
    """The stock client reads answers, streams with tools, usage and errors."""
    client = openai.AsyncOpenAI(base_url=f"{actor.url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "base", "messages": engine_process.HELLO, "temperature": 0}
    tools: list[Any] = scripted_models.TOOLS

    answer = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(
        **asked, tools=tools, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(**{**asked, "model": "nope"})
    await client.close()

    assert scripted_models.ANSWER == (answer.choices[0].message.content or "").strip()
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert ["get_weather"] == [call.function.name for call in calls if call.function]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
