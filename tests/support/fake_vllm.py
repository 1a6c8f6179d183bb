"""A fake vLLM to run in a `FakeEngine`: the routes that a proxy needs, and two completions.

Knows no model; what it answers is in `fake_vllm_answers`.

    async with FakeEngine(FakeVllm()) as engine:
        ...
"""

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fake_engine import SSE, Call
from fake_vllm_answers import ChatCompletion, TextCompletion


async def _at_once(_: int) -> None:
    return None


@dataclass
class FakeVllm:
    """The handler.

    Attributes:
        base: the base's served name.
        others: those of further bases.
        key: the API key that `/v1` asks for.
        has_parser: as if a tool or reasoning parser were on: a token without text makes an event
            only where ids or logprobs are asked for, and `include_reasoning: false` hides both.
        before_event: awaited before each event of a stream, with its number.
        adapters: names and paths of the adapters loaded.
        has_lora: whether it can load any. Its routes are there in any case.
        has_metrics: as if without --disable-log-stats.
    """

    base: str = "tiny"
    others: tuple[str, ...] = ()
    key: str | None = None
    has_parser: bool = False
    before_event: Callable[[int], Awaitable[None]] = _at_once
    adapters: dict[str, str] = field(default_factory=dict)
    has_lora: bool = True
    has_metrics: bool = True

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        request = call.request
        is_let_in = request.header("authorization") == f"Bearer {self.key}"
        if self.key and request.path.startswith("/v1") and not is_let_in:
            return await call.json({"error": "Unauthorized"}, 401)
        match (request.method, request.path):
            case ("GET", "/health"):
                await call.answer(headers=())
            case ("GET", "/version"):
                await call.json({"version": "0.32.0"})
            case ("GET", "/metrics"):
                await self._metrics(call)
            case ("GET", "/v1/models"):
                await call.json({"object": "list", "data": self._cards()})
            case ("POST", "/v1/chat/completions"):
                await self._complete(call, is_chat=True)
            case ("POST", "/v1/completions"):
                await self._complete(call, is_chat=False)
            case ("POST", "/tokenize"):
                await self._tokenize(call)
            case ("POST", "/v1/load_lora_adapter"):
                await self._load(call)
            case ("POST", "/v1/unload_lora_adapter"):
                await self._unload(call)
            case _:
                await call.json({"detail": "Not Found"}, 404)
        return None

    def _cards(self) -> list[dict[str, object]]:
        now = int(time.time())
        rest: dict[str, object] = {"object": "model", "created": now, "owned_by": "vllm"}
        base: dict[str, object] = {
            "parent": None,
            "max_model_len": 1024,
            "permission": [],
        }
        bases = [{"id": name, **rest, **base, "root": name} for name in (self.base, *self.others)]
        return bases + [
            {"id": name, **rest, **base, "root": path, "parent": self.base, "max_model_len": None}
            for name, path in self.adapters.items()
        ]

    async def _tokenize(self, call: Call) -> None:
        fields = call.request.json()
        if any("role" not in message for message in fields["messages"]):
            return await _refuse(call, "1 validation error:\n  role", "Bad Request", 400)
        ids = ChatCompletion(self.base, fields, self.has_parser).choices[0].prompt_ids
        count = {"count": len(ids), "max_model_len": 1024, "tokens": ids, "token_strs": None}
        return await call.json(count)

    async def _metrics(self, call: Call) -> None:
        names = ["num_requests_running"] + ["lora_requests_info"] * self.has_lora
        lines = [f"# TYPE vllm:{name} gauge\n" for name in names if self.has_metrics]
        await _say(call, "".join(lines))

    async def _load(self, call: Call) -> None:
        fields = call.request.json()
        name = fields["lora_name"]
        if not self.has_lora:
            message = (
                "Call to add_lora method failed: Worker failed with error 'LoRA is not enabled."
                " Use --enable-lora to enable LoRA.', please check the stack trace above for the"
                " root cause"
            )
            return await _refuse(call, message, "InternalServerError", 500)
        if fields["lora_path"] == "/none-of-this-name":
            message = f"Loading lora {name} failed: No adapter found for {fields['lora_path']}"
            return await _refuse(call, message, "NotFoundError", 404)
        if name in self.adapters and not fields.get("load_inplace"):
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the"
                " adapter in place, set 'load_inplace' to True."
            )
            return await _refuse(call, message, "InvalidUserInput", 400)
        self.adapters[name] = fields["lora_path"]
        return await _say(call, f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, call: Call) -> None:
        name = call.request.json()["lora_name"]
        if self.adapters.pop(name, None) is None:
            message = f"The lora adapter '{name}' cannot be found."
            return await _refuse(call, message, "NotFoundError", 404)
        return await _say(call, f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, call: Call, *, is_chat: bool) -> None:
        try:
            fields = call.request.json()
        except ValueError as error:
            return await _refuse(call, f"1 validation error:\n  {error}", "Bad Request", 400)
        model = fields.get("model") or self.base
        if model not in (self.base, *self.others, *self.adapters):
            message = f"The model `{model}` does not exist. Valid aliases: {self.base}."
            return await _refuse(call, message, "NotFoundError", 404, param="model")
        if is_chat and fields.get("top_logprobs") and not fields.get("logprobs"):
            message = (
                "when using `top_logprobs`, `logprobs` must be set to true."
                " (parameter=top_logprobs)"
            )
            return await _refuse(call, message, "BadRequestError", 400, param="top_logprobs")
        dialect = (ChatCompletion if is_chat else TextCompletion)(model, fields, self.has_parser)
        if (name := call.request.header("x-request-id")) is not None:
            dialect.id = f"{dialect.prefix}-{name}"
        if not fields.get("stream"):
            return await call.answer(_compact(dialect.whole()))
        await call.head(200, [("content-type", SSE)])
        for number, event in enumerate(dialect.events()):
            await self.before_event(number)
            await call.chunk(b"data: " + _compact(event) + b"\n\n")
        await call.chunk(b"data: [DONE]\n\n")
        return await call.end()


def _compact(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


async def _say(call: Call, text: str) -> None:
    await call.answer(text.encode(), headers=[("content-type", "text/plain; charset=utf-8")])


async def _refuse(
    call: Call, message: str, kind: str, status: int, param: str | None = None
) -> None:
    error = {"message": message, "type": kind, "param": param, "code": status}
    await call.json({"error": error}, status)
