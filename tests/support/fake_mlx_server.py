"""A fake mlx_lm.server to run in a `FakeEngine`, in the shapes that 0.32.2 writes.

For what a real one can't be asked to do: be away, be slow, fail. Text, ids and logprobs are those
of `fake_vllm_answers`, by model and adapter.

    async with FakeEngine(FakeMlxServer()) as engine:
        ...
"""

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fake_engine import Call
from fake_vllm_answers import Choice, sample

MODEL_PATH = "/models/tiny"
FINGERPRINT = "0.32.2-0.32.4-Linux-6.1.0-x86_64-with-glibc2.36"
_HEADERS = [
    ("Server", "BaseHTTP/0.6 Python/3.11.7"),
    ("Access-Control-Allow-Origin", "*"),
]


async def _at_once(_: int) -> None:
    return None


@dataclass
class FakeMlxServer:
    """The handler.

    Attributes:
        is_healthy: False once its generation thread has died.
        listed: the ids of its list of models.
        before_event: awaited before each event of a stream.
        loaded: the model and adapter in memory.
        num_loads: how often they were read.
    """

    is_healthy: bool = True
    listed: tuple[str, ...] = (MODEL_PATH,)
    before_event: Callable[[int], Awaitable[None]] = _at_once
    loaded: tuple[str, str | None] | None = None
    num_loads: int = 0

    async def __call__(self, call: Call) -> None:
        """Answer one request, and close its connection: the server speaks HTTP/1.0."""
        match (call.request.method, call.request.path):
            case ("GET", "/health"):
                said = {"status": "ok" if self.is_healthy else "unavailable"}
                await _answer(call, said, 200 if self.is_healthy else 503)
            case ("GET", "/v1/models"):
                cards = [{"id": one, "object": "model", "created": 1} for one in self.listed]
                await _answer(call, {"object": "list", "data": cards})
            case ("POST", "/v1/chat/completions" | "/v1/completions"):
                await self._complete(call, is_chat="chat" in call.request.path)
            case _:
                await call.answer(
                    b"Not Found", 404, [*_HEADERS, _JSON], framing="close", version="1.0"
                )

    async def _complete(self, call: Call, *, is_chat: bool) -> None:
        fields = call.request.json()
        if fields.get("temperature", 0.0) is None:
            return await _answer(
                call, {"error": "temperature must be of type ('float', 'int')"}, 400
            )
        prompt = fields.get("messages") if is_chat else fields.get("prompt")
        if not is_chat and not isinstance(prompt, str):
            return await _answer(call, {"error": "TextEncodeInput must be Union[...]"}, 404)
        model, adapter = fields.get("model", "default_model"), fields.get("adapters")
        weights = (MODEL_PATH, None) if model == "default_model" else (model, adapter)
        if weights != self.loaded:
            self.loaded = weights
            self.num_loads += 1
        limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
        choice = sample(str(weights), json.dumps(prompt), 0, limit)
        answer = _Answer(fields, choice, is_chat)
        if not fields.get("stream"):
            return await _answer(call, answer.whole())
        await call.head(200, [*_HEADERS, _EVENTS], framing="close", version="1.0")
        await call.chunk(b": keepalive 1/2\n\n: keepalive 2/2\n\n")
        for number, event in enumerate(answer.events()):
            await self.before_event(number)
            await call.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
        await call.chunk(b"data: [DONE]\n\n")
        return await call.end()


_JSON = ("Content-type", "application/json")
_EVENTS = ("Content-type", "text/event-stream")


async def _answer(call: Call, payload: object, status: int = 200) -> None:
    body = json.dumps(payload).encode()
    await call.answer(body, status, [*_HEADERS, _JSON], framing="close", version="1.0")


class _Answer:
    def __init__(self, fields: dict[str, Any], choice: Choice, is_chat: bool) -> None:
        self._fields = fields
        self._choice = choice
        self._is_chat = is_chat
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4()}"
        self._created = int(time.time())

    def whole(self) -> dict[str, Any]:
        choice = self._choice
        said: dict[str, Any] = {"index": 0, "finish_reason": choice.finish_reason}
        if self._fields.get("logprobs"):
            entries = [{"id": token.id, "logprob": token.logprob} for token in choice.tokens]
            said["logprobs"] = {"content": entries}
        if self._is_chat:
            said["message"] = {"role": "assistant", "content": choice.text or None}
        else:
            said["text"] = choice.text
        kind = "chat.completion" if self._is_chat else "text_completion"
        head = self._head(kind, said)
        return {**head, "usage": self._usage()} | {"choices": [said]}

    def events(self) -> Iterator[dict[str, Any]]:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        for token in self._choice.tokens:
            if token.text:
                yield self._head(kind, self._part(token.text, None))
        yield self._head(kind, self._part("", self._choice.finish_reason))
        options = self._fields.get("stream_options")
        if options is not None and options["include_usage"]:
            yield {**self._head("chat.completion", {}), "choices": [], "usage": self._usage()}

    def _part(self, text: str, reason: str | None) -> dict[str, Any]:
        part: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if not self._is_chat:
            return {**part, "text": text}
        # Every delta names the role.
        return {**part, "delta": {"role": "assistant", **({"content": text} if text else {})}}

    def _head(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "system_fingerprint": FINGERPRINT,
            "object": kind,
            "model": self._fields.get("model", "default_model"),
            "created": self._created,
            "choices": [choice],
        }

    def _usage(self) -> dict[str, Any]:
        num_prompt, num_sampled = len(self._choice.prompt_ids), len(self._choice.tokens)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_sampled,
            "total_tokens": num_prompt + num_sampled,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
