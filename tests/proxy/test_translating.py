"""Clients of other dialects are served, recorded and rated like those of chat completions."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import SSE, Call, FakeEngine
from fake_vllm import FakeVllm
from running import Running, running, settings_for
from scripted_vllm import ScriptedVllm
from waiting import LIMIT_S

from strop.proxy.inline import MARK, without_commands
from strop.proxy.settings.settings import Server
from strop.proxy.translating import Interpreter
from strop.proxy.wire.messages.dialect import MESSAGES as TRANSLATION

Item = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """How a client of one dialect asks, and reads what it gets."""

    name: str
    path: str

    def ask(self, *said: str, **fields: Any) -> Item:
        """Return a request; `said` are the user's words and the model's, in turn."""
        roles = ("user", "assistant")
        history = [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]
        if self.name == "messages":
            return {"model": "tiny", "max_tokens": 50, "messages": history, **fields}
        return {"model": "tiny", "max_output_tokens": 50, "input": history, **fields}

    def text(self, answer: Item) -> str:
        """Return the text of an answer."""
        if self.name == "messages":
            return "".join(block["text"] for block in answer["content"])
        return "".join(p["text"] for item in answer["output"] for p in item["content"])

    def answer(self, stream: str) -> tuple[Item, str]:
        """Return the answer's head, and its text, from a stream that ended well."""
        events = events_of(stream)
        if self.name == "messages":
            assert "message_stop" == events[-1]["type"]
            deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
            return events[0]["message"], "".join(delta["text"] for delta in deltas)
        assert "response.completed" == events[-1]["type"]
        deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
        return events[-1]["response"], "".join(deltas)

    def error(self, stream: str) -> Item:
        """Return the error that a stream ended with."""
        last = events_of(stream)[-1]
        if self.name == "messages":
            assert "error" == last["type"]
            return dict(last["error"])
        assert "response.failed" == last["type"]
        return dict(last["response"]["error"])

    async def post(
        self, proxy: Running, *said: str, headers: Item | None = None, **fields: Any
    ) -> httpx.Response:
        """Send a request."""
        body = self.ask(*said, **fields)
        return await proxy.client.post(f"{self.path}?beta=true", json=body, headers=headers)


MESSAGES = Dialect("messages", "/v1/messages")
RESPONSES = Dialect("responses", "/v1/responses")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
either = pytest.mark.parametrize("dialect", [MESSAGES, RESPONSES], ids=lambda one: one.name)
json_or_stream = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


def events_of(stream: str) -> list[Item]:
    """Return the events of a stream, each named as its type."""
    events = []
    for event in stream.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert f"event: {events[-1]['type']}" == name
    return events


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


@either
@json_or_stream
async def test_an_answer_is_recorded_as_the_chat_completion_it_came_from(
    dialect: Dialect, stream: bool, engine: FakeEngine, proxy: Running
) -> None:
    """With its snapshot; the engine is asked for a chat, at a path without the client's query."""
    answer = await dialect.post(proxy, "hi", stream=stream)

    said = dialect.answer(answer.text)[1] if stream else dialect.text(answer.json())
    stored = (await proxy.row()).completion
    (choice,) = stored.choices
    assert (200, "chat", "complete") == (answer.status_code, stored.dialect, stored.state)
    assert "/v1/chat/completions" == engine.requests[-1].target
    assert [{"role": "user", "content": "hi"}] == json.loads(stored.request)["messages"]
    assert said == json.loads(choice.message)["content"] != ""
    assert None not in (choice.token_ids, choice.logprobs, stored.prompt_ids)
    assert 50 == json.loads(stored.sampling)["max_tokens"]
    assert stored.id == answer.headers["x-strop-completion-id"]


@either
@json_or_stream
async def test_the_answer_goes_by_the_completions_own_digits(
    dialect: Dialect, stream: bool, proxy: Running
) -> None:
    """So whoever holds it can rate it, look it up and list its ratings by that name."""
    answer = await dialect.post(proxy, "hi", stream=stream)
    head = dialect.answer(answer.text)[0] if stream else answer.json()

    rated = await proxy.client.post(
        "/v1/feedback", json={"completion_id": head["id"], "rating": "good"}
    )
    listed = await proxy.client.get("/v1/feedback", params={"completion_id": head["id"]})

    own = (await proxy.row()).completion.id
    assert 201 == rated.status_code
    assert own == rated.json()["completion_id"] != head["id"]
    assert [own] == [one["completion_id"] for one in listed.json()["data"]]


