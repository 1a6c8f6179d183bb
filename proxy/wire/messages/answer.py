"""Writes an answer as Anthropic's Messages API has it, whole or as a stream, and errors.

Pure. Takes whatever an engine may answer: what is no chat completion says nothing. Shapes:
Anthropic API reference, "Messages", "Streaming" and "Errors".
"""

from collections.abc import Mapping

from strop.proxy.message import OUTER, texts_of
from strop.proxy.wire import body, sse
from strop.proxy.wire.call_places import CallPlaces
from strop.proxy.wire.messages.call import Call
from strop.proxy.wire.translation import choice_in, count_in, reasoning_in

Fields = Mapping[str, object]

# Of a thought, where the vendor seals it. Nobody reads ours; but some clients take an empty one for
# that of a thought cut short, and send such as a user's words (pydantic-ai), or not at all.
_SIGNATURE = "c3Ryb3A="

_ERRORS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(status: object, error: Fields) -> bytes:
    """Return the JSON body that says what the OpenAI error object `error` says."""
    kind, own, message = "api_error", error.get("type"), error.get("message")
    if isinstance(status, int):
        kind = _ERRORS.get(status, "invalid_request_error" if 400 <= status < 500 else kind)
    elif isinstance(own, str) and own in _ERRORS.values():
        kind = own
    said: dict[str, object] = {"type": kind, "message": "the answer failed"}
    if isinstance(message, str):
        said["message"] = message
    if isinstance(details := error.get("details"), dict):
        said["details"] = details
    return body.dumps({"type": "error", "error": said})


