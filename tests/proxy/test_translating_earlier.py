"""Clients of /v1/responses may name what was said before, instead of sending it again."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from openai.types.responses import Response
from running import Running, running, settings_for
from scripted_models import REPORT, TOOLS
from scripted_vllm import ScriptedVllm
from waiting import until

from strop.proxy.inline import MARK

Item = dict[str, Any]

FUNCTION = {"type": "function", **TOOLS[0]["function"]}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """An engine that calls a tool where it has one."""
    async with FakeEngine(ScriptedVllm()) as engine:
        yield engine


@pytest.fixture
async def proxy(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of it."""
    async with running(settings_for(engine.url), tmp_path / "home") as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client of the proxy."""
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def told(engine: FakeEngine) -> list[Item]:
    """Return the messages that the engine got last."""
    messages: list[Item] = engine.requests[-1].json()["messages"]
    return messages


async def ask(proxy: Running, *, headers: Item | None = None, **fields: Any) -> httpx.Response:
    """Ask for a response."""
    body = {"model": "tiny", **fields}
    return await proxy.client.post("/v1/responses", json=body, headers=headers)


async def test_a_conversation_goes_on_from_a_response(
    engine: FakeEngine, proxy: Running, client: openai.AsyncOpenAI
) -> None:
    """Told all that was said; of the instructions, the newest count, and else those from before."""
    first = await client.responses.create(model="tiny", input="hi", instructions="Be brief.")
    second = await client.responses.create(
        model="tiny", input="and now?", previous_response_id=first.id
    )
    after_second = told(engine)
    await client.responses.create(
        model="tiny", input="why?", previous_response_id=second.id, instructions="Be long."
    )

    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and now?"},
    ]
    assert [{"role": "system", "content": "Be brief."}, *said] == after_second
    assert [
        {"role": "system", "content": "Be long."},
        *said,
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "why?"},
    ] == told(engine)
    assert first.id == second.previous_response_id
    rows = await proxy.rows()
    assert [None, rows[0].completion.id, rows[1].completion.id] == [row.parent for row in rows]
    assert 1 == len({row.session for row in rows})


async def test_instructions_where_there_were_none_leave_nothing_out(proxy: Running) -> None:
    """Nothing was told that they would replace."""
    first = (await ask(proxy, input="hi")).json()

    told_now: Item = {"instructions": "Be brief.", "previous_response_id": first["id"]}
    answer = await ask(proxy, input="more", **told_now)

    assert "x-strop-left-out" not in answer.headers


async def test_what_the_system_said_in_the_input_stays_where_the_same_instructions_are_sent(
    engine: FakeEngine, proxy: Running
) -> None:
    """Where others are, nothing tells it from the ones before, and the answer says it is gone."""
    spoken = [{"role": "developer", "content": "Speak French."}, QUESTION]
    first = (await ask(proxy, input=spoken, instructions="Be brief.")).json()
    last, systems, named = first, [], []
    for instructions in ("Be brief.", None, "Be long."):
        more: Item = {"instructions": instructions, "previous_response_id": last["id"]}
        answer = await ask(proxy, input="more", **more)
        last = answer.json()
        systems += [one["content"] for one in told(engine) if one["role"] == "system"]
        named.append(answer.headers.get("x-strop-left-out"))

    assert ["Be brief.\n\nSpeak French."] * 2 + ["Be long."] == systems
    assert [None, None, "previous_response_id.instructions"] == named


@pytest.mark.parametrize("names_items", [False, True], ids=["response", "items"])
async def test_of_equal_conversations_the_one_that_is_named_goes_on(
    names_items: bool, proxy: Running
) -> None:
    """Two agents with other instructions, which are in no chain, got one answer to one question."""
    mine, other = [
        (await ask(proxy, input="hi", instructions=f"You are {name}.")).json() for name in "AB"
    ]

    async def say(text: str, **headers: str) -> httpx.Response:
        if not names_items:
            return await ask(
                proxy, input=text, previous_response_id=mine["id"], headers=dict(headers)
            )
        said = [{"role": "user", "content": "hi"}, *mine["output"]]
        return await ask(
            proxy, input=[*said, {"role": "user", "content": text}], headers=dict(headers)
        )

    await say("/rl bad")
    again = await say("more", **{"x-strop-feedback": "bad"})

    assert mine["output"][0]["content"] == other["output"][0]["content"]
    answered, twin, follower = await proxy.rows()
    (rating,) = (await proxy.services.store.list_feedback(limit=9)).data
    assert (answered.completion.id, -1.0) == (rating.completion, rating.rating)
    assert again.headers["x-strop-feedback-status"].startswith(f"repeat {rating.id};")
    assert (answered.completion.id, "chain") == (follower.parent, follower.parent_by)
    assert answered.session == follower.session != twin.session


@pytest.mark.parametrize("names_items", [False, True], ids=["response", "items"])
async def test_a_tools_result_follows_the_call_that_is_named(
    names_items: bool, engine: FakeEngine, proxy: Running
) -> None:
    """By the response that it stands in, or by the call's own id; all of one turn."""
    first = (await ask(proxy, input=[QUESTION], tools=[FUNCTION])).json()
    (call,) = [item for item in first["output"] if item["type"] == "function_call"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "21 degrees"}
    before: Item = {"previous_response_id": first["id"], "input": [result]}
    if names_items:
        items = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
        before = {"input": [QUESTION, *items, result]}

    second = await ask(proxy, tools=[FUNCTION], **before)

    assert REPORT == second.json()["output"][-1]["content"][0]["text"]
    asked, called, answered = told(engine)
    assert QUESTION == asked
    assert [call["call_id"]] == [one["id"] for one in called["tool_calls"]]
    assert (call["call_id"], "21 degrees") == (answered["tool_call_id"], answered["content"])
    parent, follower = await proxy.rows()
    assert parent.completion.id == follower.parent == follower.turn


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_rating_typed_behind_a_response_leaves_no_trace(
    stream: bool, engine: FakeEngine, client: openai.AsyncOpenAI, proxy: Running
) -> None:
    """It lands on that answer, and what follows the rating's own response goes on from there."""
    first = await client.responses.create(model="tiny", input="hi")
    rated: Response
    if stream:
        async with client.responses.stream(
            model="tiny", input="/rl good short", previous_response_id=first.id
        ) as events:
            rated = await events.get_final_response()
    else:
        rated = await client.responses.create(
            model="tiny", input="/rl good short", previous_response_id=first.id
        )
    await client.responses.create(model="tiny", input="more", previous_response_id=rated.id)

    assert rated.output_text.startswith(f"{MARK}Rated the answer above good")
    assert ["hi", first.output_text, "more"] == [one["content"] for one in told(engine)]
    parent, follower = await proxy.rows()
    assert parent.completion.id == follower.parent
    (rating,) = (await proxy.services.store.list_feedback(limit=9)).data
    assert (parent.completion.id, 1.0) == (rating.completion, rating.rating)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_strops_own_answers_are_no_others(stream: bool, proxy: Running) -> None:
    """LangGraph takes two with the same id for one; yet each stands for the answer before it."""

    async def say(text: str, before: Item | None) -> Item:
        answer = await ask(
            proxy, input=text, previous_response_id=before and before["id"], stream=stream
        )
        if not stream:
            return dict(answer.json())
        *_, last = (line for line in answer.text.splitlines() if line.startswith("data: "))
        return dict(json.loads(last.removeprefix("data: "))["response"])

    helped = await say("/rl help", None)
    said = [helped, await say("/rl help", helped)]
    said.append(first := await say("hi", said[-1]))
    for command in ("/rl good", "/rl good", "/rl status"):
        said.append(await say(command, said[-1]))
    by_id = await proxy.client.post(
        "/v1/feedback", json={"completion_id": said[-1]["id"], "rating": "bad"}
    )
    await say("more", said[-1])

    ids = [one["id"] for answer in said for one in (answer, *answer["output"])]
    assert len(ids) == len(set(ids)) == 2 * len(said)
    assert all(re.fullmatch(r"(resp|msg)_\w{32,59}", one) for one in ids)
    answered, follower = await proxy.rows()
    assert f"resp_{answered.completion.id.removeprefix('cmp_')}" == first["id"]
    assert answered.completion.id == by_id.json()["completion_id"] == follower.parent


