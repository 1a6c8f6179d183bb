"""A stream made of a whole answer says what the answer says."""

import json
from typing import Any

from strop.proxy.wire import chat, completions, sse
from strop.proxy.wire.rechunk import rechunk

HEAD = {"id": "chatcmpl-1", "created": 7, "model": "m", "system_fingerprint": "f"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def answer_of(choice: dict[str, Any], kind: str = "chat.completion") -> bytes:
    return json.dumps({**HEAD, "object": kind, "choices": [choice], "usage": USAGE}).encode()


def events_of(stream: bytes) -> list[dict[str, Any]]:
    *events, done = sse.payloads(stream)
    assert sse.DONE == done
    return [json.loads(event) for event in events]


def test_a_chat_reads_the_same_from_its_events() -> None:
    """Reasoning, text and tool calls, each with its index; the finish reason once, at the end."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "Hi 🙂", "reasoning": "hm", "tool_calls": [call]}
    whole = answer_of({"index": 0, "message": message, "finish_reason": "tool_calls"})

    events = events_of(rechunk(whole, include_usage=False))

    read = chat.read_stream(json.dumps(event).encode() for event in events)
    assert message == read.choices[0].message
    assert ["tool_calls"] == [
        reason for e in events if (reason := e["choices"][0]["finish_reason"])
    ]
    assert {"chat.completion.chunk"} == {event["object"] for event in events}
    assert all(event["id"] == "chatcmpl-1" and "usage" not in event for event in events)


def test_an_empty_answer_still_ends() -> None:
    """A null content makes no event of its own."""
    message = {"role": "assistant", "content": None}
    whole = answer_of({"index": 0, "message": message, "finish_reason": "stop"})

    deltas = [e["choices"][0]["delta"] for e in events_of(rechunk(whole, include_usage=False))]

    assert [{"role": "assistant", "content": ""}, {}] == deltas


def test_the_usage_comes_last_where_it_was_asked_for() -> None:
    """In an event without choices, as OpenAI sends it."""
    message = {"role": "assistant", "content": "Hi"}
    whole = answer_of({"index": 0, "message": message, "finish_reason": "stop"})

    last = events_of(rechunk(whole, include_usage=True))[-1]

    assert (USAGE, []) == (last["usage"], last["choices"])


def test_a_text_completion_reads_the_same_too() -> None:
    """Its text stands in the choice itself."""
    choice = {"index": 0, "text": "Hi", "finish_reason": "length"}

    events = events_of(rechunk(answer_of(choice, "text_completion"), include_usage=False))

    read = completions.read_stream(json.dumps(event).encode() for event in events)
    assert "Hi" == read.choices[0].message["text"]
    assert [None, "length"] == [event["choices"][0]["finish_reason"] for event in events]


def test_what_is_no_answer_is_passed_on_as_it_is() -> None:
    """In one line, since a line's end would end the event; nothing made up."""
    assert b"data: not  json\n\n" == rechunk(b"not\n\rjson", include_usage=False)