@either
@json_or_stream
async def test_a_second_turn_finds_its_parent_and_its_rating_lands(
    dialect: Dialect, stream: bool, engine: FakeEngine, proxy: Running
) -> None:
    """By header and inline; the command and its answer never reach the engine."""
    first = await dialect.post(proxy, "hi", stream=stream)
    said = dialect.answer(first.text)[1] if stream else dialect.text(first.json())

    typed = await dialect.post(proxy, "hi", said, "/rl good short", stream=stream)
    told = dialect.answer(typed.text)[1] if stream else dialect.text(typed.json())
    second = await dialect.post(
        proxy,
        *("hi", said, "/rl good short", told, "and now?"),
        headers={"x-strop-feedback": "bad"},
        stream=stream,
    )

    parent, follower = await proxy.rows()
    assert told.startswith(f"{MARK}Rated the answer above good")
    assert "x-strop-completion-id" not in typed.headers
    assert parent.completion.id == follower.parent
    assert ["hi", said, "and now?"] == [
        message["content"] for message in engine.requests[-1].json()["messages"]
    ]
    assert f"completion={parent.completion.id}" in second.headers["x-strop-feedback-status"]
    given = (await proxy.services.store.list_feedback(limit=10)).data
    assert {("inline", "superseded"), ("header", "standing")} == {
        (one.source, one.state) for one in given
    }


@either
async def test_a_path_names_the_session(dialect: Dialect, proxy: Running) -> None:
    """As for chat completions."""
    answer = await proxy.client.post(f"/s/work{dialect.path}", json=dialect.ask("hi"))

    assert 200 == answer.status_code
    assert "work" == (await proxy.row()).session


@either
@json_or_stream
@pytest.mark.parametrize("capture", [{"redact": ("sk-.*",)}, {"mode": "off"}], ids=str)
async def test_what_is_not_to_be_recorded_is_not(
    capture: Item, dialect: Dialect, stream: bool, engine: FakeEngine, tmp_path: Path
) -> None:
    """As for chat completions; the engine gets what the client said."""
    async with running(settings_for(engine.url, capture=capture), tmp_path / "home") as proxy:
        answer = await dialect.post(proxy, "my key is sk-1", stream=stream)

        rows = await proxy.rows()
        assert 200 == answer.status_code
        assert b"sk-1" in engine.requests[-1].body
        assert ["[redacted]" in row.completion.request.decode() for row in rows] == (
            [True] if "redact" in capture else []
        )
        assert not any(b"sk-1" in row.completion.request for row in rows)


@either
async def test_what_is_left_out_is_said(dialect: Dialect, proxy: Running) -> None:
    """In a header, by where it stands."""
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    if dialect is RESPONSES:
        tools = [{"type": "web_search"}]

    answer = await dialect.post(proxy, "hi", tools=tools)
    plain = await dialect.post(proxy, "hi")

    assert (200, "tools[0]") == (answer.status_code, answer.headers["x-strop-left-out"])
    assert "x-strop-left-out" not in plain.headers


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b"{}", 400), (None, 404), (b'{"messages": 5, "input": 5}', 400)],
)
@either
async def test_a_refusal_of_ours_has_the_clients_shape(
    body: bytes | None, status: int, dialect: Dialect, proxy: Running
) -> None:
    """An error object as its SDK reads it, and nothing is recorded."""
    unknown = json.dumps(dialect.ask("hi", model="other")).encode()

    answer = await proxy.client.post(dialect.path, content=unknown if body is None else body)

    said = answer.json()
    assert (status, "proxy") == (answer.status_code, answer.headers["x-strop-error-source"])
    assert said["error"]["message"]
    if dialect is MESSAGES:
        kind = {400: "invalid_request_error", 404: "not_found_error"}[status]
        assert ("error", kind) == (said["type"], said["error"]["type"])
    assert [] == await proxy.rows()


@either
async def test_a_wrong_key_is_refused_in_the_clients_shape(
    dialect: Dialect, engine: FakeEngine, tmp_path: Path
) -> None:
    """Before its body is looked at; and clients that retry are told that it's no use."""
    settings = settings_for(engine.url, server={"client_keys": ("right",)})
    async with running(settings, tmp_path / "home") as proxy:
        refused = await dialect.post(proxy, "hi", headers={"x-api-key": "wrong"})
        served = await dialect.post(proxy, "hi", headers={"x-api-key": "right"})

    assert (401, 200) == (refused.status_code, served.status_code)
    assert "client_keys" in refused.json()["error"]["message"]
    assert "false" == refused.headers["x-should-retry"]
    if dialect is MESSAGES:
        kind = refused.json()["type"], refused.json()["error"]["type"]
        assert ("error", "authentication_error") == kind


