"""A Messages client reads in its own dialect what a chat completion answered."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.proxy import conversation
from strop.proxy.message import MALFORMED
from strop.proxy.wire import body, chat
from strop.proxy.wire.messages.dialect import MESSAGES
from strop.proxy.wire.translation import Writer

Item = dict[str, Any]

QUESTION: Item = {"role": "user", "content": "hi"}
USAGE: Item = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 6},
}


def writer(*history: Item) -> Writer:
    """Return what writes the answer to a request."""
    asked = {"model": "tiny", "max_tokens": 9, "messages": [*(history or (QUESTION,))]}
    return MESSAGES.to_chat(asked).writer("0af3")


def chunk(reason: str | None = None, *, stop_reason: object = None, **delta: Any) -> Item:
    """Return one chunk of a chat stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "stop_reason": stop_reason}
    return {"id": "c", "model": "tiny", "choices": [choice]}


def call(index: int, arguments: str, **members: Any) -> Item:
    """Return a piece of a tool call."""
    name = members.pop("name", None)
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function, **members}


def events_of(stream: bytes) -> list[Item]:
    """Return a stream's events, each named as its type."""
    events = []
    for event in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert f"event: {events[-1]['type']}" == name
    return events


def streamed(*chunks: Item, writing: Writer | None = None) -> list[Item]:
    """Return the events that say what `chunks` say."""
    writing = writing or writer()
    fed = [writing.begin(), *(writing.feed(one) for one in chunks), writing.end()]
    return events_of(b"".join(fed))


def message_of(events: list[Item]) -> Item:
    """Return the message that a client puts together from a stream, one block after the other."""
    message: Item = events[0]["message"]
    pieces = ""
    for event in events[1:-2]:
        kind = event["type"].removeprefix("content_block_")
        content = message["content"]
        if kind == "start":
            assert len(content) == event["index"]
            content.append(event["content_block"])
            pieces = ""
        elif kind == "stop":
            assert len(content) - 1 == event["index"]
            if content[-1]["type"] == "tool_use":
                content[-1]["input"] = json.loads(pieces)
        else:
            assert len(content) - 1 == event["index"]
            name, said = next((k, v) for k, v in event["delta"].items() if k != "type")
            if name == "partial_json":
                pieces += said
            else:
                content[-1][name] += said
    assert ["message_delta", "message_stop"] == [event["type"] for event in events[-2:]]
    return {**message, **events[-2]["delta"], "usage": events[-2]["usage"]}


def whole_of(*chunks: Item) -> Item:
    """Return the answer to the same chunks in one body."""
    answer = chat.read_stream([body.dumps(one) for one in chunks])
    choice = answer.choices[0]
    end = next(
        (c for one in chunks for c in one["choices"] if c["finish_reason"] is not None),
        {"stop_reason": None},
    )
    said = {
        "choices": [
            {
                "message": choice.message,
                "finish_reason": choice.finish_reason,
                "stop_reason": end["stop_reason"],
            }
        ],
        "model": "tiny",
        "usage": next((one["usage"] for one in chunks if "usage" in one), None),
    }
    found = json.loads(writer().whole(said))
    assert isinstance(found, dict)
    return found


ROLE = chunk(role="assistant", content="")
END = {"choices": [], "usage": USAGE}
THOUGHT = [chunk(reasoning_content="Let me "), chunk(reasoning_content="see.")]
ASK = [
    chunk(tool_calls=[call(0, "", id="c1", type="function", name="weather")]),
    chunk(tool_calls=[call(0, '{"city": ')]),
    chunk(tool_calls=[call(0, '"Paris"}')]),
]
ASK_TWICE = [*ASK, chunk(tool_calls=[call(1, '{"city":"Rome"}', id="c2", name="weather")])]

ANSWERS: dict[str, list[Item]] = {
    "text": [ROLE, chunk(content=" Hé"), chunk(content="llo \u2028"), chunk("stop"), END],
    "calls": [ROLE, *ASK_TWICE, chunk("tool_calls"), END],
    "thought and text": [ROLE, *THOUGHT, chunk(content="\n\n"), chunk(content="Hi"), chunk("stop")],
    "all": [ROLE, *THOUGHT, chunk(content="I ask."), *ASK, chunk("tool_calls"), END],
    "no arguments": [chunk(tool_calls=[call(0, "", id="c1", name="now")]), chunk("tool_calls")],
    "cut arguments": [*ASK[:2], chunk("length"), END],
    "no object": [chunk(tool_calls=[call(0, "[1, 2]", id="c1", name="weather")]), chunk("stop")],
    "numbers": [
        chunk(tool_calls=[call(0, '{"a": 5000.0, "b": 1e2}', id="c1", name="f")]),
        chunk("tool_calls"),
    ],
    "a thought between": [
        *(chunk(content="a "), chunk(reasoning="b"), chunk(content="c"), chunk("stop")),
    ],
    "blank before a call": [chunk(content="\n\n"), *ASK, chunk("tool_calls")],
    "late text": [*ASK, chunk(content="There."), chunk("tool_calls")],
    "mixed pieces": [
        ASK[0],
        chunk(tool_calls=[call(1, "{", id="c2", name="weather")]),
        *ASK[1:],
        chunk(tool_calls=[call(1, "}")]),
        chunk("tool_calls"),
    ],
    "nothing": [ROLE, chunk("stop"), END],
}
each_answer = pytest.mark.parametrize("chunks", ANSWERS.values(), ids=ANSWERS)


