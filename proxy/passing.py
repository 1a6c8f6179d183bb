"""Requests that are passed through and counted, not recorded: embeddings.

Relays bytes both ways; reads nothing of them but the model's name.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from strop.proxy.alias import BASE, Alias
from strop.proxy.call import Receive, Send
from strop.proxy.engines.base import Ask, Engine
from strop.proxy.errors import BadRequest, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from strop.proxy.intake import read_body
from strop.proxy.metrics import Metrics
from strop.proxy.serving import Serving
from strop.proxy.settings.settings import Settings
from strop.proxy.upstream.exchange import Exchange
from strop.proxy.waiting import until_client_leaves
from strop.proxy.wire import body as wire_body
from strop.proxy.wire import headers as wire_headers


async def pass_through(
    scope: Mapping[str, Any],
    receive: Receive,
    send: Send,
    *,
    path: str,
    settings: Settings,
    serving: Serving,
    metrics: Metrics,
) -> None:
    """Send a request to the engine and its answer back, until either side leaves.

    To another server, where there are several and one isn't there.

    Raises:
        StropError: nothing was sent to the client yet.
    """
    headers: wire_headers.Headers = scope["headers"]
    came = await read_body(receive, headers, settings.server, may_be_encoded=True)
    body = _renamed(came, serving.alias)
    # No conversation, so it goes to the least busy.
    ask = Ask("completions", body, {})

    def exchange_with(engine: Engine) -> Exchange:
        upstream = engine.upstream
        target = upstream.base_path + path.encode()
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        return upstream.exchange(scope["method"].encode(), target, engine.headers(headers), body)

    tried: set[Engine] = set()
    engine = serving.engine.pick(ask, None)
    exchange = exchange_with(engine)
    metrics.passed.inc()
    has_response = False

    async def watch() -> None:
        await until_client_leaves(receive)
        exchange.abort()

    watcher = asyncio.create_task(watch())
    try:
        while True:
            try:
                async with _limit(settings.engine.first_byte_timeout_s):
                    await exchange.start()
                break
            except UpstreamUnreachable:
                # Nothing was sent yet.
                tried.add(engine)
                serving.suspect(engine)
                engine = serving.engine.pick(ask, None)
                if engine in tried or watcher.done():
                    raise
                exchange.close()
                exchange = exchange_with(engine)
        head = wire_headers.to_client(exchange.headers)
        length = wire_headers.first(exchange.headers, b"content-length")
        if length is not None:
            head.append((b"content-length", length))
        has_response = True
        await send({"type": "http.response.start", "status": exchange.status, "headers": head})
        while True:
            async with _limit(settings.engine.idle_timeout_s):
                piece = await exchange.read()
            if not piece:
                break
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except (UpstreamError, UpstreamTimeout):
        # Once a head is out, a cut connection is the only way to say that the body is not whole.
        if not has_response:
            raise
    finally:
        watcher.cancel()
        exchange.close()


def _renamed(body: bytes, alias: Alias) -> bytes:
    """Return a request with the engine's own name for its base, where it has one of strop's."""
    pinned = f"{alias.name}@{BASE}"
    if alias.name == alias.base.name and f"@{BASE}".encode() not in body:
        # Texts to embed are long.
        return body
    try:
        fields = wire_body.parse(body)
    except BadRequest:
        # The engine may be able to read it: it is compressed, for instance.
        return body
    model = fields.get("model")
    if model == alias.base.name or model not in (alias.name, pinned):
        return body
    return wire_body.dumps({**fields, "model": alias.base.name})


@contextlib.asynccontextmanager
async def _limit(limit_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise UpstreamTimeout(
            f"expected an answer from the engine within {limit_s:g} s, got none; see its log, or"
            " raise engine.first_byte_timeout_s or engine.idle_timeout_s"
        ) from None