class MessageWriter:
    """Writes one answer.

    A stream's thoughts and text go on as they come. A tool call's arguments are held until all have
    come: no client can use a part of them, and what turns out to be no JSON must not reach one as
    JSON (see `Call.input`).

    Args:
        model: the model that was asked for.
        digits: of the answer's id.
    """

    def __init__(self, model: str, digits: str) -> None:
        self._model = model
        self._digits = digits
        self._num_blocks = 0
        self._open: str | None = None
        self._blank: dict[str, list[str]] = {}
        self._calls: dict[int, Call] = {}
        self._places = CallPlaces()
        self._begun: Call | None = None
        self._goes_on = b""
        self._late: list[tuple[str, str]] = []
        self._finish: object = None
        self._stop: object = None
        self._usage: object = None

    def whole(self, answer: Fields) -> bytes:
        """Return the JSON body that says what the chat completion `answer` says."""
        choice = choice_in(answer)
        self._read_end(choice)
        self._usage = answer.get("usage")
        message = choice.get("message")
        said: Fields = message if isinstance(message, dict) else {}
        content: list[dict[str, object]] = []
        if (thought := reasoning_in(said)).strip(OUTER):
            content.append({"type": "thinking", "thinking": thought, "signature": _SIGNATURE})
        if (text := _text_in(said)).strip(OUTER):
            content.append({"type": "text", "text": text})
        for place, part in self._places.read(said, are_pieces=False):
            self._calls.setdefault(place, Call(self._call_id(place))).add(part)
        content += [_call_block(call, call.input()) for call in self._calls.values()]
        model = answer.get("model")
        if isinstance(model, str) and model:
            self._model = model
        return body.dumps(
            self._message(content=content, usage=_usage(self._usage), **self._stop_members())
        )

    def begin(self) -> bytes:
        """Return the events that open a stream."""
        # What was read is known at the end: engines count it with the answer.
        message = self._message(
            content=[], stop_reason=None, stop_sequence=None, usage=_usage(None)
        )
        return _event("message_start", message=message)

    def feed(self, chunk: Fields) -> bytes:
        """Return the events that say what one chunk says; b"" for none yet."""
        if (usage := chunk.get("usage")) is not None:
            self._usage = usage
        choice = choice_in(chunk)
        self._read_end(choice)
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return b""
        said = b""
        if thought := reasoning_in(delta):
            said = self._say("thinking", thought)
        if text := _text_in(delta):
            said += self._say("text", text)
        if "tool_calls" in delta:
            said += self._call(delta)
        return said

    def end(self) -> bytes:
        """Return the events that close a stream, however it ended."""
        events = []
        for call in sorted(self._calls.values(), key=lambda call: call is not self._begun):
            if call is not self._begun:
                events += [self._close(), self._begin_call(call)]
            events.append(self._delta({"type": "input_json_delta", "partial_json": call.json()}))
        stop = self._stop_members()
        self._calls = {}
        events += [self._say(kind, text) for kind, text in self._late]
        events += [
            self._close(),
            _event("message_delta", delta=stop, usage=_usage(self._usage)),
            _event("message_stop"),
        ]
        return b"".join(events)

    def fail(self, error: Fields) -> bytes:
        """Return the events that end a stream in which the OpenAI error object `error` came."""
        return sse.event(error_body(error.get("code"), error), "error")

    def _message(self, **members: object) -> dict[str, object]:
        head = {"id": f"msg_{self._digits}", "type": "message", "role": "assistant"}
        return {**head, "model": self._model, **members}

    def _say(self, kind: str, text: str) -> bytes:
        """Return the events for a piece of what `kind` of block says."""
        if self._calls:
            # The block of a call is open: one at a time, as the API has it.
            self._late.append((kind, text))
            return self._goes_on
        events = b""
        if self._open != kind:
            # The API refuses a text block that is blank; models write such before a tool call.
            if not text.strip(OUTER):
                self._blank.setdefault(kind, []).append(text)
                return b""
            text = "".join((*self._blank.pop(kind, ()), text))
            block = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            events = self._close() + self._begin_block(block)
        return events + self._delta({"type": f"{kind}_delta", kind: text})

    def _call(self, delta: Fields) -> bytes:
        """Take pieces of tool calls; return what shows that the answer goes on."""
        # Clients give up on a stream that is silent for long, and `ping` is no sign of life to all.
        events = self._goes_on
        for place, part in self._places.read(delta):
            call = self._calls.get(place)
            if call is None:
                call = self._calls[place] = Call(self._call_id(place))
            call.add(part)
            if self._begun is None and call.name:
                events = self._close() + self._begin_call(call)
        return events

    def _begin_call(self, call: Call) -> bytes:
        self._begun = call
        events = self._begin_block(_call_block(call, {}))
        self._goes_on = self._delta({"type": "input_json_delta", "partial_json": ""})
        return events

    def _call_id(self, place: int) -> str:
        return f"toolu_{self._digits}_{place}"

    def _begin_block(self, block: Fields) -> bytes:
        self._open = str(block["type"])
        self._num_blocks += 1
        return _event("content_block_start", index=self._num_blocks - 1, content_block=block)

    def _delta(self, delta: Fields) -> bytes:
        return _event("content_block_delta", index=self._num_blocks - 1, delta=delta)

    def _close(self) -> bytes:
        kind, self._open = self._open, None
        if kind is None:
            return b""
        events = b""
        if kind == "thinking":
            events = self._delta({"type": "signature_delta", "signature": _SIGNATURE})
        return events + _event("content_block_stop", index=self._num_blocks - 1)

    def _read_end(self, choice: Fields) -> None:
        if (reason := choice.get("finish_reason")) is not None:
            # Which stop sequence it was, where an engine says so, stands beside the reason.
            self._finish, self._stop = reason, choice.get("stop_reason")

    def _stop_members(self) -> dict[str, object]:
        """Return why the answer ended."""
        sequence = None
        if self._finish == "length":
            reason = "max_tokens"
        elif self._finish == "content_filter":
            reason = "refusal"
        elif self._calls:
            # Some engines say `stop` of a call that was forced.
            reason = "tool_use"
        elif self._finish == "stop" and isinstance(self._stop, str):
            reason, sequence = "stop_sequence", self._stop
        else:
            reason = "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}


def _event(name: str, **members: object) -> bytes:
    return sse.event(body.dumps({"type": name, **members}), name)


def _text_in(holder: Fields) -> str:
    content = holder.get("content")
    if isinstance(content, str) and content:
        return content
    refusal = holder.get("refusal")
    return "".join(texts_of(holder)) or (refusal if isinstance(refusal, str) else "")


def _call_block(call: Call, given: Fields) -> dict[str, object]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def _usage(usage: object) -> dict[str, int]:
    """Return the usage of a chat completion; tokens from the engine's cache are counted apart."""
    read = count_in(usage, "prompt_tokens")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = min(count_in(details, "cached_tokens"), read)
    return {
        "input_tokens": read - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": count_in(usage, "completion_tokens"),
    }