@pytest.mark.parametrize("names_items", [False, True], ids=["told", "named"])
async def test_strops_own_answer_without_its_command_is_not_told(
    names_items: bool, engine: FakeEngine, proxy: Running
) -> None:
    """Nor taken for a part of the answer before it."""
    first = (await ask(proxy, input=[QUESTION])).json()
    rated = (await ask(proxy, input="/rl good", previous_response_id=first["id"])).json()
    kept = [*first["output"], *rated["output"]]
    if names_items:
        kept = [{"type": "item_reference", "id": item["id"]} for item in kept]

    answer = await ask(proxy, input=[QUESTION, *kept, {"role": "user", "content": "more"}])

    assert 200 == answer.status_code
    text = first["output"][0]["content"][0]["text"]
    assert [QUESTION["content"], text, "more"] == [one["content"] for one in told(engine)]


@pytest.mark.parametrize("instructions", [None, "Be brief."])
async def test_a_conversation_may_begin_with_a_command(
    instructions: str | None, engine: FakeEngine, proxy: Running
) -> None:
    """Strop's answer to it is a link like any other, and what follows begins the conversation."""
    last: Item = {}
    for command in ("/rl help", "/rl good"):
        said: Item = {"input": command, "previous_response_id": last.get("id")}
        last = (await ask(proxy, instructions=instructions, **said)).json()
    first = (await ask(proxy, input="hi", previous_response_id=last["id"])).json()
    await ask(proxy, input="more", previous_response_id=first["id"])

    text = first["output"][0]["content"][0]["text"]
    assert ["hi", text, "more"] == [one["content"] for one in told(engine)]
    begun, follower = await proxy.rows()
    assert (None, begun.completion.id) == (begun.parent, follower.parent)


