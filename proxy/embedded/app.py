"""The routes of the embedded engine.

Parses, calls and renders; what generating needs more is in `completions`.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from strop.proxy.embedded import prompts
from strop.proxy.embedded.completions import Completions, read_json, send_error
from strop.proxy.embedded.engine import Engine
from strop.proxy.embedded.errors import (
    BadRequest,
    EngineError,
    Forbidden,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
)
from strop.proxy.embedded.fields import Fields, token_ids
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.protocol import parse_chat, parse_completion

METRICS: Final = "/metrics"
"""Numbers alone: asks for no key, as vLLM's."""

_log = logging.getLogger(__name__)


def build(options: Options) -> Starlette:
    """Return the application; its lifespan starts and stops the worker.

    `state.stop` is called when there is no model to serve, and `state.has_failed` says so.
    """

    def engine() -> Engine:
        running: Engine = app.state.engine
        return running

    async def models(_request: HttpRequest) -> Response:
        return JSONResponse(_models(engine(), app.state.created))

    async def health(_request: HttpRequest) -> Response:
        return Response(status_code=200 if engine().loaded else 503)

    async def engine_version(_request: HttpRequest) -> Response:
        return JSONResponse({"version": f"strop-{version('strop')}"})

    async def metrics(_request: HttpRequest) -> Response:
        lines = [f"{name} {value}\n" for name, value in engine().metrics().items()]
        return PlainTextResponse("".join(lines))

    async def load(request: HttpRequest) -> Response:
        fields = Fields(await read_json(request.receive))
        name, path = _names(fields, "lora_name", "lora_path")
        if fields.flag("load_inplace"):
            raise InvalidInput(
                "`load_inplace` is not supported; use a new name", param="load_inplace"
            )
        await engine().load(name, path)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(request: HttpRequest) -> Response:
        (name,) = _names(Fields(await read_json(request.receive)), "lora_name")
        await engine().unload(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def tokenize(request: HttpRequest) -> Response:
        body = await read_json(request.receive)
        return JSONResponse(await asyncio.to_thread(_tokenize, engine(), body))

    async def detokenize(request: HttpRequest) -> Response:
        fields = Fields(await read_json(request.receive))
        ids = token_ids(fields.get("tokens"), "tokens")
        prompts.check_ids("tokens", ids, engine().model().vocab_size)
        text = await asyncio.to_thread(engine().vocabulary.decode, ids)
        return JSONResponse({"prompt": text})

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        app.state.engine = Engine(options)
        follow = asyncio.create_task(_follow(app))
        yield
        follow.cancel()
        await app.state.engine.stop()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", Completions(engine, parse_chat), methods=["POST"]),
            Route("/v1/completions", Completions(engine, parse_completion), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/load_lora_adapter", load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/health", health),
            Route("/version", engine_version),
            Route(METRICS, metrics),
        ],
        exception_handlers={
            EngineError: _engine_error,
            HTTPException: _http_error,
            Exception: _failed,
        },
        middleware=[Middleware(Guard, key=options.key)],
        lifespan=lifespan,
    )
    app.state.engine = None
    app.state.has_failed = False
    app.state.created = int(time.time())
    app.state.stop = lambda: None
    return app


class Guard:
    """Refuses what web pages send, as they can reach any port, and what lacks the key, if any.

    Args:
        app: what serves the rest.
        key: what has to be sent; empty for no key.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = b"Bearer " + key.encode() if key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is not None:
            await send_error(send, error)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> EngineError | None:
        headers = dict(scope["headers"])
        if b"origin" in headers:
            return Forbidden("expected no Origin header: pages may ask strop, not its engine")
        given = headers.get(b"authorization", b"")
        is_open = not self._expected or scope["path"] == METRICS
        if not is_open and not hmac.compare_digest(given, self._expected):
            return Unauthorized(
                "expected this engine's key as `Authorization: Bearer KEY`, got"
                f" {'another' if given else 'none'}; ask strop instead, or send what"
                " STROP_ENGINE_KEY was when the engine was started"
            )
        return None


async def _follow(app: Starlette) -> None:
    """Stop the process where the model can't be loaded, or the worker dies."""
    engine: Engine = app.state.engine
    await engine.ready.wait()
    if not engine.failure:
        _log.info(
            "serving %s, with a context of up to %d tokens; where a request doesn't say, by %s",
            engine.options.name,
            engine.max_model_len,
            engine.model().wishes or "temperature 1",
        )
    await engine.failed.wait()
    _log.error("can't serve %s: %s", engine.options.model, engine.failure)
    app.state.has_failed = True
    app.state.stop()


def _models(engine: Engine, created: int) -> dict[str, Any]:
    options = engine.options
    head = {"object": "model", "created": created, "owned_by": "strop"}
    base = {
        "id": options.name,
        **head,
        "root": options.model,
        "parent": None,
        "max_model_len": engine.max_model_len,
        "sampling": engine.model().wishes,
    }
    versions = [
        {"id": name, **head, "root": path, "parent": options.name, "max_model_len": None}
        for name, path in engine.versions.items()
    ]
    return {"object": "list", "data": [base, *versions]}


def _tokenize(engine: Engine, body: object) -> dict[str, Any]:
    loaded, fields = engine.model(), Fields(body)
    if "messages" in fields:
        ids = prompts.encode_chat(parse_chat(body), loaded.tokenizer)
    else:
        special = fields.flag("add_special_tokens", default=True)
        ids = prompts.encode(fields.string("prompt"), loaded.tokenizer, add_special_tokens=special)
    is_named = fields.flag("return_token_strs")
    return {
        "count": len(ids),
        "max_model_len": engine.max_model_len,
        "tokens": list(ids),
        "token_strs": loaded.tokenizer.convert_ids_to_tokens(list(ids)) if is_named else None,
    }


def _names(fields: Fields, *names: str) -> list[str]:
    values = []
    for name in names:
        if name not in fields:
            raise BadRequest(f"body.{name}: Field required", param=name)
        values.append(fields.string(name))
    if not all(values):
        both = " and ".join(f"'{name}'" for name in names)
        raise InvalidInput(f"{both} must be provided.", param=names[values.index("")])
    return values


def _engine_error(_request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return Response(error.body(), error.status, media_type="application/json")


def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: NotFound, 405: MethodNotAllowed}.get(error.status_code, BadRequest)
    response = _engine_error(request, kind(error.detail))
    response.headers.update(error.headers or {})  # Allow, with 405
    return response


def _failed(_request: HttpRequest, error: Exception) -> Response:
    # Starlette raises the error again after this, and the server logs it.
    return _engine_error(_request, EngineError(f"Internal error: {type(error).__name__}"))
