"""A fake Ollama to run in a `FakeEngine`: models, blobs, one place in memory for each base.

Behaves as its source at v0.33.0-rc2 says: models over one base share a runner, which serves one
adapter; another one waits until nobody asks the former any more, and holds up all other loading
meanwhile. What it answers is in `fake_ollama_answers`.

    async with FakeEngine(FakeOllama()) as engine:
        ...
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import fake_ollama_messages
from fake_engine import SSE, Call
from fake_ollama_answers import Answer, Sampled, Vocabulary, sample

MAX_PENDING = "server busy, please try again.  maximum pending requests exceeded"


async def _at_once(_: int) -> None:
    return None


@dataclass(frozen=True)
class Model:
    """A model: the weights of its base, and the adapters over them, as digests."""

    base: str
    adapters: tuple[str, ...] = ()
    parameters: tuple[tuple[str, object], ...] = ()


def base_of(tag: str) -> Model:
    """Return a model without adapters."""
    return Model(hashlib.sha256(tag.encode()).hexdigest())


@dataclass
class FakeOllama:
    """The handler.

    Attributes:
        version: what it says it is; adapters load from 0.30.0 on.
        models: by tag, the newest first.
        num_context: how long a prompt may be; of a longer chat the oldest messages are left out.
        drops_end: see `fake_ollama_answers.Answer`.
        thinks: the same.
        renders: whether it knows `_debug_render_only`.
        has_parser: the same.
        fails_at: the event of a stream at which it fails, after its status of 200.
        before_event: awaited before each event of a stream.
        max_queue: how many requests may wait to be loaded.
        quantization: what the weights are kept in, as it says.
        create_error: what goes wrong with each model that is to be made.
        streams_anyway: whether models are made with a stream, whatever is asked.
        counts_cached: whether a native answer counts the tokens of its prompt that were cached.
        cuts_uploads: whether the last byte of what is uploaded gets lost.
        really: what is loaded in truth where a model is asked for.
        num_loads: how often a runner was started.
        num_pulls: how often it would have downloaded a model.
    """

    version: str = "0.33.0"
    models: dict[str, Model] = field(default_factory=lambda: {"tiny:latest": base_of("tiny")})
    num_context: int = 4096
    drops_end: bool = False
    thinks: bool = False
    renders: bool = True
    has_parser: bool = False
    fails_at: int | None = None
    before_event: Callable[[int], Awaitable[None]] = _at_once
    max_queue: int = 512
    quantization: str = "F32"
    create_error: str | None = None
    streams_anyway: bool = False
    counts_cached: bool = True
    cuts_uploads: bool = False
    really: Callable[[Model], Model] = lambda model: model
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    blobs: dict[str, bytes] = field(default_factory=dict)
    num_loads: int = 0
    num_pulls: int = 0
    runner: Model | None = None
    is_kept: bool = False
    num_refs: int = 0

    def __post_init__(self) -> None:
        self._loading = asyncio.Lock()
        self._freed = asyncio.Event()
        self._num_waiting = 0

    def restart(self) -> None:
        """Forget what is loaded; models and blobs are on disk."""
        self.runner, self.is_kept = None, False

    def prompt_of(self, messages: list[dict[str, Any]]) -> str:
        """Return what the model's template makes of a chat."""
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    async def sample(self, prompt: str, limit: int | None, temperature: float) -> Sampled:  # noqa: ARG002
        """Return what is loaded answers; the fake's own answers know no temperature."""
        assert self.runner is not None
        weights = self.really(self.runner)
        return sample(",".join((weights.base, *weights.adapters)), prompt, limit, self.vocabulary)

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        method, path = call.request.method, call.request.path
        routes: dict[tuple[str, str], Callable[[Call], Awaitable[None]]] = {
            ("GET", "/api/version"): self._version,
            ("GET", "/v1/models"): self._cards,
            ("GET", "/api/tags"): self._tags,
            ("GET", "/api/ps"): self._loaded,
            ("POST", "/api/create"): self._create,
            ("POST", "/api/show"): self._show,
            ("DELETE", "/api/delete"): self._delete,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
        }
        if path.startswith("/api/blobs/"):
            await self._blob(call, path.removeprefix("/api/blobs/"))
        elif (method, path) in routes:
            await routes[method, path](call)
        else:
            await call.answer(b"404 page not found", 404, [("content-type", "text/plain")])

    async def _version(self, call: Call) -> None:
        await call.json({"version": self.version})

    async def _cards(self, call: Call) -> None:
        cards = [{"id": tag, "object": "model", "owned_by": "library"} for tag in self.models]
        await call.json({"object": "list", "data": cards or None})

    async def _tags(self, call: Call) -> None:
        listed = [
            {
                "name": tag,
                "model": tag,
                "digest": _digest_of(model),
                "details": {"quantization_level": self.quantization},
            }
            for tag, model in self.models.items()
        ]
        await call.json({"models": listed})

    async def _loaded(self, call: Call) -> None:
        tags = [tag for tag, model in self.models.items() if self._is_loaded(model)][:1]
        # A negative keep_alive is the longest time that it can tell.
        ends = "2318-03-02T11:04:05.5Z" if self.is_kept else "2026-01-01T00:05:00.5Z"
        await call.json({"models": [{"name": tag, "expires_at": ends} for tag in tags]})

    async def _blob(self, call: Call, digest: str) -> None:
        if call.request.method == "HEAD":
            return await call.answer(b"", 200 if digest in self.blobs else 404)
        body = call.request.body[:-1] if self.cuts_uploads else call.request.body
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if found != digest:
            message = f"digest mismatch, expected {digest!r}, got {found!r}"
            return await call.json({"error": message}, 400)
        is_new = digest not in self.blobs
        self.blobs[digest] = body
        return await call.answer(b"", 201 if is_new else 200)

    async def _create(self, call: Call) -> None:
        fields = call.request.json()
        error = self.create_error or self._make(fields)
        if fields.get("stream") is False and not self.streams_anyway:
            return await call.json(
                *(({"error": error}, 400) if error else ({"status": "success"},))
            )
        # In a stream an error comes behind a status of 200.
        await call.head(200, [("content-type", "application/x-ndjson")])
        for line in (
            {"status": "parsing GGUF"},
            {"error": error} if error else {"status": "success"},
        ):
            await call.chunk(json.dumps(line).encode() + b"\n")
        return await call.end()

    def _make(self, fields: dict[str, Any]) -> str | None:
        source = self.models.get(_full(fields["from"]))
        if source is None:
            self.num_pulls += 1
            return "pull model manifest: file does not exist"
        adapters = fields.get("adapters", {})
        if len(adapters) > 1:
            return "only one adapter is currently supported"
        for digest in adapters.values():
            if digest not in self.blobs:
                return f"blob {digest} not found"
        made = tuple(digest.removeprefix("sha256:") for digest in adapters.values())
        parameters = tuple(fields.get("parameters", {}).items())
        model = Model(source.base, (*source.adapters, *made), parameters)
        tag = _full(fields["model"])
        self.models.pop(tag, None)
        self.models = {tag: model, **self.models}
        return None

    async def _show(self, call: Call) -> None:
        tag = _full(call.request.json()["model"])
        model = self.models.get(tag)
        if model is None:
            return await call.json({"error": f"model '{tag}' not found"}, 404)
        blobs = "/usr/share/ollama/.ollama/models/blobs/sha256-"
        lines = ["# Modelfile generated by ollama", f"FROM {blobs}{model.base}"]
        lines += [f"ADAPTER {blobs}{adapter}" for adapter in model.adapters]
        lines += [f"PARAMETER {name} {value}" for name, value in model.parameters]
        return await call.json({"modelfile": "\n".join(lines) + "\n"})

    async def _delete(self, call: Call) -> None:
        tag = _full(call.request.json()["model"])
        if self.models.pop(tag, None) is None:
            return await call.json({"error": f"model '{tag}' not found"}, 404)
        return await call.answer(b"")

    async def _generate(self, call: Call) -> None:
        fields = call.request.json()
        tag = _full(fields["model"])
        if tag not in self.models:
            return await call.json({"error": f"model '{fields['model']}' not found"}, 404)
        model = self.models[tag]
        if not fields.get("prompt") and fields.get("keep_alive") == 0:
            # Whatever is loaded over the same base goes.
            if self.runner is not None and self.runner.base == model.base:
                self.restart()
            return await call.json({"model": tag, "response": "", "done_reason": "unload"})
        try:
            async with self._running(model):
                self.is_kept = self.is_kept or fields.get("keep_alive") == -1
                if not fields.get("prompt"):
                    return await call.json({"model": tag, "response": "", "done_reason": "load"})
                return await self._answer_raw(call, fields)
        except FailedError as error:
            return await call.json({"error": error.message}, error.status)

    async def _answer_raw(self, call: Call, fields: dict[str, Any]) -> None:
        assert fields["raw"], "the fake has no templates here"
        options = fields.get("options", {})
        said = await self.sample(
            fields["prompt"], options.get("num_predict"), options.get("temperature", 0.8)
        )
        steps = list(said.steps(drops_end=self.drops_end))
        answer = {
            "model": fields["model"],
            "response": "".join(text for text, _ in steps),
            "done": True,
            "done_reason": said.reason,
            # The last token is read again, whatever is cached.
            "prompt_eval_count": said.num_prompt if self.counts_cached else 1,
            "eval_count": len(said.ids),
        }
        if fields.get("logprobs"):
            answer["logprobs"] = [entry for _, entries in steps for entry in entries]
        await call.json(answer)

    async def _chat(self, call: Call) -> None:
        fields = call.request.json()
        try:
            prompt = self.prompt_of(self._fitting(fake_ollama_messages.read(fields)))
        except fake_ollama_messages.UnreadableError as error:
            return await _refuse(call, 400, str(error), "invalid_request_error")
        await self._complete(call, fields, prompt, is_chat=True)
        return None

    def _fitting(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a chat without its oldest messages, as many as it is too long by.

        What the system says stays, and so does the last message.
        """
        kept = messages
        for start in range(len(messages)):
            system = [message for message in messages[:start] if message["role"] == "system"]
            kept = [*system, *messages[start:]]
            if len(self.vocabulary.encode(self.prompt_of(kept))) <= self.num_context:
                break
        return kept

    async def _completion(self, call: Call) -> None:
        fields = call.request.json()
        await self._complete(call, fields, fields["prompt"], is_chat=False)

    async def _complete(
        self, call: Call, fields: dict[str, Any], prompt: str, *, is_chat: bool
    ) -> None:
        tag = _full(fields["model"])
        if tag not in self.models:
            message = f"model '{fields['model']}' not found"
            return await _refuse(call, 404, message, "not_found_error")
        if not 0 <= (fields.get("top_logprobs") or 0) <= 20:
            message = "top_logprobs must be between 0 and 20"
            return await _refuse(call, 400, message, "invalid_request_error")
        num_prompt = len(self.vocabulary.encode(prompt))
        if num_prompt >= self.num_context:
            message = (
                f"request ({num_prompt} tokens) exceeds the available context size"
                f" ({self.num_context} tokens), try increasing it"
            )
            return await _refuse(call, 400, message, "invalid_request_error")
        model = self.models[tag]
        try:
            async with self._running(model):
                if is_chat and self.renders and fields.get("_debug_render_only"):
                    return await call.json(_rendered(fields["model"], prompt))
                said = await self.sample(
                    prompt, fields.get("max_tokens"), fields.get("temperature", 1.0)
                )
                answer = Answer(
                    fields,
                    said.thinking() if self.thinks else said,
                    is_chat=is_chat,
                    drops_end=self.drops_end,
                    thinks=self.thinks,
                    has_parser=self.has_parser,
                )
                if not fields.get("stream"):
                    return await call.json(answer.whole())
                return await self._stream(call, answer)
        except FailedError as error:
            return await _refuse(call, error.status, error.message, "api_error")

    async def _stream(self, call: Call, answer: Answer) -> None:
        await call.head(200, [("content-type", SSE)])
        for number, event in enumerate(answer.events()):
            await self.before_event(number)
            if number == self.fails_at:
                error = {"message": "llama-server process has terminated", "type": "api_error"}
                await call.chunk(b"data: " + _compact({"error": error}) + b"\n\n")
                return await call.end()
            await call.chunk(b"data: " + _compact(event) + b"\n\n")
        await call.chunk(b"data: [DONE]\n\n")
        return await call.end()

    @contextlib.asynccontextmanager
    async def _running(self, model: Model) -> AsyncIterator[None]:
        """Hold the runner of `model`; where another adapter is loaded, wait for all its requests.

        Requests for what is loaded don't wait for those that wait: they can starve them.
        """
        if not self._is_loaded(model):
            if self._num_waiting >= self.max_queue:
                raise FailedError(MAX_PENDING, 503)
            self._num_waiting += 1
            try:
                async with self._loading:
                    while not self._is_loaded(model):
                        await self._load(model)
            finally:
                self._num_waiting -= 1
        self.num_refs += 1
        try:
            yield
        finally:
            self.num_refs -= 1
            self._freed.set()

    def _is_loaded(self, model: Model) -> bool:
        runner = self.runner
        return runner is not None and (runner.base, runner.adapters) == (model.base, model.adapters)

    async def _load(self, model: Model) -> None:
        while self.num_refs:
            self._freed.clear()
            await self._freed.wait()
        numbers = tuple(int(one) for one in self.version.split("."))
        if model.adapters and numbers < (0, 30, 0):
            raise FailedError("loras are not yet implemented", 500)
        await self.start_runner(model)
        self.runner, self.is_kept = model, False
        self.num_loads += 1

    async def start_runner(self, model: Model) -> None:
        """Read a model's weights; one that can't be read ends the runner."""


class FailedError(Exception):
    """What Ollama answers a request with, in its words."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message, self.status = message, status


def _digest_of(model: Model) -> str:
    return hashlib.sha256(repr(model).encode()).hexdigest()


def _full(tag: str) -> str:
    return tag if ":" in tag else f"{tag}:latest"


def _compact(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _rendered(model: str, prompt: str) -> dict[str, Any]:
    message = {"role": "", "content": ""}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": None}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        "_debug_info": {"rendered_template": prompt},
    }


async def _refuse(call: Call, status: int, message: str, kind: str) -> None:
    error = {"message": message, "type": kind, "param": None, "code": None}
    await call.json({"error": error}, status)