async def test_a_command_behind_what_strop_does_not_know_is_no_link(proxy: Running) -> None:
    """What was said before it would be lost: the client is asked to send it all."""
    told_before = {"role": "developer", "content": "Speak French."}
    command = {"role": "user", "content": "/rl help"}
    rated = (await ask(proxy, input=[told_before, command])).json()

    refused = await ask(proxy, input="hi", previous_response_id=rated["id"])

    assert (400, "previous_response_id") == (refused.status_code, refused.json()["error"]["param"])


RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "21 degrees"}
COMMAND = {"role": "user", "content": "/rl bad"}


@pytest.mark.parametrize("follows", [True, False], ids=["behind an answer", "at the beginning"])
@pytest.mark.parametrize(
    "said",
    [
        [{"role": "user", "content": "My name is Ann."}, COMMAND],
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "My name is Ann."},
                    {"type": "input_text", "text": "/rl bad"},
                ],
            }
        ],
        [{"role": "developer", "content": "Speak French."}, COMMAND],
        [RESULT, COMMAND],
    ],
    ids=["message", "part", "developer", "result"],
)
async def test_what_is_said_with_a_command_is_never_lost_in_silence(
    said: list[Item], follows: bool, engine: FakeEngine, proxy: Running
) -> None:
    """Kept nowhere, it is asked for again, by whoever goes on from strop's answer to both."""
    opened = (await ask(proxy, input=[QUESTION] if follows else "/rl help")).json()
    num_asked = len(engine.requests)
    rated = (await ask(proxy, input=said, previous_response_id=opened["id"])).json()

    refused = await ask(proxy, input="on", previous_response_id=rated["id"])
    num_asked_then = len(engine.requests)
    error = refused.json()["error"]
    above = re.search(r"behind (resp_\w+),", error["message"])
    assert above is not None
    more = [*said[:-1], {"role": "user", "content": "on"}]
    answer = await ask(proxy, input=more, previous_response_id=above[1])

    assert (400, "previous_response_id") == (refused.status_code, error["param"])
    assert num_asked == num_asked_then
    assert 200 == answer.status_code
    assert follows is (opened["id"] == above[1])
    assert follows is (QUESTION in told(engine))


async def test_the_answer_before_what_was_said_with_a_command_goes_by_strops_own_id(
    proxy: Running,
) -> None:
    """Though no conversation goes on from there."""
    first = (await ask(proxy, input=[QUESTION])).json()
    said = [{"role": "user", "content": "My name is Ann."}, COMMAND]
    rated = (await ask(proxy, input=said, previous_response_id=first["id"])).json()

    answer = await proxy.client.post(
        "/v1/feedback", json={"completion_id": rated["id"], "rating": "good"}
    )

    assert f"cmp_{first['id'].removeprefix('resp_')}" == answer.json()["completion_id"]


@pytest.mark.parametrize("command", ["/rl good", "/rl help"])
async def test_a_conversation_that_was_sent_goes_on_from_strops_answer_to_a_command(
    command: str, engine: FakeEngine, proxy: Running
) -> None:
    """Where all of it is recorded, though its items have no ids that say so."""
    first = (await ask(proxy, input=[QUESTION], instructions="Be brief.")).json()
    text = first["output"][0]["content"][0]["text"]
    said = [QUESTION, {"role": "assistant", "content": text}, {"role": "user", "content": command}]
    rated = (await ask(proxy, input=said, instructions="Be brief.")).json()
    by_id = await proxy.client.post(
        "/v1/feedback", json={"completion_id": rated["id"], "rating": "bad"}
    )

    await ask(proxy, input="more", previous_response_id=rated["id"])

    assert ["Be brief.", QUESTION["content"], text, "more"] == [
        one["content"] for one in told(engine)
    ]
    answered, follower = await proxy.rows()
    assert answered.completion.id == by_id.json()["completion_id"] == follower.parent