@pytest.mark.parametrize(
    "said", [b'{"error": {"message": "no room"}}', b'{"error": "no room"}', b"no room"]
)
@either
async def test_an_engines_refusal_is_said_in_the_clients_shape(
    said: bytes, dialect: Dialect, tmp_path: Path
) -> None:
    """Whichever way the engine wrote it, with the engine's status."""

    async def handler(call: Call) -> None:
        if call.request.path != "/v1/chat/completions":
            return await FakeVllm()(call)
        return await call.answer(said, 429, [("retry-after", "7")])

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        answer = await dialect.post(proxy, "hi")

        assert (429, "7") == (answer.status_code, answer.headers["retry-after"])
        assert "no room" == answer.json()["error"]["message"]
        assert "upstream_error" == (await proxy.row()).completion.state


@pytest.mark.parametrize(
    ("said", "told"),
    [(["what"], "an array"), ({"error": {"message": "no room"}}, "no room"), ({}, "{}")],
)
@either
@json_or_stream
async def test_an_engine_that_answers_with_something_else_is_an_error(
    dialect: Dialect, stream: bool, said: object, told: str, tmp_path: Path
) -> None:
    """A client would take it for an empty answer."""

    async def handler(call: Call) -> None:
        if call.request.path != "/v1/chat/completions":
            return await FakeVllm()(call)
        return await call.json(said)

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        answer = await dialect.post(proxy, "hi", stream=stream)

        message = answer.json()["error"]["message"]
        assert (502, "application/json") == (answer.status_code, answer.headers["content-type"])
        assert "proxy" == answer.headers["x-strop-error-source"]
        assert message.startswith("expected a chat completion")
        assert told in message


@either
async def test_an_engine_that_passes_over_stream_is_streamed(
    dialect: Dialect, tmp_path: Path
) -> None:
    """The client reads nothing else; what it gets is what was recorded."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "Hello", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}

    async def handler(call: Call) -> None:
        if call.request.path != "/v1/chat/completions":
            return await FakeVllm()(call)
        return await call.json({"model": "tiny", "choices": [choice], "usage": USAGE})

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        answer = await dialect.post(proxy, "hi", stream=True)

        usage = {"input_tokens": 3, "output_tokens": 2}
        assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
        if dialect is MESSAGES:
            *_, end, _ = events_of(answer.text)
            assert "tool_use" == end["delta"]["stop_reason"]
            assert usage.items() <= end["usage"].items()
            assert '"text":"Hello"' in answer.text
        else:
            response = events_of(answer.text)[-1]["response"]
            assert ["message", "function_call"] == [one["type"] for one in response["output"]]
            assert usage.items() <= response["usage"].items()
        assert message == json.loads((await proxy.row()).completion.choices[0].message)


@either
async def test_an_engine_that_streams_unasked_is_an_error(dialect: Dialect, tmp_path: Path) -> None:
    """The client waits for JSON."""

    async def handler(call: Call) -> None:
        if call.request.path != "/v1/chat/completions":
            return await FakeVllm()(call)
        return await call.answer(b"data: [DONE]\n\n", headers=[("content-type", SSE)])

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        answer = await dialect.post(proxy, "hi")

        assert 502 == answer.status_code
        assert "expected a chat completion" in answer.json()["error"]["message"]


@either
async def test_a_name_of_the_clients_makes_no_header(dialect: Dialect, proxy: Running) -> None:
    """What is left out is named, and its name may hold whatever JSON can."""
    name = "a\r\nx-evil: \u00e9"
    fields = {"output_config": {name: 1}} if dialect is MESSAGES else {"text": {name: 1}}

    answer = await dialect.post(proxy, "hi", **fields)

    assert "x-evil" not in answer.headers
    assert answer.headers["x-strop-left-out"].endswith(r".a\r\nx-evil: \xe9")


async def interpreted(*messages: Item) -> list[Item]:
    """Return what goes to a client of a stream when `messages` are sent."""
    sent: list[Item] = []

    async def receive() -> Item:
        body = json.dumps(MESSAGES.ask("hi", stream=True)).encode()
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    async def recall(_digits: str) -> None:
        return None

    between = Interpreter(TRANSLATION, {"headers": []}, receive, send, Server(), recall)
    await between.receive()
    for message in messages:
        await between.send(message)
    return sent


STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", SSE.encode())],
}


async def test_an_answer_that_breaks_off_is_not_ended_by_another() -> None:
    """What fails inside strop begins an answer of its own; the server refuses that, and closes."""
    failed = {"type": "http.response.start", "status": 500, "headers": []}

    with pytest.raises(RuntimeError, match="another answer"):
        await interpreted(STREAM, failed)


async def test_a_comment_that_is_cut_off_hides_no_event() -> None:
    """The stream's last events stand on lines of their own."""
    rest = b"data: [DONE]\n\n: bye"

    sent = await interpreted(STREAM, {"type": "http.response.body", "body": rest})

    *_, comment, end, stop = sent[-1]["body"].removesuffix(b"\n\n").split(b"\n\n")
    assert b": bye" == comment
    assert [b"event: message_delta", b"event: message_stop"] == [
        event.splitlines()[0] for event in (end, stop)
    ]


