"""Exchanges with a fake engine, as several tests make them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fake_engine import Call, FakeEngine, Handler

from strop.proxy.upstream.exchange import Exchange
from strop.proxy.upstream.upstream import Upstream

LIMIT = 1 << 30


@asynccontextmanager
async def serving(
    handler: Handler, *, reads_body: bool = True, **options: Any
) -> AsyncIterator[tuple[FakeEngine, Upstream]]:
    """Run an engine and the connections to it; no connection may be left at the end."""
    async with FakeEngine(handler, reads_body=reads_body) as engine:
        upstream = Upstream(engine.url, **options)
        yield engine, upstream
        await upstream.aclose()
        assert 0 == upstream.num_connections
        await engine.until(lambda: engine.num_open == 0)


async def ok(call: Call) -> None:
    await call.json({"ok": True})


async def started(upstream: Upstream, body: bytes = b"{}", target: bytes = b"/v1/x") -> Exchange:
    exchange = upstream.exchange(b"POST", target, [(b"content-type", b"application/json")], body)
    await exchange.start()
    return exchange


async def post(upstream: Upstream, body: bytes = b"{}") -> bytes:
    exchange = await started(upstream, body)
    answer = await exchange.read_all(LIMIT)
    exchange.close()
    return answer