@pytest.mark.parametrize(
    "said",
    [
        [{"role": "developer", "content": "Speak French."}, QUESTION],
        [{"role": "user", "content": "hi"}],
    ],
    ids=["told", "asked"],
)
async def test_a_conversation_that_was_sent_otherwise_than_recorded_is_no_link(
    said: list[Item], proxy: Running
) -> None:
    """The model would be told something else: the client is asked to send it all."""
    first = (await ask(proxy, input=[QUESTION])).json()
    text = first["output"][0]["content"][0]["text"]
    rated = (
        await ask(proxy, input=[*said, {"role": "assistant", "content": text}, COMMAND])
    ).json()

    refused = await ask(proxy, input="more", previous_response_id=rated["id"])

    assert "send the whole conversation in `input`" in refused.json()["error"]["message"]


async def test_a_rating_typed_between_items_that_are_named_leaves_no_trace(
    engine: FakeEngine, proxy: Running
) -> None:
    """Strop's own answer is no recorded one, and goes with the command."""
    first = (await ask(proxy, input=[QUESTION])).json()
    said = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    command = {"role": "user", "content": "/rl bad dull"}
    rated = (await ask(proxy, input=[QUESTION, *said, command])).json()
    told_of_it = [{"type": "item_reference", "id": item["id"]} for item in rated["output"]]
    more = {"role": "user", "content": "more"}

    answer = await ask(proxy, input=[QUESTION, *said, command, *told_of_it, more])

    assert 200 == answer.status_code
    assert ["user", "assistant", "user"] == [one["role"] for one in told(engine)]
    (rating,) = (await proxy.services.store.list_feedback(limit=9)).data
    assert ((await proxy.rows())[0].completion.id, -1.0) == (rating.completion, rating.rating)


@pytest.mark.parametrize(
    "capture", [{"redact": ("secret",)}, {"mode": "off"}], ids=["redacted", "off"]
)
async def test_what_is_not_recorded_as_it_was_is_not_gone_on_from(
    capture: Item, tmp_path: Path
) -> None:
    """The model would be told something else: the client is asked to send it all."""
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url, capture=capture), tmp_path / "home") as proxy,
    ):
        first = (await ask(proxy, input="hi")).json()
        refused = await ask(proxy, input="more", previous_response_id=first["id"])

    error = refused.json()["error"]
    assert (400, "previous_response_id") == (refused.status_code, error["param"])
    assert "send the whole conversation in `input`" in error["message"]


async def test_an_answer_that_was_cut_off_is_not_gone_on_from(tmp_path: Path) -> None:
    """Whoever names it is told so, and not that strop doesn't know it."""
    gate = asyncio.Event()

    async def half(number: int) -> None:
        if number == 2:
            await gate.wait()

    vllm = FakeVllm(before_event=half)
    async with (
        FakeEngine(vllm) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        body = {"model": "tiny", "input": "hi", "stream": True}
        async with proxy.client.stream("POST", "/v1/responses", json=body) as response:
            digits = response.headers["x-strop-completion-id"].removeprefix("cmp_")
        await until(proxy.rows)
        gate.set()
        refused = [
            await ask(proxy, input="more", previous_response_id=f"resp_{digits}"),
            await ask(proxy, input=[{"type": "item_reference", "id": f"msg_{digits}"}]),
        ]

    said = [one.json()["error"] for one in refused]
    assert ["previous_response_id", "input[0].id"] == [one["param"] for one in said]
    assert all("cut off" in one["message"] for one in said)


async def test_what_another_key_was_answered_is_unknown(tmp_path: Path) -> None:
    """As it is where nobody was answered so, and where it is no response of ours at all."""
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(
            settings_for(engine.url, server={"client_keys": ("mine", "theirs")}), tmp_path / "home"
        ) as proxy,
    ):
        mine, theirs = {"x-api-key": "mine"}, {"x-api-key": "theirs"}
        first = (await ask(proxy, input="Hortensia", headers=mine)).json()
        named = {"type": "item_reference", "id": first["output"][0]["id"]}
        unknown = f"resp_{'1' * 32}"
        refused = [
            await ask(proxy, input="more", previous_response_id=first["id"], headers=theirs),
            await ask(proxy, input=[named], headers=theirs),
            await ask(proxy, input="more", previous_response_id=unknown, headers=mine),
            await ask(proxy, input="more", previous_response_id="resp_abc", headers=mine),
            await ask(proxy, input="more", previous_response_id=5, headers=mine),
        ]
        served = await ask(proxy, input="more", previous_response_id=first["id"], headers=mine)

    assert [400] * 5 == [one.status_code for one in refused]
    assert 200 == served.status_code
    assert not any("Hortensia" in one.text for one in refused)
