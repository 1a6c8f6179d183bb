"""A rating that comes with a request lands on the answer that the request's history ends in."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import waiting
from fake_engine import SSE, Call, FakeEngine
from fake_vllm import FakeVllm
from running import Running, running, settings_for
from store_values import completion

from strop.proxy import flights
from strop.proxy.inline import MARK, without_commands

Message = dict[str, Any]


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(FakeVllm()) as engine:
        yield engine


@pytest.fixture
async def proxy(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(engine.url), tmp_path / "home") as proxy:
        yield proxy


def user(text: str) -> Message:
    return {"role": "user", "content": text}


async def say(
    proxy: Running, history: list[Message], text: str, **headers: str
) -> tuple[list[Message], httpx.Response]:
    """Send `text` after `history`; return the history with it and the answer, and the response."""
    messages = [*history, user(text)]
    response = await proxy.client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": messages},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    assert 200 == response.status_code
    answer = response.json()["choices"][0]["message"]
    # What strop says itself is known where an agent has dropped the command before it.
    is_ours = (answer["content"] or "").startswith(MARK)
    assert is_ours is (without_commands([answer]) == [])
    return [*messages, answer], response


async def standing(proxy: Running) -> list[tuple[str, float, str | None, str, str]]:
    page = await proxy.services.store.list_feedback(limit=100)
    return [
        (f.completion, f.rating, f.comment, f.source, f.scope)
        for f in reversed(page.data)
        if f.state == "standing"
    ]


async def dies(call: Call) -> None:
    """Close the connection without an answer."""
    call.close()


async def refuses(call: Call) -> None:
    """Say that the request is wrong."""
    await call.json({"error": {"message": "no"}}, 400)


@contextlib.asynccontextmanager
async def streaming(
    engine: FakeEngine, proxy: Running, messages: list[Message], **headers: str
) -> AsyncIterator[httpx.Response]:
    """Ask for an answer that begins and goes on until its client leaves; others are whole."""
    answers, engine.handler = engine.handler, hangs
    asked = {"model": "tiny", "messages": messages, "stream": True}
    path = "/v1/chat/completions"
    async with proxy.client.stream("POST", path, json=asked, headers=headers) as response:
        # Held, as the connection is closed where it is let go.
        lines = response.aiter_lines()
        while "half" not in await anext(lines):
            pass
        engine.handler = answers
        yield response


async def hangs(call: Call) -> None:
    """Begin an answer, and never end it."""
    await call.head(200, [("content-type", SSE)])
    delta = b'{"index":0,"delta":{"content":"half"}}'
    await call.chunk(b'data: {"id":"chatcmpl-half","choices":[%b]}\n\n' % delta)
    await call.hang()


def id_of(response: httpx.Response) -> str:
    return response.headers["x-strop-completion-id"]


def text_of(response: httpx.Response) -> str:
    if response.headers["content-type"] == "application/json":
        return str(response.json()["choices"][0]["message"]["content"])
    events = [e.removeprefix("data: ") for e in response.text.split("\n\n") if e]
    assert "[DONE]" == events.pop()
    chunks = [json.loads(event) for event in events]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_command_rates_the_answer_above_it_and_never_reaches_the_model(
    stream: bool, engine: FakeEngine, proxy: Running
) -> None:
    """It is answered by strop, in the way that was asked for."""
    history, first = await say(proxy, [], "one")
    num_asked = len(engine.requests)

    typed = await proxy.client.post(
        "/v1/chat/completions",
        json={
            "model": "tiny",
            "messages": [*history, user("/rl bad too long")],
            "stream": stream,
            "stream_options": {"include_usage": True},
        },
    )

    said = first.json()["choices"][0]["message"]["content"].strip()
    assert text_of(typed) == (
        f'[strop] Rated the answer above bad, because "too long" ({id_of(first)}): "{said}"'
    )
    assert [] == [one for one in engine.requests[num_asked:] if one.method == "POST"]
    assert [(id_of(first), -1.0, "too long", "inline", "turn")] == await standing(proxy)
    assert 1 == len(await proxy.rows())


@pytest.mark.parametrize("num_before", [0, 1], ids=["first", "later"])
async def test_a_command_after_an_answer_that_the_agent_has_dropped_rates_that_one(
    num_before: int, engine: FakeEngine, proxy: Running
) -> None:
    """As agents do with what their user has cut off: the person means what they saw of it."""
    history: list[Message] = []
    rated = []
    for _ in range(num_before):
        history, first = await say(proxy, history, "one")
        history, _ = await say(proxy, history, "/rl good")
        rated.append((id_of(first), 1.0))
    asked, dropped = await say(proxy, history, "two")

    await say(proxy, asked[:-1], "/rl bad")

    assert [*rated, (id_of(dropped), -1.0)] == [one[:2] for one in await standing(proxy)]


NOTE = "<turn_aborted>\nThe user interrupted the previous turn on purpose.\n</turn_aborted>"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("behind", [[NOTE], [NOTE, "three"]], ids=["note", "question"])
async def test_what_stands_behind_a_question_does_not_hide_the_answer_that_was_dropped(
    path: str, behind: list[str], proxy: Running
) -> None:
    """Codex notes there that it was stopped; the next question may get no answer at all."""
    history, first = await say(proxy, [], "one")
    history, _ = await say(proxy, history, "/rl good")
    asked, dropped = await say(proxy, history, "two\n\nin short")

    name = "input" if path == "/v1/responses" else "messages"
    said = [*asked[:-1], *map(user, behind), user("/rl bad")]
    messages = [{"role": one["role"], "content": one["content"]} for one in said]
    rated = await proxy.client.post(path, json={"model": "tiny", name: messages})

    assert 200 == rated.status_code
    assert [(id_of(first), 1.0), (id_of(dropped), -1.0)] == [
        one[:2] for one in await standing(proxy)
    ]


@pytest.mark.parametrize("behind", [[], [user(NOTE)]], ids=["nothing", "note"])
async def test_an_answer_to_a_tools_result_that_was_dropped_is_rated(
    behind: list[Message], proxy: Running
) -> None:
    """Not the answer that called the tool."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = [
        user("one"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    dropped = await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": asked}
    )

    await say(proxy, [*asked, *behind], "/rl bad")

    assert [(id_of(dropped), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_a_tools_result_without_an_answer_leaves_the_call_above_it(
    engine: FakeEngine, proxy: Running
) -> None:
    """As where its user cuts a long loop off; but not what they said behind it."""
    history, first = await say(proxy, [], "one")
    asked = [*history, {"role": "tool", "tool_call_id": "c", "content": "2"}]
    interrupted = [asked, [*asked, user("stop")]]
    engine.handler, answers = refuses, engine.handler
    for messages in interrupted:
        await proxy.client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": messages}
        )
    engine.handler = answers

    told = [text_of((await say(proxy, messages, "/rl bad"))[1]) for messages in interrupted]

    assert told[0].startswith("[strop] Rated the answer above bad")
    assert "no answer, so there is nothing to rate" in told[1]
    assert [(id_of(first), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_a_dropped_answer_of_several_choices_is_not_rated(proxy: Running) -> None:
    """Which of them was read is nobody's guess."""
    asked = [user("one")]
    await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": asked, "n": 2}
    )

    _, told = await say(proxy, asked, "/rl bad")

    assert text_of(told).startswith("[strop] There is no answer above")
    assert [] == await standing(proxy)


async def test_of_two_answers_that_were_dropped_the_last_is_rated(proxy: Running) -> None:
    """Each question stands in the history, and no answer behind it."""
    history, _ = await say(proxy, [], "one")
    asked, _ = await say(proxy, history, "two")
    asked, last = await say(proxy, [*asked[:-1], user(NOTE)], "three")
    await say(proxy, history, "two")

    await say(proxy, [*asked[:-1], user(NOTE)], "/rl bad")

    assert [(id_of(last), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_an_answer_to_other_words_is_not_the_one_that_was_dropped(proxy: Running) -> None:
    """They begin as the question does, or say the same of another image."""
    history, first = await say(proxy, [], "one")
    await say(proxy, history, "two")
    images = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        for url in ("data:image/png;base64,AA", "data:image/png;base64,BB")
    ]
    await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": [*history, images[0]]}
    )

    await say(proxy, [*history, user("two three"), images[1]], "/rl bad")
    await say(proxy, [*history, images[1]], "/rl bad")

    assert [(id_of(first), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_an_answer_that_is_cut_off_at_that_moment_is_rated(
    engine: FakeEngine, proxy: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command may come before its connection is seen closed, as from an agent's queue."""
    monkeypatch.setattr(flights, "LANDING_S", waiting.LIMIT_S)
    history, first = await say(proxy, [], "one")
    history, _ = await say(proxy, history, "/rl good")
    async with streaming(engine, proxy, [*history, user("two")]) as cut:
        rating = asyncio.create_task(say(proxy, [*history, user("two")], "/rl bad"))
        tasks = proxy.server.server_state.tasks
        await waiting.until(lambda: rating.done() or 2 == len(tasks))
    await rating

    assert [(id_of(first), 1.0), (id_of(cut), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_an_answer_that_goes_on_for_another_client_does_not_hold_a_rating_up(
    engine: FakeEngine, proxy: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for long, though it is one to the same question."""
    monkeypatch.setattr(flights, "LANDING_S", 0.02)
    history, first = await say(proxy, [], "one")
    async with streaming(engine, proxy, [*history, user("two")]):
        await say(proxy, [*history, user("two")], "/rl bad")

        assert 1 == proxy.services.relay.num_calls
    assert [(id_of(first), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_in_a_forked_session_the_answer_that_was_dropped_there_is_rated(
    proxy: Running,
) -> None:
    """What it was forked from keeps its rating."""
    names = [{"x-strop-session": name} for name in "ab"]
    history, first = await say(proxy, [], "one", **names[0])
    await say(proxy, history, "/rl good", **names[0])
    asked, dropped = await say(proxy, history, "two", **names[1])

    await say(proxy, asked[:-1], "/rl bad", **names[1])

    assert [(id_of(first), 1.0), (id_of(dropped), -1.0)] == [
        one[:2] for one in await standing(proxy)
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {"max_tokens": 1},
        {"response_format": {"type": "json_object"}},
    ],
    ids=["token", "title"],
)
async def test_what_nobody_reads_is_not_the_answer_that_was_dropped(
    proxy: Running, asked: dict[str, object]
) -> None:
    """Agents count tokens of a question, and ask for a title of it."""
    history, dropped = await say(proxy, [], "one")
    system = {"role": "system", "content": "Generate a concise, short title."}
    body = {"model": "tiny", "messages": [system, *history[:-1]], **asked}
    await proxy.client.post("/v1/chat/completions", json=body)

    await say(proxy, history[:-1], "/rl bad")

    assert [(id_of(dropped), -1.0)] == [one[:2] for one in await standing(proxy)]


@pytest.mark.parametrize("blank", ["two\n\n", "\r\n\r\ntwo\r\n\r\n \r\n"])
async def test_blank_lines_around_a_question_make_no_other_of_it(
    proxy: Running, blank: str
) -> None:
    """A client may trim what it says again."""
    history, _ = await say(proxy, [], "one")
    _, dropped = await say(proxy, history, blank)

    await say(proxy, [*history, user("two")], "/rl bad")

    assert [(id_of(dropped), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_the_same_question_behind_another_answer_is_another(proxy: Running) -> None:
    """In one session it may be asked twice."""
    names = {"x-strop-session": "s"}
    history, first = await say(proxy, [], "one", **names)
    await say(proxy, [], "two", **names)

    await say(proxy, [*history, user("two")], "/rl bad", **names)

    assert [(id_of(first), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_a_dropped_answer_is_looked_for_in_its_session(proxy: Running) -> None:
    """Though another session's is newer, and answers the same."""
    names = [{"x-strop-session": name} for name in "ab"]
    asked, first = await say(proxy, [], "one", **names[0])
    await say(proxy, [], "one", **names[1])

    await say(proxy, asked[:-1], "/rl bad", **names[0])

    assert [(id_of(first), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_of_two_dropped_answers_to_one_question_the_newest_is_rated(proxy: Running) -> None:
    """It was asked again."""
    history, _ = await say(proxy, [], "one")
    await say(proxy, history, "two")
    asked, second = await say(proxy, history, "two")

    await say(proxy, asked[:-1], "/rl bad")

    assert [(id_of(second), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_a_command_that_nobody_answered_does_not_reach_the_model(
    engine: FakeEngine, proxy: Running
) -> None:
    """Its client may have left before strop's answer."""
    history, _ = await say(proxy, [], "one")

    await say(proxy, [*history, user("/rl good")], "on")

    assert "/rl" not in json.dumps(engine.requests[-1].json()["messages"])


async def test_an_answer_to_another_key_does_not_hold_a_rating_up(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it goes on."""
    monkeypatch.setattr(flights, "LANDING_S", 10 * waiting.LIMIT_S)
    keys = [{"authorization": f"Bearer {name}-key-1"} for name in "ab"]
    settings = settings_for(engine.url, server={"client_keys": ("a-key-1", "b-key-1")})
    async with running(settings, tmp_path / "home") as proxy:
        history, first = await say(proxy, [], "one", **keys[0])
        async with streaming(engine, proxy, [user("two")], **keys[1]):
            asked = [*history, user("two")]
            rating = asyncio.create_task(say(proxy, asked, "/rl bad", **keys[0]))
            await waiting.until(rating.done)

        assert [(id_of(first), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_an_answer_of_another_key_is_not_the_one_that_was_dropped(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """Though both keys call their session the same, and ask the same."""
    keys = [{"authorization": f"Bearer {name}-key-1", "x-strop-session": "s"} for name in "ab"]
    settings = settings_for(engine.url, server={"client_keys": ("a-key-1", "b-key-1")})
    async with running(settings, tmp_path / "home") as proxy:
        asked, first = await say(proxy, [], "one", **keys[0])

        _, of_another = await say(proxy, asked[:-1], "/rl bad", **keys[1])
        await say(proxy, asked[:-1], "/rl good", **keys[0])

        assert "nothing to rate" in text_of(of_another)
        assert [(id_of(first), 1.0)] == [one[:2] for one in await standing(proxy)]


async def test_what_another_key_asked_in_a_session_of_that_name_hides_no_answer(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """Though it is more than how many answers back one that was dropped is looked for."""
    keys = [{"authorization": f"Bearer {name}-key-1", "x-strop-session": "s"} for name in "ab"]
    settings = settings_for(engine.url, server={"client_keys": ("a-key-1", "b-key-1")})
    async with running(settings, tmp_path / "home") as proxy:
        history, _ = await say(proxy, [], "one", **keys[0])
        asked, dropped = await say(proxy, history, "two", **keys[0])
        for number in range(9):
            await say(proxy, [], f"other {number}", **keys[1])

        await say(proxy, asked[:-1], "/rl bad", **keys[0])

        assert [(id_of(dropped), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_a_rating_lands_in_the_session_that_the_client_names(proxy: Running) -> None:
    """Two chats of the same words."""
    names = [{"x-strop-session": name} for name in "ab"]
    history, first = await say(proxy, [], "one", **names[0])
    again, second = await say(proxy, [], "one", **names[1])
    assert history == again

    await say(proxy, history, "/rl good", **names[0])
    await say(proxy, history, "on", x_strop_feedback="bad", **names[1])

    assert [(id_of(first), 1.0), (id_of(second), -1.0)] == [
        one[:2] for one in await standing(proxy)
    ]


async def test_a_question_that_was_never_answered_leaves_the_answer_above_it(
    proxy: Running,
) -> None:
    """An agent's own context stands between them, or the engine answered nothing."""
    history, first = await say(proxy, [], "one")
    await say(proxy, history, "two")

    await say(proxy, [*history, user("three")], "/rl bad")

    assert [(id_of(first), -1.0)] == [one[:2] for one in await standing(proxy)]


@pytest.mark.parametrize("num_before", [0, 1], ids=["first", "later"])
async def test_a_question_that_failed_leaves_no_answer_to_rate(
    num_before: int, engine: FakeEngine, proxy: Running
) -> None:
    """Neither another chat's answer to the same words, nor the one above it."""
    begun: list[Message] = []
    for _ in range(num_before):
        begun, _ = await say(proxy, begun, "hello")
    history, _ = await say(proxy, begun, "one")
    history, rated = await say(proxy, history[:-1], "one")
    await say(proxy, history, "/rl good")
    engine.handler, answers = refuses, engine.handler
    system = {"role": "system", "content": "be brief"}
    asked = [system, *begun, user("one")]
    failed = await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": asked}
    )
    engine.handler = answers

    _, typed = await say(proxy, asked, "/rl bad it failed")
    _, status = await say(proxy, asked, "/rl status")

    assert 400 == failed.status_code
    assert "no answer, so there is nothing to rate" in text_of(typed)
    assert "no answer" in text_of(status)
    for told in (typed, status):
        assert [] == without_commands([{"role": "assistant", "content": text_of(told)}])
    assert [(id_of(rated), 1.0)] == [s[:2] for s in await standing(proxy)]


async def test_undo_below_a_question_that_failed_goes_on_to_the_answer_above_it(
    engine: FakeEngine, proxy: Running
) -> None:
    """Nothing was rated since."""
    history, rated = await say(proxy, [], "one")
    await say(proxy, history, "/rl good")
    engine.handler, answers = refuses, engine.handler
    asked = [*history, user("two")]
    await proxy.client.post("/v1/chat/completions", json={"model": "tiny", "messages": asked})
    engine.handler = answers

    _, undone = await say(proxy, asked, "/rl undo")

    assert id_of(rated) in text_of(undone)
    assert [] == await standing(proxy)


async def test_a_title_that_failed_is_not_the_question_that_did(
    engine: FakeEngine, proxy: Running
) -> None:
    """The answer to the same words that the agent dropped is rated."""
    history, dropped = await say(proxy, [], "one")
    engine.handler, answers = refuses, engine.handler
    system = {"role": "system", "content": "Generate a concise, short title."}
    body = {"messages": [system, *history[:-1]], "response_format": {"type": "json_object"}}
    await proxy.client.post("/v1/chat/completions", json={"model": "tiny", **body})
    engine.handler = answers

    await say(proxy, history[:-1], "/rl bad")

    assert [(id_of(dropped), -1.0)] == [one[:2] for one in await standing(proxy)]


async def test_an_answer_that_was_gone_on_from_was_not_dropped(proxy: Running) -> None:
    """Another chat began with the same words, and its first question never came here."""
    history, first = await say(proxy, [], "one")
    await say(proxy, history, "/rl good")
    await say(proxy, history, "two")

    _, typed = await say(proxy, [user("one")], "/rl bad")

    assert "nothing to rate" in text_of(typed)
    assert [(id_of(first), 1.0)] == [s[:2] for s in await standing(proxy)]


async def test_a_conversation_goes_on_after_a_command_as_if_it_had_not_been_there(
    engine: FakeEngine, proxy: Running
) -> None:
    """The command and its answer are taken out before the model and the chain see them."""
    history, first = await say(proxy, [], "one")
    history, _ = await say(proxy, history, "/rl good")
    history, second = await say(proxy, history, "two")
    history, _ = await say(proxy, history, "/rl bad")
    _, third = await say(proxy, history, "three")

    sent = engine.requests[-1].json()["messages"]
    assert ["user", "assistant", "user", "assistant", "user"] == [m["role"] for m in sent]
    assert not any("/rl" in str(m["content"]) or "[strop]" in str(m["content"]) for m in sent)
    parents = [row.parent for row in await proxy.rows()]
    assert [None, id_of(first), id_of(second)] == parents
    assert [(id_of(first), 1.0), (id_of(second), -1.0)] == [s[:2] for s in await standing(proxy)]
    assert third.status_code == 200


async def test_a_command_is_taken_out_where_nothing_is_recorded_too(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """There strop asks for nothing in addition, and sends on what came where it can."""
    settings = settings_for(engine.url, capture={"mode": "off"})
    history = [user("hi"), {"role": "assistant", "content": "hello"}, user("/rl good")]

    async with running(settings, tmp_path / "home") as proxy:
        await say(proxy, [*history, {"role": "assistant", "content": "[strop] noted"}], "and now?")

    said = [one["content"] for one in engine.requests[-1].json()["messages"]]
    assert ["hi", "hello", "and now?"] == said


async def test_a_header_rates_the_answer_that_the_history_ends_in(proxy: Running) -> None:
    """Also the third-last turn's, in a request that goes back there; never the latest around."""
    ids = []
    history: list[Message] = []
    histories = []
    for text in ("one", "two", "three"):
        history, response = await say(proxy, history, text)
        ids.append(id_of(response))
        histories.append(history)

    _, response = await say(proxy, histories[0], "again", x_strop_feedback='bad; comment="no"')

    assert response.headers["x-strop-feedback-status"].startswith("created fb_")
    assert [(ids[0], -1.0, "no", "header", "turn")] == await standing(proxy)


async def test_what_became_of_a_header_is_said_with_an_error_too(
    engine: FakeEngine, proxy: Running
) -> None:
    """The rating stands, whatever becomes of the request: refused, or failed by the engine."""
    history, answer = await say(proxy, [], "one")
    asked = {"model": "tiny", "messages": [*history, user("two")]}

    refused = await proxy.client.post(
        "/v1/chat/completions", json={**asked, "model": "none"}, headers={"X-Strop-Feedback": "bad"}
    )
    engine.handler = dies
    failed = await proxy.client.post(
        "/v1/chat/completions", json=asked, headers={"X-Strop-Feedback": "good"}
    )

    assert [404, 502] == [refused.status_code, failed.status_code]
    for response in (refused, failed):
        assert response.headers["x-strop-feedback-status"].startswith("created fb_")
    assert [(id_of(answer), 1.0, None, "header", "turn")] == await standing(proxy)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_header_beside_a_command_counts_before_it(stream: bool, proxy: Running) -> None:
    """What the person typed stands; what became of the header is said."""
    history, first = await say(proxy, [], "one")

    typed = await proxy.client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [*history, user("/rl bad")], "stream": stream},
        headers={"X-Strop-Feedback": "good"},
    )

    assert text_of(typed).startswith("[strop] Rated the answer above bad")
    assert typed.headers["x-strop-feedback-status"].startswith("created fb_")
    assert [(id_of(first), -1.0, None, "inline", "turn")] == await standing(proxy)


async def test_two_headers_that_rate_are_refused(proxy: Running) -> None:
    """Neither counts: which one is meant is nobody's guess."""
    history, _ = await say(proxy, [], "one")

    response = await proxy.client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [*history, user("two")]},
        headers=[("X-Strop-Feedback", "good; comment=fine"), ("X-Strop-Feedback", "bad")],
    )

    assert 200 == response.status_code
    said = "error invalid_request; expected one X-Strop-Feedback header, got 2; send one"
    assert said == response.headers["x-strop-feedback-status"]
    assert [] == await standing(proxy)


async def test_a_header_may_name_the_answer(proxy: Running) -> None:
    """By strop's id, or by the engine's own."""
    _, first = await say(proxy, [], "one")
    _, second = await say(proxy, [], "two")

    await say(proxy, [], "x", x_strop_feedback="good", x_strop_feedback_for=first.json()["id"])
    await say(proxy, [], "y", x_strop_feedback="0.5", x_strop_feedback_for=id_of(second))

    assert [(id_of(first), 1.0), (id_of(second), 0.5)] == [s[:2] for s in await standing(proxy)]

    _, undone = await say(
        proxy, [], "z", x_strop_feedback="undo", x_strop_feedback_for=first.json()["id"]
    )

    assert undone.headers["x-strop-feedback-status"].startswith("undone ")
    assert [id_of(second)] == [s[0] for s in await standing(proxy)]


RATED: Message = {"x_strop_feedback": "bad", "x_strop_feedback_for": "chatcmpl-half"}
"""Rates what the engine calls so: each answer that hangs."""


@pytest.mark.parametrize("is_recorded", [True, False], ids=["recorded", "in flight"])
async def test_a_header_that_names_an_answer_in_flight_and_another_rates_neither(
    is_recorded: bool, engine: FakeEngine, proxy: Running
) -> None:
    """The engine gives both the same id: whichever was meant, it may be the wrong one."""
    async with contextlib.AsyncExitStack() as streams:
        await streams.enter_async_context(streaming(engine, proxy, [user("one")]))
        if is_recorded:
            await streams.aclose()
            await waiting.until(proxy.rows)
        await streams.enter_async_context(streaming(engine, proxy, [user("two")]))
        _, refused = await say(proxy, [], "x", **RATED)

    status = refused.headers["x-strop-feedback-status"]
    assert status.startswith("error ambiguous_completion_id;")
    assert not (await proxy.services.store.list_feedback(limit=9)).data


async def test_what_was_rated_is_undone_though_a_stream_has_the_engines_id_too(
    engine: FakeEngine, proxy: Running
) -> None:
    """That has no rating yet."""
    async with streaming(engine, proxy, [user("one")]):
        pass
    await waiting.until(proxy.rows)
    await say(proxy, [], "x", **RATED)
    async with streaming(engine, proxy, [user("two")]):
        _, undone = await say(proxy, [], "x", **{**RATED, "x_strop_feedback": "undo"})

    assert undone.headers["x-strop-feedback-status"].startswith("undone ")
    assert [] == await standing(proxy)


async def test_a_rating_of_an_answer_in_flight_waits_for_that_one(
    engine: FakeEngine, proxy: Running
) -> None:
    """Though the engine gives its id to another, which ends before."""
    async with streaming(engine, proxy, [user("one")]) as meant:
        await say(proxy, [], "x", **RATED)
        async with streaming(engine, proxy, [user("two")]):
            pass
        await waiting.until(lambda: 1 == proxy.services.relay.num_calls)
        assert [] == await standing(proxy)

    assert [(id_of(meant), -1.0)] == [
        one[:2] for one in await waiting.until(lambda: standing(proxy))
    ]


async def test_of_answers_in_flight_a_header_names_that_of_its_key(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """The engine's id of another key's is none for it."""
    keys = [{"authorization": f"Bearer {name}-key-1"} for name in "ab"]
    settings = settings_for(engine.url, server={"client_keys": ("a-key-1", "b-key-1")})
    async with running(settings, tmp_path / "home") as proxy:
        async with (
            streaming(engine, proxy, [user("one")], **keys[0]),
            streaming(engine, proxy, [user("one")], **keys[1]) as second,
        ):
            await say(proxy, [], "x", **RATED, **keys[1])

        assert [(id_of(second), -1.0)] == [
            one[:2] for one in await waiting.until(lambda: standing(proxy))
        ]


async def test_of_several_choices_a_header_rates_the_one_that_the_history_ends_in(
    proxy: Running,
) -> None:
    """Whether it names their completion, by either id, or not; what became of it says which."""
    asked = [user("one")]
    answer = await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": asked, "n": 3}
    )
    histories = [[*asked, choice["message"]] for choice in answer.json()["choices"]]
    statuses = []

    for history, name in zip(histories, (None, id_of(answer), answer.json()["id"]), strict=True):
        named = {} if name is None else {"x_strop_feedback_for": name}
        _, response = await say(proxy, history, "on", x_strop_feedback="good", **named)
        statuses.append(response.headers["x-strop-feedback-status"])
    undo = {"x_strop_feedback": "undo", "x_strop_feedback_for": id_of(answer)}
    _, undone = await say(proxy, histories[1], "on", **undo)

    page = await proxy.services.store.list_feedback(limit=100)
    found = {(f.choice, f.state) for f in page.data}
    assert {(0, "standing"), (1, "withdrawn"), (2, "standing")} == found
    statuses.append(undone.headers["x-strop-feedback-status"])
    ends = [f"; completion={id_of(answer)}; choice={index}" for index in (0, 1, 2, 1)]
    assert ends == [one[one.index(";") :] for one in statuses]


async def test_of_equal_choices_the_named_completions_is_rated(proxy: Running) -> None:
    """The newer one's, which it would be by the history alone, is another's."""
    asked = [user("one")]
    mine, _ = [
        await proxy.client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": asked, "n": 2}
        )
        for _ in range(2)
    ]
    history = [*asked, mine.json()["choices"][1]["message"]]

    _, response = await say(
        proxy, history, "on", x_strop_feedback="good", x_strop_feedback_for=id_of(mine)
    )

    status = response.headers["x-strop-feedback-status"]
    assert status.endswith(f"; completion={id_of(mine)}; choice=1")


async def test_a_header_says_nothing_of_another_keys_choices(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """Not even how many they are."""
    settings = settings_for(engine.url, server={"client_keys": ("a-key-1", "b-key-1")})
    async with running(settings, tmp_path / "home") as proxy:
        theirs = await proxy.client.post(
            "/v1/chat/completions",
            json={"model": "tiny", "messages": [user("one")], "n": 2},
            headers={"authorization": "Bearer a-key-1"},
        )

        named = {"x_strop_feedback": "good", "x_strop_feedback_for": id_of(theirs)}
        _, response = await say(proxy, [], "on", authorization="Bearer b-key-1", **named)

    status = response.headers["x-strop-feedback-status"]
    assert status.startswith("error completion_not_found")


@pytest.mark.parametrize("value", ["good", "undo"])
async def test_a_header_that_names_several_choices_is_refused(value: str, proxy: Running) -> None:
    """Where the history ends in none of them, which one is meant is nobody's guess."""
    answer = await proxy.client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": [user("one")], "n": 2}
    )
    history, other = await say(proxy, [], "two")

    _, response = await say(
        proxy, history, "on", x_strop_feedback=value, x_strop_feedback_for=id_of(answer)
    )

    status = response.headers["x-strop-feedback-status"]
    assert status.startswith(f"error invalid_request; {id_of(answer)} has the choices [0, 1]")
    assert [] == await standing(proxy)
    assert 200 == other.status_code


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("great", "error invalid_request"),
        ("2", "error invalid_request"),
        ("good; colour=red", "error invalid_request"),
    ],
)
async def test_a_header_that_can_not_be_understood_fails_only_itself(
    value: str, status: str, proxy: Running
) -> None:
    """The request that carries it is served, and its answer says what was wrong."""
    history, _ = await say(proxy, [], "one")

    _, response = await say(proxy, history, "two", x_strop_feedback=value)

    assert response.headers["x-strop-feedback-status"].startswith(status)
    assert [] == await standing(proxy)


async def test_a_header_without_an_answer_to_rate_says_so(proxy: Running) -> None:
    """A stranger's history, or none, is nobody's."""
    await say(proxy, [], "one")
    strangers = [user("x"), {"role": "assistant", "content": "never said here"}]

    for history in ([], strangers):
        _, response = await say(proxy, history, "two", x_strop_feedback="good")
        assert response.headers["x-strop-feedback-status"].startswith("no-reply")

    assert [] == await standing(proxy)


async def test_the_same_header_again_is_one_rating(proxy: Running) -> None:
    """Clients with static headers repeat them with every request."""
    history, first = await say(proxy, [], "one")
    for _ in range(3):
        _, response = await say(proxy, history, "two", x_strop_feedback="good")

    assert response.headers["x-strop-feedback-status"].startswith("repeat ")
    assert [(id_of(first), 1.0)] == [s[:2] for s in await standing(proxy)]
    counted = await proxy.client.get("/metrics")
    assert 'strop_feedback_total{source="header"} 1.0' in counted.text.splitlines()


async def test_undo_takes_back_the_rating_of_the_answer_above_it_then_those_before(
    proxy: Running,
) -> None:
    """It quotes each; another conversation's ratings stand."""
    other, elsewhere = await say(proxy, [], "elsewhere")
    await say(proxy, other, "/rl good")
    history, first = await say(proxy, [], "one")
    history, _ = await say(proxy, history, "/rl good")
    history, second = await say(proxy, history, "two")
    history, _ = await say(proxy, history, "/rl bad")
    history, _ = await say(proxy, history, "three")

    undone = [text_of((await say(proxy, history, "/rl undo"))[1]) for _ in range(3)]

    for word, rated, said in zip(("bad", "good"), (second, first), undone, strict=False):
        words = rated.json()["choices"][0]["message"]["content"].strip()
        assert said.startswith(f"[strop] Took back the rating {word} (fb_")
        assert said.endswith(f') of {id_of(rated)}: "{words}"')
    assert "no rating in this conversation" in undone[2]
    assert [id_of(elsewhere)] == [s[0] for s in await standing(proxy)]


async def test_undo_below_an_answer_leaves_what_came_after_it(proxy: Running) -> None:
    """An earlier answer's, where its history ends there; and so by a header that names it."""
    begun, first = await say(proxy, [], "one")
    history, second = await say(proxy, begun, "two")
    await say(proxy, begun, "/rl good")
    await say(proxy, history, "/rl bad")

    await say(proxy, begun, "/rl undo")
    after_command = await standing(proxy)
    await say(proxy, begun, "/rl good")
    await say(proxy, history, "x", x_strop_feedback="undo", x_strop_feedback_for=id_of(first))

    assert [(id_of(second), -1.0)] == [s[:2] for s in after_command]
    assert [(id_of(second), -1.0)] == [s[:2] for s in await standing(proxy)]


async def test_undo_leaves_the_ratings_of_other_branches(proxy: Running) -> None:
    """Though they share their session, as two agents do whose first words are the same."""
    begun, first = await say(proxy, [], "one")
    here, _ = await say(proxy, begun, "two")
    there, theirs = await say(proxy, begun, "three")
    await say(proxy, begun, "/rl good")
    await say(proxy, there, "/rl bad")

    undone = [text_of((await say(proxy, here, "/rl undo"))[1]) for _ in range(2)]

    assert id_of(first) in undone[0]
    assert "no rating in this conversation" in undone[1]
    assert [(id_of(theirs), -1.0)] == [s[:2] for s in await standing(proxy)]


async def test_a_header_that_undoes_takes_back_one_rating_however_often_it_comes(
    engine: FakeEngine, proxy: Running
) -> None:
    """SDKs send a request that failed again by themselves."""
    history: list[Message] = []
    ids = []
    for text in ("one", "two", "three"):
        history, answer = await say(proxy, history, text)
        history, _ = await say(proxy, history, "/rl good")
        ids.append(id_of(answer))

    engine.handler = dies
    asked = {"model": "tiny", "messages": [*history, user("on")]}
    statuses = []
    for _ in range(3):
        response = await proxy.client.post(
            "/v1/chat/completions", json=asked, headers={"X-Strop-Feedback": "undo"}
        )
        assert 502 == response.status_code
        statuses.append(response.headers["x-strop-feedback-status"])

    assert statuses[0].startswith("undone fb_")
    assert statuses[0].endswith(f"; completion={ids[2]}")
    assert ["nothing-to-undo"] * 2 == [one.partition(";")[0] for one in statuses[1:]]
    assert ids[:2] == [s[0] for s in await standing(proxy)]


async def test_undo_below_an_unknown_answer_goes_by_the_session_that_the_client_names(
    proxy: Running,
) -> None:
    """Where it names none, nothing is taken back, and the answer says how to."""
    names = {"x-strop-session": "a"}
    history, first = await say(proxy, [], "one", **names)
    history, _ = await say(proxy, history, "/rl bad", **names)
    history, second = await say(proxy, history, "two", **names)
    await say(proxy, history, "/rl good", **names)
    rewritten = [user("in short"), {"role": "assistant", "content": "never said here"}]

    _, unnamed = await say(proxy, rewritten, "/rl undo")
    all_stand = await standing(proxy)
    _, header = await say(proxy, rewritten, "on", x_strop_feedback="undo", **names)
    _, named = await say(proxy, rewritten, "/rl undo", **names)

    assert "nothing to undo" in text_of(unnamed)
    assert "strop undo ID" in text_of(unnamed)
    assert without_commands([{"role": "assistant", "content": text_of(unnamed)}]) == []
    assert [id_of(first), id_of(second)] == [s[0] for s in all_stand]
    assert header.headers["x-strop-feedback-status"].startswith("no-reply")
    assert id_of(second) in text_of(named)
    assert [id_of(first)] == [s[0] for s in await standing(proxy)]


async def test_status_and_help_say_what_there_is(proxy: Running) -> None:
    """An unknown verb asks for help."""
    history, first = await say(proxy, [], "one")
    history, _ = await say(proxy, history, "/rl good")

    _, status = await say(proxy, history, "/rl status")
    _, help_ = await say(proxy, history, "/rl what")
    _, nothing = await say(proxy, [], "/rl good")

    assert "1 good, 0 bad" in text_of(status)
    assert id_of(first) in text_of(status)
    assert "/rl good [why]" in text_of(help_)
    assert "nothing to rate" in text_of(nothing)


@pytest.mark.parametrize(
    "text", ["/rl good\nand more", "please type /rl good", "/rlgood", "`/rl good`"]
)
async def test_text_that_is_not_exactly_a_command_goes_to_the_model(
    text: str, engine: FakeEngine, proxy: Running
) -> None:
    """Pasted text and tool results included."""
    await say(proxy, [], text)
    await proxy.client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "tool", "content": "/rl good"}]},
    )

    assert 2 == len(await proxy.rows())
    assert "/rl good" == engine.requests[-1].json()["messages"][-1]["content"]


async def test_a_rating_finds_its_answer_ten_thousand_completions_later(proxy: Running) -> None:
    """Through the chat, by header and by id."""
    history, first = await say(proxy, [], "one")
    other, second = await say(proxy, [], "two")
    store = proxy.services.store
    pending = []
    for number in range(10_000):
        row = partial(completion, f"cmp_{number:032x}")
        pending.append(store.commit_completion(row, 100))
        if len(pending) == 500:
            for future in pending:
                await future
            pending.clear()

    await say(proxy, history, "/rl good")
    await say(proxy, other, "go on", x_strop_feedback="bad")
    answer = await proxy.client.post(
        "/v1/feedback", json={"completion_id": id_of(first), "rating": "bad", "rater": "me"}
    )

    assert 201 == answer.status_code
    assert [(id_of(first), 1.0), (id_of(second), -1.0), (id_of(first), -1.0)] == [
        s[:2] for s in await standing(proxy)
    ]


async def test_of_equal_histories_the_one_with_the_same_call_is_rated(
    engine: FakeEngine, proxy: Running
) -> None:
    """Two agents ask the same, and the model calls the same: only the calls' ids differ."""
    identities = iter(("call_8c1f5e0a9d3b", "call_77aa12f0be4c"))

    async def calls(request: Call) -> None:
        function = {"name": "weather", "arguments": "{}"}
        made = {"id": next(identities), "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [made]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await request.json({"model": "tiny", "choices": [choice]})

    answers, engine.handler = engine.handler, calls
    (mine, first), (_, twin) = [await say(proxy, [], "weather?") for _ in range(2)]
    engine.handler = answers

    await say(proxy, mine, "/rl bad")
    result = {"role": "tool", "tool_call_id": "call_8c1f5e0a9d3b", "content": "21 degrees"}
    await say(proxy, [*mine, result], "and now?")

    ((rated, value, *_),) = await standing(proxy)
    assert (id_of(first), -1.0) == (rated, value)
    own, other, follower = await proxy.rows()
    assert (id_of(twin), id_of(first)) == (other.completion.id, follower.parent)
    assert own.session == follower.session != other.session


async def test_a_call_that_its_agent_rewrites_is_the_one_that_is_rated(
    engine: FakeEngine, proxy: Running
) -> None:
    """Claude Code adds defaults to what the model asked for: it is refused, or its loop goes on."""
    edit = {"file_path": "/a", "old_string": "x", "new_string": "y\n"}
    identity = "chatcmpl-tool-8c1f5e0a9d3b"
    function = {"name": "Edit", "arguments": json.dumps(edit)}
    call = {"id": identity, "type": "function", "function": function}
    answers = engine.handler

    async def asks_for_an_edit(request: Call) -> None:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await request.json({"model": "tiny", "choices": [choice]})

    async def post(*history: Message) -> str:
        asked = {"model": "tiny", "max_tokens": 50, "messages": history}
        answer = await proxy.client.post("/v1/messages", json=asked)
        assert 200 == answer.status_code
        return answer.text

    asked = user("fix it")
    engine.handler = asks_for_an_edit
    await post(asked)
    engine.handler = answers
    rewritten = edit | {"replace_all": False, "new_string": "y"}
    called = {"type": "tool_use", "id": identity, "name": "Edit", "input": rewritten}
    begun = [asked, {"role": "assistant", "content": [called]}]
    result = {"type": "tool_result", "tool_use_id": identity, "content": "no"}
    refused = [result | {"is_error": True}, {"type": "text", "text": "/rl bad denied"}]

    told = await post(*begun, {"role": "user", "content": refused})
    await post(*begun, {"role": "user", "content": [result]})

    edited, reported = await proxy.rows()
    assert "Rated" in told
    ((rated, value, *_),) = await standing(proxy)
    assert (edited.completion.id, -1.0) == (rated, value)
    assert (edited.completion.id, "tail") == (reported.parent, reported.parent_by)
    assert (edited.turn, edited.session) == (reported.turn, reported.session)
