"""What clients send: request bytes, and the body each must receive.

Conversations of two turns: the second request carries the first one's answer as its history, as an
agent's does. Opens no connection.
"""

from dataclasses import dataclass
from functools import lru_cache

import orjson

from bench import answers
from bench.answers import ID_HOLE, MODEL, Ask

API_KEY = "sk-bench"
_NUMBER_HOLE = b"~conversation~"
_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: application/json\r\n"
    b"Connection: keep-alive\r\nContent-Type: application/json\r\n"
    b"User-Agent: OpenAI/Python 3.52.0\r\nX-Stainless-Lang: python\r\n"
    b"X-Stainless-Package-Version: 3.52.0\r\nX-Stainless-Retry-Count: 0\r\n"
    b"X-Stainless-Read-Timeout: 600\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
)
_PROSE = "You are a careful coding agent. Use your tools one at a time, and say what you did. "


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of request.

    Attributes:
        ask: what the client asks for.
        prompt_bytes: about how long the first request's body is.
        pause_ms: the engine's pause between two events of a stream.
    """

    ask: Ask
    prompt_bytes: int = 1000
    pause_ms: int = 0

    def request(self, port: int, conversation: int, turn: int) -> bytes:
        """Return the whole HTTP request of turn 0 or 1 of a conversation."""
        before, after = _request(self, port, turn)
        return b"%b%014d%b" % (before, conversation, after)


class Expected:
    """The body that a client which asked for `ask` must receive, whatever its id."""

    def __init__(self, ask: Ask) -> None:
        self._template = b"".join(answers.events(ask)) if ask.stream else answers.document(ask)
        start = self._template.index(ID_HOLE)
        self._id = slice(start, start + len(ID_HOLE))

    def id_of(self, body: bytes) -> bytes:
        """Return the hex digits in the place of the id."""
        return body[self._id]

    def is_met(self, body: bytes) -> bool:
        """Whether each byte but the id's is the engine's own."""
        found = body[self._id]
        return len(found) == len(ID_HOLE) and body.replace(found, ID_HOLE) == self._template

    def difference(self, body: bytes) -> str:
        """Return the first place where `body` differs, for a person to read."""
        found = body[self._id]
        got = body.replace(found, ID_HOLE) if len(found) == len(ID_HOLE) else body
        pairs = zip(self._template, got, strict=False)
        shorter = min(len(got), len(self._template))
        at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)
        around = slice(max(0, at - 40), at + 60)
        return f"at byte {at}: expected {self._template[around]!r}, got {got[around]!r}"


@lru_cache
def _request(workload: Workload, port: int, turn: int) -> tuple[bytes, bytes]:
    ask = workload.ask
    padding = max(0, workload.prompt_bytes - 400)
    user = f"{_NUMBER_HOLE.decode()} " + (_PROSE * (padding // len(_PROSE) + 1))[:padding]
    messages = [{"role": "system", "content": _PROSE}, {"role": "user", "content": user}]
    if turn == 1:
        messages.append({"role": "assistant", "content": answers.content(ask.max_tokens)})
        messages.append({"role": "user", "content": "Go on with the next step."})
    fields: dict[str, object] = {
        "messages": messages,
        "model": MODEL,
        "max_tokens": ask.max_tokens,
        "temperature": 1.0,
    }
    if ask.stream:
        fields["stream"] = True
    if ask.top_logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": ask.top_logprobs}
    if workload.pause_ms:
        fields["seed"] = workload.pause_ms
    body = orjson.dumps(fields)
    head = _HEAD % (port, API_KEY.encode(), len(body))
    before, after = body.split(_NUMBER_HOLE)
    return head + before, after
