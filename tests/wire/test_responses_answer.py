"""What a chat completion answers is said in the words of the Responses API, whole and streamed."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses_client import (
    DIGITS,
    USAGE,
    answer,
    asked,
    called,
    chunk,
    chunks,
    completion,
    events,
    parsed,
)

from strop.proxy.wire.responses.dialect import RESPONSES

Fields = dict[str, Any]

TOOLS: list[Fields] = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None},
    {"type": "custom", "name": "patch"},
    {
        "type": "namespace",
        "name": "agents",
        "description": "Other agents.",
        "tools": [{"type": "function", "name": "close"}],
    },
]
LOGPROBS = {
    "content": [
        {
            "token": "Hi",
            "logprob": -0.5,
            "bytes": [72, 105],
            "top_logprobs": [{"token": "Ho", "logprob": -1.0, "bytes": None}],
        }
    ]
}


def types(found: list[Fields]) -> list[str]:
    """Return what the events are, without their common beginning."""
    return [one["type"].removeprefix("response.") for one in found]


def streamed(request: Fields, *pieces: Fields) -> list[Fields]:
    """Return the events of a stream of these chunks."""
    return events(request, iter(pieces))


def test_a_response_says_what_was_asked_and_what_it_cost() -> None:
    """Its id has the digits of the completion's."""
    request = asked(instructions="Be short.", tools=TOOLS, metadata={"a": "b"}, temperature=0.5)

    found = answer(request, completion({"role": "assistant", "content": "Hello."}))

    expected = {
        "id": f"resp_{DIGITS}",
        "object": "response",
        "status": "completed",
        "model": "tiny",
        "instructions": "Be short.",
        "tools": TOOLS,
        "tool_choice": "auto",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "error": None,
        "incomplete_details": None,
    }
    assert expected == {key: found[key] for key in expected}


def test_usage_is_told_in_this_dialects_words() -> None:
    """With what was cached and what was reasoning; none where the engine told none."""
    found = answer(asked(), completion({"content": "Hello."}))
    untold = answer(asked(), {**completion({"content": "Hello."}), "usage": None})

    assert {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    } == found["usage"]
    assert untold["usage"] is None


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
        (None, "completed", None),
    ],
)
def test_why_an_answer_ended_is_its_status(
    reason: str | None, status: str, why: Fields | None
) -> None:
    """And its last event, and the status of the item in which it was cut."""
    message = {"content": "Hello.", "reasoning_content": "Hm."}

    found = answer(asked(), completion(message, reason or ""))
    last = events(asked(), chunks(message, reason))[-1]

    assert f"response.{status}" == last["type"]
    for response in (found, last["response"]):
        assert (status, why) == (response["status"], response["incomplete_details"])
        assert ["completed", status] == [item["status"] for item in response["output"]]


def test_thoughts_that_were_cut_short_are_the_same_in_each_event() -> None:
    """The answer was cut in the empty text behind them, without which clients wait."""
    found = events(asked(), chunks({"reasoning_content": "Hm."}, "length"))

    done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    assert found[-1]["response"]["output"] == done
    assert ["completed", "incomplete"] == [item["status"] for item in done]


def test_a_response_is_the_first_choice() -> None:
    """Some engines give more than the one that is asked for."""
    more = {"index": 1, "delta": {"content": "Or not."}, "finish_reason": None}
    both = chunk({"content": "Hello."})
    both["choices"].append(more)

    found = events(asked(), iter([both, chunk({}, "stop")]))

    (item,) = found[-1]["response"]["output"]
    assert "Hello." == item["content"][0]["text"]


def test_a_text_is_streamed_piece_by_piece() -> None:
    """Between the events that open and close its response, its item and its part."""
    found = events(asked(), chunks({"content": "Hello."}))

    assert [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ] == types(found)
    assert ["Hel", "lo."] == [one["delta"] for one in found if "delta" in one]
    assert [found[8]["item"]] == found[-1]["response"]["output"]
    assert USAGE["prompt_tokens"] == found[-1]["response"]["usage"]["input_tokens"]