@either
async def test_a_stream_that_breaks_off_ends_in_an_error(dialect: Dialect, tmp_path: Path) -> None:
    """After what there was of it, and never as if it were whole."""

    async def handler(call: Call) -> None:
        if call.request.path != "/v1/chat/completions":
            return await FakeVllm()(call)
        await call.head(200, [("content-type", SSE)])
        delta = {"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}
        chunk = json.dumps({"id": "c", "model": "tiny", "choices": [delta]}).encode()
        await call.chunk(b": working\n\ndata: " + chunk + b"\n\n")
        call.close()
        return None

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        answer = await dialect.post(proxy, "hi", stream=True)

        assert ": working\n\n" in answer.text
        stream = answer.text.replace(": working\n\n", "")
        assert "Hel" in stream
        assert "look at the engine's log" in dialect.error(stream)["message"]
        assert "upstream_error" == (await proxy.row()).completion.state


@either
@json_or_stream
@pytest.mark.parametrize("has_begun", [False, True], ids=["before", "within"])
async def test_a_client_that_leaves_is_noticed(
    has_begun: bool, dialect: Dialect, stream: bool, tmp_path: Path
) -> None:
    """The engine is told at once, and what there was is recorded."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def handler(call: Call) -> None:
        # Strop itself asks for something, too.
        if b'"hi"' not in call.request.body:
            return await FakeVllm()(call)
        if has_begun:
            await call.head(200, [("content-type", SSE if stream else "application/json")])
            await call.chunk(b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n')
        asked.set()
        await call.disconnected.wait()
        left.set()
        return None

    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        asking = asyncio.create_task(dialect.post(proxy, "hi", stream=stream))
        async with asyncio.timeout(LIMIT_S):
            await asked.wait()
            asking.cancel()
            await left.wait()

        assert "client_cancelled" == (await proxy.row()).completion.state


CHAT = Dialect("chat", "/v1/chat/completions")


def said_in(answer: httpx.Response) -> str:
    """Return the text of an answer in any dialect."""
    found = answer.json()
    if "choices" in found:
        return str(found["choices"][0]["message"]["content"])
    return (MESSAGES if "content" in found else RESPONSES).text(found)


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES, RESPONSES], ids=lambda one: one.name)
async def test_a_question_in_the_message_of_a_command_is_not_lost(
    dialect: Dialect, engine: FakeEngine, proxy: Running
) -> None:
    """Its answer, which the agent dropped, is the one that is rated, and the model is told it."""
    input_text = "input_text" if dialect is RESPONSES else "text"

    async def post(*history: Item) -> str:
        members = {"input": history} if dialect is RESPONSES else {"messages": history}
        answer = await proxy.client.post(
            dialect.path, json={"model": "tiny", "max_tokens": 50, **members}
        )
        assert 200 == answer.status_code
        return said_in(answer)

    def user(*texts: str) -> Item:
        return {"role": "user", "content": [{"type": input_text, "text": one} for one in texts]}

    before = [user("hi")]
    before += [{"role": "assistant", "content": await post(*before)}]
    await post(*before, user("use tabs"))
    typed = user("use tabs\n", "<command-name>/rl</command-name>\n", "/rl bad too long\n")
    told = await post(*before, typed)
    await post(*before, typed, {"role": "assistant", "content": told}, user("and now?"))

    first, dropped, last = await proxy.rows()
    (rated,) = (await proxy.services.store.list_feedback(limit=10)).data
    assert (dropped.completion.id, -1.0) == (rated.completion, rated.rating)
    assert first.completion.id == last.parent
    sent = json.dumps(engine.requests[-1].json()["messages"])
    assert "use tabs" in sent
    assert "and now?" in sent
    assert "rl" not in sent


async def test_an_answer_of_strops_is_known_without_its_command(
    engine: FakeEngine, proxy: Running
) -> None:
    """Each one: agents keep it where they shorten a history, and not what it answers."""

    async def post(*said: str) -> str:
        return said_in(await MESSAGES.post(proxy, *said))

    said = await post("hi")
    commands = ("good", "bad so so", "undo", "undo", "status", "help", f"good {'x' * 10_001}")
    told = [await post("hi", said, f"/rl {command}") for command in commands]
    told.append(await post("/rl good"))

    await post("In short: hi.", told[1], "and now?")

    assert len(told) == len(set(told))
    assert [[]] * len(told) == [
        without_commands([{"role": "assistant", "content": one}]) for one in told
    ]
    assert "strop" not in json.dumps(engine.requests[-1].json()["messages"])


async def test_an_answer_of_strops_alone_hides_no_parent(proxy: Running) -> None:
    """The history ends in the answer above it."""
    asked = {"role": "user", "content": "hi"}

    async def post(*history: Item) -> Item:
        answer = await proxy.client.post(CHAT.path, json={"model": "tiny", "messages": [*history]})
        return dict(answer.json()["choices"][0]["message"])

    answer = await post(asked)
    told = await post(asked, answer, {"role": "user", "content": "/rl status"})
    await post(asked, answer, told, {"role": "user", "content": "and now?"})

    first, second = await proxy.rows()
    assert first.completion.id == second.parent


async def test_a_note_of_codex_begins_no_turn(proxy: Running) -> None:
    """What its sub-agent answered comes as a user's words, in the middle of a loop of tools."""
    call = {"type": "function_call", "call_id": "c1", "name": "spawn", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "spawned"}
    note = "<subagent_notification>\n{}\n</subagent_notification>"

    async def post(*items: Item) -> None:
        answer = await proxy.client.post(RESPONSES.path, json={"model": "tiny", "input": [*items]})
        assert 200 == answer.status_code

    asked = {"role": "user", "content": "hi"}
    await post(asked)
    await post(asked, call, result, {"role": "user", "content": note})
    await post(asked, call, result, {"role": "user", "content": "and now?"})

    assert [True, False, True] == [row.completion.starts_turn for row in await proxy.rows()]


async def test_a_hook_of_claude_code_begins_no_turn(tmp_path: Path) -> None:
    """What it says behind a tool's result it says as the system from the next prompt on."""
    tool = {"name": "Bash", "input_schema": {"type": "object"}}
    reminder = {"type": "text", "text": "<system-reminder>\nlint: fine\n</system-reminder>"}
    history: list[Item] = []

    async with (
        FakeEngine(ScriptedVllm()) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):

        async def post(content: Any, *later: Item) -> Item:
            history.append({"role": "user", "content": content})
            asked = {"model": "tiny", "max_tokens": 50, "messages": history, "tools": [tool]}
            answer = (await proxy.client.post(MESSAGES.path, json=asked)).json()
            history[-1:] = [
                {"role": "user", "content": [one for one in content if one is not reminder]},
                *later,
                {"role": "assistant", "content": answer["content"]},
            ]
            return dict(answer)

        (call,) = (await post([{"type": "text", "text": "hi"}]))["content"]
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "fine"}
        told = {"role": "system", "content": "lint: fine"}
        await post([result, reminder], told)
        shown = engine.requests[-1].json()["messages"]
        rated = await post([{"type": "text", "text": "/rl good"}])
        await post([{"type": "text", "text": "and now?"}])

        called, answered, follower = await proxy.rows()
        (rating,) = (await proxy.services.store.list_feedback(limit=9)).data

    assert MESSAGES.text(rated).startswith(f"{MARK}Rated the answer above good")
    assert answered.completion.id == rating.completion == follower.parent
    assert called.turn == answered.turn != follower.turn
    assert shown == engine.requests[-1].json()["messages"][: len(shown)]
    assert f"fine\n\n{reminder['text']}" == shown[-1]["content"]
