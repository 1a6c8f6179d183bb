"""What a model answered over the Responses API comes back as the message that was recorded."""

import copy
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses_client import DIGITS, answer, asked, called, chunk, chunks, completion, events

from strop.proxy import conversation
from strop.proxy.wire import chat
from strop.proxy.wire.responses.dialect import RESPONSES

Items = list[dict[str, Any]]

TOOLS = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None},
    {"type": "custom", "name": "patch"},
    {
        "type": "namespace",
        "name": "agents",
        "description": "Other agents.",
        "tools": [{"type": "function", "name": "close"}],
    },
]
WEATHER = called("weather", '{ "city": "Zürich", "days": 2.0}')
PATCH = called("patch", '{"input": "*** Begin\\n+é\\n"}', "call_2")
CLOSE = called("agents__close", "{}", "call_3")
ANSWERS: dict[str, dict[str, Any]] = {
    "text": {"content": "  It is warm.\n"},
    "nothing": {"content": ""},
    "reasoning": {"content": "Warm.", "reasoning_content": "\nIt is June. "},
    "reasoning alone": {"content": None, "reasoning_content": "It is June."},
    "a call": {"content": None, "tool_calls": [WEATHER]},
    "calls": {"content": None, "tool_calls": [WEATHER, PATCH, CLOSE]},
    "all": {"content": "I look.", "reasoning_content": "Hm.", "tool_calls": [CLOSE, WEATHER]},
    "a call of nothing": {"content": None, "tool_calls": [called("weather", "not JSON")]},
    "a refusal": {"content": None, "refusal": "No."},
}


def as_it_came(items: Items) -> Items:
    """What the openai package and openai-agents send back."""
    return items


def without_ids(items: Items) -> Items:
    """What LangChain and others leave of it."""
    return [
        {k: v for k, v in one.items() if k not in ("id", "status") and v is not None}
        for one in items
    ]


CLIENTS = {"as it came": as_it_came, "without ids": without_ids}


def messages_of(items: Items, **members: object) -> Items:
    """The messages of the chat completion that a request with these items becomes."""
    messages = RESPONSES.to_chat(asked(items, **members)).fields["messages"]
    assert isinstance(messages, list)
    return messages


def results_of(message: dict[str, Any]) -> Items:
    """What the tools that `message` calls give back."""
    calls = message.get("tool_calls") or ()
    return [
        {"type": "function_call_output", "call_id": call["id"], "output": "21 degrees"}
        for call in calls
    ]


def follows(history: Items, message: dict[str, Any], output: Items) -> bool:
    """Whether a request that sends `output` back follows the answer `message` to `history`."""
    before = messages_of(history, tools=TOOLS)
    recorded = {"role": "assistant", **copy.deepcopy(message)}
    chain, tail = conversation.extend(conversation.read(before, "key"), recorded)

    results = results_of(message)
    more = [*history, *output, *results, {"role": "user", "content": "Go on."}]
    after = messages_of(more, tools=TOOLS)
    read = conversation.read(after, "key")
    roles = [one["role"] for one in after[len(before) :]]
    assert ["assistant", *["tool"] * len(results), "user"] == roles
    return (chain, tail) == (read.after, read.after_tail)


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("message", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_sent_back_is_the_message_that_was_recorded(
    message: dict[str, Any], client: Callable[[Items], Items]
) -> None:
    """Whole or streamed, its reasoning, its text and its calls are one message again."""
    history = [{"role": "user", "content": "Is it warm?"}]
    request = asked(history, tools=TOOLS)

    whole = answer(request, completion(message))["output"]
    streamed = [
        one["item"]
        for one in events(request, chunks(message))
        if one["type"] == "response.output_item.done"
    ]

    assert whole == streamed
    assert follows(history, message, client(whole))


def test_reasoning_goes_back_to_the_model_as_it_was() -> None:
    """From the summary, which clients show and keep, or from the content that others write."""
    message = ANSWERS["all"]

    output = answer(asked(), completion(message))["output"]
    moved = [{**output[0], "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}]

    for items in (output, moved + output[1:]):
        after = messages_of(items + results_of(message))
        assert "Hm." == after[0]["reasoning_content"]


def test_answers_in_a_row_stay_apart() -> None:
    """Two answers with nothing between them are two messages, and what belongs together is one."""
    first = answer(asked(), completion({"content": "One."}))["output"]
    second = [
        {**item, "id": item["id"].replace(DIGITS, "0" * 32)}
        for item in answer(asked(), completion({"content": "Two."}))["output"]
    ]

    messages = messages_of(first + second)
    bare = messages_of(without_ids(first + second))

    assert ["One.", "Two."] == [one["content"] for one in messages]
    assert messages == bare


def test_a_client_that_puts_each_result_behind_its_call_is_understood() -> None:
    """The calls of one answer are one message, and their results stand behind it."""
    message = ANSWERS["calls"]
    output = answer(asked(tools=TOOLS), completion(message))["output"]
    mixed = [item for pair in zip(output, results_of(message), strict=True) for item in pair]

    messages = messages_of(mixed, tools=TOOLS)

    assert ["assistant", "tool", "tool", "tool"] == [one["role"] for one in messages]
    assert ["call_1", "call_2", "call_3"] == [one["tool_call_id"] for one in messages[1:]]


def test_thoughts_that_came_back_as_a_message_are_thoughts_again() -> None:
    """pydantic-ai writes them between <think> and </think>, as a message without an id."""
    thought = {"role": "assistant", "content": "<think>\nIt is June.\n</think>"}
    text = {"role": "assistant", "content": "Warm."}

    (message,) = messages_of([thought, text])

    assert ("It is June.", "Warm.") == (message["reasoning_content"], message["content"])


def piece(kind: str, text: str) -> dict[str, Any]:
    """Return a delta: of a text, or of the call that `kind` names by its index."""
    if not kind.isdigit():
        return {kind: text}
    function = {"name": "weather", "arguments": text}
    return {"tool_calls": [{"index": int(kind), "id": f"call_{kind}", "function": function}]}


def in_order(kinds: list[str]) -> bool:
    """Whether the calls begin one after the other."""
    calls = list(dict.fromkeys(kind for kind in kinds if kind.isdigit()))
    return calls == sorted(calls)


kinds = st.sampled_from(["content", "reasoning_content", "0", "1", "2"])
texts = st.text(alphabet='ab {"\n\u2028é', max_size=6)
deltas = (
    st.lists(kinds, max_size=8)
    .filter(in_order)
    .flatmap(lambda found: st.tuples(*(st.builds(piece, st.just(kind), texts) for kind in found)))
)


@given(deltas)
def test_any_stream_sent_back_is_what_was_recorded(said: tuple[dict[str, Any], ...]) -> None:
    """In whatever order an engine mixes text, reasoning, and pieces of calls."""
    pieces = [*map(chunk, said), chunk({}, "stop")]
    recorded = chat.read_stream(map(orjson.dumps, pieces)).choices[0].message
    history = [{"role": "user", "content": "Is it warm?"}]

    streamed = [
        one["item"]
        for one in events(asked(history, tools=TOOLS), iter(pieces))
        if one["type"] == "response.output_item.done"
    ]

    assert follows(history, recorded, streamed)