def test_thoughts_are_streamed_before_the_text() -> None:
    """As a summary: some clients show nothing else, or keep nothing else of them."""
    found = events(asked(), chunks({"content": "Yes", "reasoning_content": "Hm."}))

    assert [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
    ] == types(found)[2:9]


def test_calls_are_streamed_as_the_client_names_the_tools() -> None:
    """A custom tool's input as plain text, in one piece; a namespace apart from the name."""
    said = {
        "content": None,
        "tool_calls": [
            called("weather", '{"city":"x"}', "a"),
            called("patch", '{"input":"+é\\n"}', "b"),
            called("agents__close", "{}", "c"),
        ],
    }

    found = events(asked(tools=TOOLS), chunks(said))
    done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    names = types(found)

    assert 4 == names.count("function_call_arguments.delta") - 1
    assert 2 == names.count("function_call_arguments.done")
    assert ["+é\n"] == [
        one["delta"] for one in found if one["type"] == "response.custom_tool_call_input.delta"
    ]
    assert [
        ("function_call", "a", "weather", None, '{"city":"x"}'),
        ("custom_tool_call", "b", "patch", None, "+é\n"),
        ("function_call", "c", "close", "agents", "{}"),
    ] == [
        (
            one["type"],
            one["call_id"],
            one["name"],
            one.get("namespace"),
            one.get("arguments", one.get("input")),
        )
        for one in done
    ]
    assert 3 == len({one["id"] for one in done})


@pytest.mark.parametrize("arguments", ['{"input": 3}', "*** Begin", '["x"]', "{"])
def test_a_custom_tool_gets_what_the_model_wrote_for_it(arguments: str) -> None:
    """Also where that is not the one string that was asked for."""
    message = {"content": None, "tool_calls": [called("patch", arguments)]}

    (item,) = answer(asked(tools=TOOLS), completion(message))["output"]

    assert arguments == item["input"]


def test_a_call_that_comes_in_one_piece_or_without_an_id_is_a_call() -> None:
    """As some engines send it; clients need an id to give the result back."""
    function = {"name": "weather", "arguments": {"city": "x"}}

    found = streamed(asked(tools=TOOLS), chunk({"tool_calls": [{"function": function}]}, "stop"))

    (item,) = found[-1]["response"]["output"]
    assert '{"city":"x"}' == item["arguments"]
    assert item["call_id"]


def test_calls_that_share_an_index_are_calls_of_their_own() -> None:
    """Some engines number each 0."""
    calls = [{"index": 0, **called("weather", "{}", identity)} for identity in ("a", "b")]

    found = streamed(asked(tools=TOOLS), *(chunk({"tool_calls": [one]}) for one in calls))

    output = found[-1]["response"]["output"]
    assert [("a", "{}"), ("b", "{}")] == [(item["call_id"], item["arguments"]) for item in output]


def test_an_answer_of_nothing_is_an_empty_text() -> None:
    """Clients wait for a message, and go on asking without."""
    (item,) = answer(asked(), completion({"content": None}))["output"]
    found = streamed(asked(), chunk({"reasoning": "Hm."}), chunk({}, "stop"))

    assert [""] == [part["text"] for part in item["content"]]
    assert ["reasoning", "message"] == [one["type"] for one in found[-1]["response"]["output"]]


def test_nothing_ends_before_the_end_is_known() -> None:
    """The reason to stop is no end: what it cost comes later, and so do calls' last events."""
    writer = RESPONSES.to_chat(asked(tools=TOOLS)).writer(DIGITS)
    *pieces, usage = chunks({"content": "Hi", "tool_calls": [called("weather", "{}")]})

    stream = writer.begin() + b"".join(map(writer.feed, pieces))
    assert b"" == writer.feed(usage)

    names = types(parsed(stream + writer.end()))
    before = stream.count(b"event: ")
    assert "completed" not in names[:before]
    assert "function_call_arguments.done" not in names[:before]
    assert ["function_call_arguments.done", "output_item.done", "completed"] == names[before:]