@each_answer
def test_a_stream_says_what_the_body_would(chunks: list[Item]) -> None:
    """Block for block, in the order of the API: thoughts, text, calls."""
    message, whole = message_of(streamed(*chunks)), whole_of(*chunks)

    def said(one: Item) -> list[Any]:
        texts = ["".join(b.get(k, "") for b in one["content"]) for k in ("thinking", "text")]
        return [*texts, [block for block in one["content"] if block["type"] == "tool_use"]]

    assert said(whole) == said(message)
    assert {**whole, "content": None} == {**message, "content": None}


@each_answer
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_an_answer_that_is_sent_back_is_the_one_that_was_recorded(
    chunks: list[Item], stream: bool
) -> None:
    """In each message of its own or in one: the next request follows this completion."""
    message = message_of(streamed(*chunks)) if stream else whole_of(*chunks)
    recorded = chat.read_stream([body.dumps(one) for one in chunks]).choices[0].message
    chain, tail = conversation.extend(conversation.read([QUESTION], "key"), recorded)
    blocks = message["content"]
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "21"}
        for block in blocks
        if block["type"] == "tool_use"
    ]
    user = {"role": "user", "content": [*results, {"type": "text", "text": "and?"}]}

    for answers in ([blocks], [[block] for block in blocks] or [[]]):
        sent = [{"role": "assistant", "content": content} for content in answers]
        said = MESSAGES.to_chat({"max_tokens": 9, "messages": [QUESTION, *sent, user]})
        history = said.fields["messages"]
        assert isinstance(history, list)
        keys = conversation.read(history, "key")

        assert (chain, tail) == (keys.after, keys.after_tail)
        assert ["user", "assistant"] == [one["role"] for one in history[:2]]
        assert len(results) + 3 == len(history)


def test_a_body_has_what_the_api_names() -> None:
    """Its own id, the blocks in order, and what the engine's cache held counted apart."""
    assert {
        "id": "msg_0af3",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [
            {"type": "thinking", "thinking": "Let me see.", "signature": "c3Ryb3A="},
            {"type": "text", "text": "I ask."},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 6,
            "output_tokens": 4,
        },
    } == whole_of(*ANSWERS["all"])


def test_a_stream_has_the_apis_events_in_the_apis_order() -> None:
    """A call's block begins at once, shows that it goes on, and holds its arguments in one."""
    events = streamed(*ANSWERS["all"])

    told = [
        (event["type"], *(event.get("delta") or event.get("content_block") or {}).values())
        for event in events[1:-1]
    ]
    assert [
        ("content_block_start", "thinking", "", ""),
        ("content_block_delta", "thinking_delta", "Let me "),
        ("content_block_delta", "thinking_delta", "see."),
        ("content_block_delta", "signature_delta", "c3Ryb3A="),
        ("content_block_stop",),
        ("content_block_start", "text", ""),
        ("content_block_delta", "text_delta", "I ask."),
        ("content_block_stop",),
        ("content_block_start", "tool_use", "c1", "weather", {}),
        ("content_block_delta", "input_json_delta", ""),
        ("content_block_delta", "input_json_delta", ""),
        ("content_block_delta", "input_json_delta", '{"city": "Paris"}'),
        ("content_block_stop",),
        ("message_delta", "tool_use", None),
    ] == told
    assert ("message_start", "msg_0af3") == (events[0]["type"], events[0]["message"]["id"])
    assert {"type": "message_stop"} == events[-1]


def test_nothing_ends_before_the_end() -> None:
    """What the last chunk is, only the end of the stream shows: usage comes after the reason."""
    writing = writer()
    chunks = [writing.feed(one) for one in (ROLE, chunk(content="Hi"), chunk("stop"), END)]

    kinds = {event["type"] for event in events_of(writing.begin() + b"".join(chunks))}
    assert {"message_start", "content_block_start", "content_block_delta"} == kinds


@pytest.mark.parametrize(
    ("reason", "stop", "calls", "expected"),
    [
        ("stop", None, [], ("end_turn", None)),
        ("stop", 151645, [], ("end_turn", None)),
        ("stop", "##", [], ("stop_sequence", "##")),
        ("length", None, [], ("max_tokens", None)),
        ("length", None, ASK, ("max_tokens", None)),
        ("tool_calls", None, ASK, ("tool_use", None)),
        ("stop", None, ASK, ("tool_use", None)),
        ("content_filter", None, [], ("refusal", None)),
        (None, None, [], ("end_turn", None)),
        (None, None, ASK, ("tool_use", None)),
        ("abort", None, [], ("end_turn", None)),
    ],
)
def test_each_reason_to_end_has_its_name(
    reason: str | None, stop: object, calls: list[Item], expected: tuple[str, str | None]
) -> None:
    """A stream that ended without any, too."""
    chunks = [*calls, chunk(reason, stop_reason=stop)]

    for said in (message_of(streamed(*chunks)), whole_of(*chunks)):
        assert expected == (said["stop_reason"], said["stop_sequence"])


