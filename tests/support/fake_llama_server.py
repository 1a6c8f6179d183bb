"""A fake llama-server to run in a `FakeEngine`, in the shapes that commit 0c1e570 writes.

Text, ids and logprobs are those of `fake_vllm_answers`; a token that is a part of a character has
no logprob entry, and its count is the only trace of it.

    async with FakeEngine(FakeLlamaServer()) as engine:
        ...
"""

import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fake_engine import SSE, Call, Request
from fake_vllm_answers import END_ID, Choice, Token, sample

MODEL_PATH = "/models/tiny.gguf"
NUM_CONTEXT = 512


async def _at_once(_: int) -> None:
    return None


@dataclass
class FakeLlamaServer:
    """The handler.

    Attributes:
        others: the ids of further models, as a router lists them. A router takes each request by
            the model that it names.
        key: the API key that everything but `/health` and `/v1/models` asks for.
        is_loading: as while the model is being read.
        lora_scale: of the adapter that it was started with; None where there is none.
        gives_logprobs: whether it does what `logprobs` asks.
        before_event: awaited before each event of a stream.
    """

    others: tuple[str, ...] = ()
    key: str | None = None
    is_loading: bool = False
    lora_scale: float | None = None
    gives_logprobs: bool = True
    before_event: Callable[[int], Awaitable[None]] = _at_once

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        request = call.request
        if self.is_loading:
            return await _refuse(call, 503, "Loading model", "unavailable_error")
        is_let_in = request.header("authorization") == f"Bearer {self.key}"
        is_open = request.path in ("/health", "/v1/models", "/props")
        if self.key and not is_open and not is_let_in:
            return await _refuse(call, 401, "Invalid API Key", "authentication_error")
        if self.others and (wrong := self._misrouted(request)):
            return await _refuse(call, *wrong)
        match (request.method, request.path):
            case ("GET", "/health"):
                await _answer(call, {"status": "ok"})
            case ("GET", "/v1/models"):
                others = [{**_CARD, "id": one, "aliases": [one]} for one in self.others]
                await _answer(call, {"object": "list", "data": [_CARD, *others]})
            case ("GET", "/props"):
                settings = {"n_ctx": NUM_CONTEXT}
                await _answer(
                    call, {"default_generation_settings": settings, "model_path": MODEL_PATH}
                )
            case ("GET", "/lora-adapters"):
                scales = [] if self.lora_scale is None else [self.lora_scale]
                await _answer(
                    call, [{"id": 0, "path": "lora.gguf", "scale": one} for one in scales]
                )
            case ("POST", "/apply-template"):
                await _answer(call, {"prompt": json.dumps(request.json()["messages"])})
            case ("POST", "/tokenize"):
                prompt = request.json()["content"]
                await _answer(call, {"tokens": sample(MODEL_PATH, prompt, 0, 1).prompt_ids})
            case ("POST", "/v1/chat/completions"):
                await self._complete(call, is_chat=True)
            case ("POST", "/v1/completions"):
                await self._complete(call, is_chat=False)
            case _:
                await _refuse(call, 404, "File Not Found", "not_found_error")
        return None

    def _misrouted(self, request: Request) -> tuple[int, str, str] | None:
        """Return how a router refuses a request that names no model, or one that it hasn't."""
        if request.method == "POST":
            named = request.json().get("model", "")
        elif request.path == "/lora-adapters":
            named = parse_qs(urlsplit(request.target).query).get("model", [""])[0]
        else:
            return None
        if not named:
            return 400, "model name is missing from the request", "invalid_request_error"
        if named not in (MODEL_PATH, *self.others):
            return 404, "model not found", "not_found_error"
        return None

    async def _complete(self, call: Call, *, is_chat: bool) -> None:
        fields = call.request.json()
        if is_chat and "messages" not in fields:
            return await _refuse(call, 400, "'messages' is required", "invalid_request_error")
        num_top = fields.get("top_logprobs", 20) if is_chat else fields.get("logprobs") or 0
        wants_logprobs = bool(fields.get("logprobs")) and self.gives_logprobs
        if is_chat and wants_logprobs and fields.get("tools") and fields.get("stream"):
            message = "logprobs is not supported with tools + stream"
            return await _refuse(call, 400, message, "invalid_request_error")
        prompt = json.dumps(fields["messages"]) if is_chat else fields["prompt"]
        choice = sample(MODEL_PATH, prompt, 0, fields.get("max_tokens"))
        num_prompt = len(choice.prompt_ids)
        if num_prompt >= NUM_CONTEXT:
            message = (
                f"request ({num_prompt} tokens) exceeds the available context size"
                f" ({NUM_CONTEXT} tokens), try increasing it"
            )
            return await _refuse(call, 400, message, "exceed_context_size_error")
        answer = _Answer(choice, is_chat, num_top if wants_logprobs else 0)
        if not fields.get("stream"):
            return await _answer(call, answer.whole())
        await call.head(200, [("server", "llama.cpp"), ("content-type", SSE)])
        options = fields.get("stream_options") or {}
        for number, event in enumerate(answer.events(options.get("include_usage"))):
            await self.before_event(number)
            await call.chunk(b"data: " + _compact(event) + b"\n\n")
        await call.chunk(b"data: [DONE]\n\n")
        return await call.end()


