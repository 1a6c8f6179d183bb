"""What a client of the Responses API sees, and chat answers to show it.

Pure. Knows the dialect's events as the openai package declares them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import orjson
from openai.types.responses import Response, ResponseStreamEvent

from strop.proxy.wire import sse
from strop.proxy.wire.responses.dialect import RESPONSES

DIGITS = "01a1ff1a211d749381f8584627d11c18"
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}

Fields = dict[str, Any]

_EVENTS = {
    get_args(one.model_fields["type"].annotation)[0]: one
    for one in get_args(get_args(ResponseStreamEvent)[0])
}


def asked(said: object = "Hello", /, **members: object) -> Fields:
    """Return a request."""
    return {"model": "tiny", "input": said, **members}


def called(name: str, arguments: str, identity: str = "call_1") -> Fields:
    """Return a tool call, as chat has it."""
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def completion(message: Mapping[str, object], reason: str = "stop", **choice: object) -> Fields:
    """Return a chat completion that says `message`."""
    said = {"index": 0, "message": dict(message), "finish_reason": reason, **choice}
    return {"id": "chatcmpl-1", "model": "tiny", "choices": [said], "usage": USAGE}


def chunks(message: Mapping[str, Any], reason: str | None = "stop") -> Iterator[Fields]:
    """Yield the chunks of a stream that says `message`, in pieces of three characters."""
    yield chunk({"role": "assistant", "content": ""})
    for name in ("reasoning_content", "content", "refusal"):
        for piece in _pieces(message.get(name) or ""):
            yield chunk({name: piece})
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield chunk({"tool_calls": [{**call, "index": index, "function": function}]})
        for piece in _pieces(call["function"]["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    if reason is not None:
        yield chunk({}, reason)
    yield {"model": "tiny", "choices": [], "usage": USAGE}


def chunk(delta: Mapping[str, object], reason: str | None = None, **choice: object) -> Fields:
    """Return one chunk of a stream."""
    said = {"index": 0, "delta": dict(delta), "finish_reason": reason, **choice}
    return {"id": "chatcmpl-1", "model": "tiny", "choices": [said]}


def answer(request: Fields, chat: Fields) -> Fields:
    """Return the response that says what the completion `chat` says, as its declaration has it."""
    said = orjson.loads(RESPONSES.to_chat(request).writer(DIGITS).whole(chat))
    Response.model_validate(said)
    return dict(said)


def events(request: Fields, pieces: Iterator[Fields]) -> list[Fields]:
    """Return the events that say what a chat stream says, each as its declaration has it."""
    writer = RESPONSES.to_chat(request).writer(DIGITS)
    stream = writer.begin() + b"".join(map(writer.feed, pieces)) + writer.end()
    return parsed(stream)


def parsed(stream: bytes, *, is_declared: bool = True) -> list[Fields]:
    """Return the events of a stream, which are as the dialect declares them if `is_declared`."""
    found = []
    for event in sse.events(stream):
        said = orjson.loads(sse.data_of(event))
        assert event.startswith(f"event: {said['type']}\n".encode())
        if is_declared:
            _EVENTS[said["type"]].model_validate(said)
        found.append(said)
    assert list(range(len(found))) == [one["sequence_number"] for one in found]
    return found


def _pieces(text: str) -> Iterator[str]:
    return (text[at : at + 3] for at in range(0, len(text), 3))