@pytest.mark.parametrize("arguments", ['{"city": "Pa', '"Paris"', "[1, 2]", "{'a': 1}", "\ud800"])
def test_arguments_that_are_no_object_come_as_the_one_member_of_one(arguments: str) -> None:
    """Whole: a client that parses them would break off, or call the tool with a part of them."""
    chunks = [chunk(tool_calls=[call(0, arguments, id="c1", name="t")]), chunk("stop")]

    for said in (message_of(streamed(*chunks)), whole_of(*chunks)):
        assert {MALFORMED: arguments} == said["content"][0]["input"]


def test_thoughts_are_found_under_either_name() -> None:
    """Some engines give both, one of them empty."""
    (block,) = message_of(streamed(chunk(reasoning_content="", reasoning="Hm.")))["content"]

    assert "Hm." == block["thinking"]


def test_a_call_without_an_id_gets_one_of_its_own() -> None:
    """A client names the call by it when it sends the result."""
    chunks = [chunk(tool_calls=[call(at, "{}", name="t") for at in (0, 1)]), chunk("tool_calls")]

    expected = ["toolu_0af3_0", "toolu_0af3_1"]
    assert expected == [block["id"] for block in message_of(streamed(*chunks))["content"]]
    assert expected == [block["id"] for block in whole_of(*chunks)["content"]]


def test_a_call_whose_name_comes_late_begins_with_it() -> None:
    """Some engines send an id first."""
    chunks = [
        chunk(tool_calls=[{"index": 0, "id": "c1"}]),
        chunk(tool_calls=[call(1, "{}", id="c2", name="u")]),
        chunk(tool_calls=[call(0, "{}", name="t")]),
    ]

    content = message_of(streamed(*chunks))["content"]

    assert {("c1", "t"), ("c2", "u")} == {(block["id"], block["name"]) for block in content}


def test_calls_that_share_an_index_are_calls_of_their_own() -> None:
    """Some engines number each 0."""
    chunks = [
        chunk(tool_calls=[call(0, '{"a":1}', id="c1", name="t")]),
        chunk(tool_calls=[call(0, '{"b":2}', id="c2", name="u")]),
    ]

    content = message_of(streamed(*chunks))["content"]

    assert [("c1", "t", {"a": 1}), ("c2", "u", {"b": 2})] == [
        (block["id"], block["name"], block["input"]) for block in content
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error")),
        *((404, "not_found_error"), (413, "request_too_large"), (429, "rate_limit_error")),
        *((402, "billing_error"), (422, "invalid_request_error"), (504, "timeout_error")),
        *((503, "overloaded_error"), (529, "overloaded_error"), (500, "api_error")),
    ],
)
def test_an_error_is_of_the_apis_type_for_its_status(status: int, kind: str) -> None:
    """And says what the engine or strop said; in a stream, the error's code is its status."""
    error = {"message": "no room", "type": "x", "param": None, "code": status}
    expected = {"type": "error", "error": {"type": kind, "message": "no room"}}

    assert expected == json.loads(MESSAGES.error(status, error))
    assert [expected] == events_of(writer().fail(error))


@pytest.mark.parametrize(
    ("said", "kind"),
    [("invalid_request_error", "invalid_request_error"), ("upstream_error", "api_error")],
)
def test_an_error_without_a_status_is_of_its_own_type(said: str, kind: str) -> None:
    """Where the API has that type; in a stream, the code may be a word."""
    error = {"message": "too long", "type": said, "code": "context_length_exceeded"}

    (found,) = events_of(writer().fail(error))

    assert kind == found["error"]["type"]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["stop", "tool_calls", "\ud800", "{}"])
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "tool_calls", "function", "name", "arguments", "index"])
            | st.text(),
            inner,
            max_size=4,
        )
    ),
)
deltas = st.dictionaries(
    st.sampled_from(["content", "reasoning_content", "reasoning", "refusal", "tool_calls"]),
    values | st.lists(st.dictionaries(st.sampled_from(["index", "id", "function"]), values)),
    max_size=3,
)
choices = st.fixed_dictionaries(
    {},
    optional={
        "delta": deltas | values,
        "message": deltas | values,
        "finish_reason": values,
        "stop_reason": values,
    },
)
answers = st.fixed_dictionaries(
    {},
    optional={"choices": st.lists(choices | values, max_size=2) | values, "usage": values},
)


@given(st.lists(answers, max_size=4))
def test_any_answer_is_written(said: list[Item]) -> None:
    """Engines are odd; what comes of it is a whole message, and a stream with both its ends."""
    message_of(streamed(*said))
    for one in said:
        assert "message" == json.loads(writer().whole(one))["type"]