_CARD = {
    "id": MODEL_PATH,
    "aliases": [MODEL_PATH],
    "object": "model",
    "created": 1795231701,
    "owned_by": "llamacpp",
    "meta": {"n_ctx": NUM_CONTEXT},
}


class _Answer:
    def __init__(self, choice: Choice, is_chat: bool, num_top: int) -> None:
        self._choice = choice
        self._is_chat = is_chat
        self._num_top = num_top
        self._created = int(time.time())
        self._id = f"chatcmpl-{uuid.uuid4().hex}"

    def whole(self) -> dict[str, Any]:
        choice, logprobs = self._choice, self._logprobs(self._choice.tokens)
        if self._is_chat:
            message = {"role": "assistant", "content": choice.text}
            one: dict[str, Any] = {
                "finish_reason": choice.finish_reason,
                "index": 0,
                "message": message,
            }
            if logprobs:
                one["logprobs"] = logprobs
        else:
            one = {
                "text": choice.text,
                "index": 0,
                "logprobs": logprobs,
                "finish_reason": choice.finish_reason,
            }
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._event(one, kind), "usage": self._usage(), "timings": self._timings()}

    def events(self, include_usage: object) -> list[dict[str, Any]]:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        events = []
        if self._is_chat:
            events.append(self._event(self._part({"role": "assistant", "content": None}), kind))
        for token in self._choice.tokens:
            if not token.text:
                # Nor does a stream have an entry for the token that ends the text.
                continue
            logprobs = self._logprobs([token])
            if self._is_chat:
                part = self._part({"content": token.text})
                if logprobs:
                    part["logprobs"] = logprobs
            else:
                part = {"text": token.text, "index": 0, "logprobs": logprobs, "finish_reason": None}
            events.append(self._event(part, kind))
        reason = self._choice.finish_reason
        last = (
            self._part({}, reason)
            if self._is_chat
            else {"text": "", "index": 0, "logprobs": None, "finish_reason": reason}
        )
        events.append(self._event(last, kind))
        if include_usage and self._is_chat:
            events.append(self._event(None, kind))
        if include_usage or not self._is_chat:
            events[-1]["usage"] = self._usage()
        events[-1]["timings"] = self._timings()
        return events

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if not self._num_top:
            return None
        entries = [self._entry(token) for token in tokens if token.text or token.id == END_ID]
        return {"content": entries} if entries else None

    def _entry(self, token: Token) -> dict[str, Any]:
        top = ((token.text, token.logprob), *token.others)[: self._num_top]
        return {
            **_named(token.id, token.text, token.logprob),
            "top_logprobs": [_named(token.id, text, logprob) for text, logprob in top],
        }

    def _part(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"finish_reason": reason, "index": 0, "delta": delta}

    def _event(self, part: dict[str, Any] | None, kind: str) -> dict[str, Any]:
        return {
            "choices": [part] if part else [],
            "created": self._created,
            "id": self._id,
            "model": MODEL_PATH,
            "system_fingerprint": "b0-unknown",
            "object": kind,
        }

    def _usage(self) -> dict[str, Any]:
        num_prompt, num_sampled = len(self._choice.prompt_ids), len(self._choice.tokens)
        return {
            "completion_tokens": num_sampled,
            "prompt_tokens": num_prompt,
            "total_tokens": num_prompt + num_sampled,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def _timings(self) -> dict[str, Any]:
        num_prompt = len(self._choice.prompt_ids)
        return {"cache_n": num_prompt - 1, "prompt_n": 1, "predicted_n": len(self._choice.tokens)}


def _named(token_id: int, text: str, logprob: float) -> dict[str, Any]:
    return {"id": token_id, "token": text, "bytes": list(text.encode()), "logprob": logprob}


def _compact(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


async def _answer(call: Call, payload: object, status: int = 200) -> None:
    headers = [("server", "llama.cpp"), ("content-type", "application/json; charset=utf-8")]
    await call.answer(_compact(payload), status, headers)


async def _refuse(call: Call, status: int, message: str, kind: str) -> None:
    await _answer(call, {"error": {"code": status, "message": message, "type": kind}}, status)
