"""The chat completions dialect: requests, answers in JSON and streams, and answers of our own.

Pure. Fields and events: OpenAI API reference, "Chat"; vLLM's `token_ids` and `prompt_token_ids`
beside them.
"""

import time
from collections.abc import Collection, Iterable, Mapping

from strop.proxy.errors import BadRequest
from strop.proxy.wire import body
from strop.proxy.wire.answer import Answer
from strop.proxy.wire.call_places import CallPlaces


def messages_of(fields: Mapping[str, object]) -> list[object]:
    """Return the messages of a request.

    Raises:
        BadRequest: `messages` is missing or no array.
    """
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise BadRequest(
            "expected `messages` to be an array of message objects, got "
            + ("nothing" if messages is None else type(messages).__name__),
            param="messages",
        )
    return messages


def read_json(answer: bytes) -> Answer:
    """Return what a JSON body answered."""
    result = Answer()
    for choice, entry in result.entries([answer] if answer else []):
        if isinstance(entry.message, dict):
            choice.message = entry.message
    return result


def read_stream(chunks: Iterable[bytes]) -> Answer:
    """Return what the chunks of a stream, complete or cut off, answered together."""
    result = Answer()
    for choice, entry in result.entries(chunks):
        if isinstance(entry.delta, dict):
            _merge(choice.message, entry.delta)
    for choice in result.choices.values():
        _finish(choice.message)
    return result


# A delta's objects of which some members come in pieces. OpenAI API reference, "Chat", streaming:
# the call of a function before there were tools, and what is said aloud, base64 and as text.
_IN_PIECES = {"function_call": ("arguments",), "audio": ("data", "transcript")}
# What some engines write where a later piece has nothing to say of a name, an id or a role.
_NOTHING = (None, "")


class _Text(list[str]):
    """A text in its pieces, while they come: adding each to the others would copy them all."""


class _Calls(dict[int, dict[str, object]]):
    """The tool calls of a message, by their places, while its deltas come."""

    def __init__(self) -> None:
        self.places = CallPlaces()


def _merge(message: dict[str, object], delta: Mapping[str, object]) -> None:
    for key, value in delta.items():
        if isinstance(value, str) and key != "role":
            _add_text(message, key, value)
        elif key == "tool_calls" and isinstance(value, list):
            calls = message.get(key)
            if not isinstance(calls, _Calls):
                calls = message[key] = _Calls()
            for place, part in calls.places.read(delta):
                _merge_call(calls.setdefault(place, {}), part)
        elif key in _IN_PIECES and isinstance(value, dict):
            holder = message.get(key)
            if not isinstance(holder, dict):
                holder = message[key] = {}
            _merge_members(holder, value, _IN_PIECES[key])
        elif value not in _NOTHING:
            message[key] = value


def _merge_members(
    holder: dict[str, object], part: Mapping[str, object], in_pieces: Collection[str]
) -> None:
    """Take the members of a delta's object: the texts of those `in_pieces` are joined."""
    for name, value in part.items():
        if name in in_pieces and isinstance(value, str):
            _add_text(holder, name, value)
        elif value not in _NOTHING:
            holder[name] = value


def _add_text(holder: dict[str, object], key: str, piece: str) -> None:
    known = holder.get(key)
    if isinstance(known, _Text):
        known.append(piece)
    else:
        holder[key] = _Text((piece,))


def _merge_call(call: dict[str, object], part: Mapping[str, object]) -> None:
    for key, value in part.items():
        if value in _NOTHING or key == "index":
            continue
        if key == "function" and isinstance(value, dict):
            function = call.get(key)
            if not isinstance(function, dict):
                function = call[key] = {}
            _merge_members(function, value, _IN_PIECES["function_call"])
        else:
            call[key] = value


def _finish(message: dict[str, object]) -> None:
    """Make of a message that was merged what it would be in a body."""
    calls = message.get("tool_calls")
    if isinstance(calls, _Calls):
        message["tool_calls"] = [calls[place] for place in sorted(calls)]
        for call in calls.values():
            if isinstance(function := call.get("function"), dict):
                _join_texts(function)
    for key in _IN_PIECES:
        if isinstance(holder := message.get(key), dict):
            _join_texts(holder)
    _join_texts(message)
    message.setdefault("role", "assistant")
    message.setdefault("content", None)


def _join_texts(holder: dict[str, object]) -> None:
    for key, value in holder.items():
        if isinstance(value, _Text):
            holder[key] = "".join(value)


def say(text: str, *, identity: str, model: str) -> bytes:
    """Return a JSON answer of our own that says `text`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    return body.dumps(
        {
            "id": identity,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    )