def test_logprobs_are_told_where_they_are_asked_for() -> None:
    """With each piece, and with the whole text; else none."""
    wanted = asked(include=["message.output_text.logprobs"], top_logprobs=1)
    pieces = [chunk({"content": "Hi"}, logprobs=LOGPROBS), chunk({}, "stop")]
    expected = [
        {
            "token": "Hi",
            "logprob": -0.5,
            "bytes": [72, 105],
            "top_logprobs": [{"token": "Ho", "logprob": -1.0, "bytes": []}],
        }
    ]

    found = streamed(wanted, *pieces)
    (item,) = answer(wanted, completion({"content": "Hi"}, logprobs=LOGPROBS))["output"]
    unasked = streamed(asked(), *pieces)

    assert expected == item["content"][0]["logprobs"]
    assert [expected, expected] == [one["logprobs"] for one in found if "logprobs" in one]
    assert [item] == found[-1]["response"]["output"]
    assert [[], []] == [one["logprobs"] for one in unasked if "logprobs" in one]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "died", "type": "upstream_error", "code": "upstream_died"}, "server_error"),
        ({"message": "no", "type": "invalid_request_error", "code": None}, "invalid_prompt"),
        ({"message": "no", "type": "BadRequestError", "code": 400}, "invalid_prompt"),
        ({"message": "long", "code": "context_length_exceeded"}, "context_length_exceeded"),
        ({"message": None, "code": 500}, "server_error"),
    ],
)
def test_an_error_in_a_stream_fails_the_response(error: Fields, code: str) -> None:
    """By a code that tells Codex whether to try again; with what was said so far."""
    writer = RESPONSES.to_chat(asked()).writer(DIGITS)

    stream = writer.begin() + writer.feed(chunk({"content": "Hel"})) + writer.fail(error)

    found = parsed(stream, is_declared=False)
    assert "response.failed" == found[-1]["type"]
    response = found[-1]["response"]
    assert ("failed", code) == (response["status"], response["error"]["code"])
    assert response["error"]["message"]
    assert [("incomplete", "Hel")] == [
        (item["status"], item["content"][0]["text"]) for item in response["output"]
    ]


def test_an_error_is_an_openai_error() -> None:
    """As it is, under `error`."""
    error = {"message": "no", "type": "x", "param": None, "code": "y"}

    assert {"error": error} == orjson.loads(RESPONSES.error(400, error))


@pytest.mark.parametrize(
    ("chats", "sent"),
    [
        ("max_tokens", "max_output_tokens"),
        ("response_format", "text.format"),
        ("temperature", "temperature"),
        (None, None),
        (["max_tokens"], ["max_tokens"]),
    ],
)
def test_an_error_names_what_the_client_sent(chats: object, sent: object) -> None:
    """Whoever refuses it knows it by chat's name."""
    error = {"message": "no", "param": chats}

    assert {"error": {**error, "param": sent}} == orjson.loads(RESPONSES.error(400, error))


names = st.sampled_from(
    [
        *("content", "reasoning", "refusal", "tool_calls", "index", "id", "function", "name"),
        *("arguments", "finish_reason", "logprobs", "usage", "model", "top_logprobs"),
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
    max_leaves=20,
)
bodies = st.dictionaries(
    st.sampled_from(["choices", "usage", "model", "created", "id"]),
    values
    | st.lists(
        st.fixed_dictionaries({"delta": values, "message": values, "logprobs": values}), max_size=2
    ),
)


@given(bodies, st.lists(bodies, max_size=3))
def test_any_answer_of_an_engine_is_written(whole: Fields, pieces: list[Fields]) -> None:
    """Whatever shape it has: well-formed, with no exception."""
    request = asked(tools=TOOLS, include=["message.output_text.logprobs"])
    translated = RESPONSES.to_chat(request)

    said = orjson.loads(translated.writer(DIGITS).whole(whole))
    writer = translated.writer(DIGITS)
    stream = [writer.begin(), *map(writer.feed, pieces), writer.end()]

    assert "response" == said["object"]
    found = parsed(b"".join(stream), is_declared=False)
    assert "response.completed" == found[-1]["type"]
    opened = [one["output_index"] for one in found if one["type"].endswith("item.added")]
    closed = [one["output_index"] for one in found if one["type"].endswith("item.done")]
    assert opened == sorted(closed)
