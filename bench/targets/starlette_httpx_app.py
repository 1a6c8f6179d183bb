"""A plain relaying proxy on Starlette and httpx. Records nothing."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

_HOP_BY_HOP = {"host", "connection", "accept-encoding", "transfer-encoding"}


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=512)
    async with httpx.AsyncClient(
        base_url=os.environ["UPSTREAM"], limits=limits, timeout=httpx.Timeout(600, connect=5)
    ) as client:
        app.state.client = client
        yield


async def relay(request: Request) -> StreamingResponse:
    client: httpx.AsyncClient = request.app.state.client
    headers = [pair for pair in request.headers.items() if pair[0] not in _HOP_BY_HOP]
    outgoing = client.build_request(
        request.method, request.url.path, headers=headers, content=await request.body()
    )
    response = await client.send(outgoing, stream=True)

    async def body() -> AsyncIterator[bytes]:
        async for part in response.aiter_raw():
            yield part
        await response.aclose()

    kept = {k: v for k, v in response.headers.items() if k not in _HOP_BY_HOP}
    return StreamingResponse(body(), response.status_code, kept)


app = Starlette(routes=[Route("/{path:path}", relay, methods=["GET", "POST"])], lifespan=lifespan)
