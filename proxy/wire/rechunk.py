"""Makes the stream of events that a client asked for of an answer that came whole.

Pure. For engines whose streams carry no snapshot: the answer is asked for as JSON, and cut here.
Fields: OpenAI API reference, "Chat" and "Completions", streaming.
"""

from collections.abc import Iterator, Mapping

from strop.proxy.errors import BadRequest
from strop.proxy.wire import body, sse

# What chunks have of the whole answer; usage comes in one of its own.
_CHOICE_ONLY = frozenset({"index", "message", "finish_reason", "logprobs"})


def rechunk(answer: bytes, *, include_usage: bool) -> bytes:
    """Return the events that say what the JSON body `answer` says.

    Of a chat: the role, the reasoning, the text, the tool calls, and the finish reason, each in an
    event of its own. What can't be read is one event as it is.
    """
    try:
        whole = body.parse(answer)
    except BadRequest:
        return sse.event(b" ".join(answer.splitlines()))
    usage = whole.pop("usage", None)
    is_chat = whole.get("object") == "chat.completion"
    head = {**whole, "object": "chat.completion.chunk"} if is_chat else whole
    events = []
    choices = whole.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            parts = _chat(choice) if is_chat else _text(choice)
            events += [body.dumps({**head, "choices": [part]}) for part in parts]
    if include_usage:
        events.append(body.dumps({**head, "choices": [], "usage": usage}))
    return b"".join(sse.event(one) for one in (*events, sse.DONE))


def _chat(choice: Mapping[str, object]) -> Iterator[dict[str, object]]:
    found = choice.get("message")
    message: dict[str, object] = found if isinstance(found, dict) else {}
    rest = {name: value for name, value in choice.items() if name not in _CHOICE_ONLY}
    head = {"index": choice.get("index", 0), **rest}

    def part(delta: dict[str, object], reason: object = None) -> dict[str, object]:
        return {**head, "delta": delta, "finish_reason": reason}

    yield part({"role": message.get("role", "assistant"), "content": ""})
    for name, value in message.items():
        if name == "role" or value is None or value == "":
            continue
        if name == "tool_calls" and isinstance(value, list):
            calls = [
                {"index": at, **call} for at, call in enumerate(value) if isinstance(call, dict)
            ]
            yield part({name: calls})
        else:
            yield part({name: value})
    yield part({}, choice.get("finish_reason"))


def _text(choice: Mapping[str, object]) -> Iterator[dict[str, object]]:
    rest = {name: value for name, value in choice.items() if name != "logprobs"}
    if rest.get("text"):
        yield {**rest, "finish_reason": None}
    yield {**rest, "text": ""}
