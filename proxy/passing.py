"""Requests that are passed through and counted, not recorded: embeddings.

Relays bytes both ways; reads nothing of them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from strop.proxy.call import Receive, Send
from strop.proxy.errors import UpstreamError, UpstreamTimeout
from strop.proxy.intake import read_body
from strop.proxy.metrics import Metrics
from strop.proxy.serving import Serving
from strop.proxy.settings import Settings
from strop.proxy.waiting import until_client_leaves
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

    Raises:
        StropError: nothing was sent to the client yet.
    """
    headers: wire_headers.Headers = scope["headers"]
    body = await read_body(receive, headers, settings.server, may_be_encoded=True)
    upstream = serving.engine.upstream
    target = upstream.base_path + path.encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    exchange = upstream.exchange(
        scope["method"].encode(), target, serving.engine.headers(headers), body
    )
    metrics.passed.inc()
    has_response = False

    async def watch() -> None:
        await until_client_leaves(receive)
        exchange.abort()

    watcher = asyncio.create_task(watch())
    try:
        async with _limit(settings.engine.first_byte_timeout_s):
            await exchange.start()
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
