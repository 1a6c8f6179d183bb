"""The control calls that every OpenAI-style engine answers: is it there, what does it serve.

Not on the hot path: these go through httpx, over the same transport.
"""

import httpx

from strop.proxy.engines.base import EngineState
from strop.proxy.errors import EngineNotReady, UpstreamUnreachable
from strop.proxy.upstream import Upstream

CHECK_TIMEOUT_S = 10.0


async def list_models(upstream: Upstream, headers: dict[str, str]) -> EngineState:
    """Return what `GET /v1/models` says; names with a parent are adapters and left out.

    Raises:
        UpstreamUnreachable: nobody answers there.
        EngineNotReady: somebody answers, but not with a list of models.
    """
    async with httpx.AsyncClient(
        transport=_Shared(upstream), base_url=upstream.url, timeout=CHECK_TIMEOUT_S
    ) as client:
        try:
            answer = await client.get("/v1/models", headers=headers)
        except httpx.TransportError as error:
            raise UpstreamUnreachable(str(error)) from error
        if answer.status_code != httpx.codes.OK:
            raise EngineNotReady(
                f"expected a list of models from {upstream.url}/v1/models, got status"
                f" {answer.status_code}; check engine.url and engine.key"
            )
        try:
            entries = answer.json()["data"]
            bases = [entry for entry in entries if not entry.get("parent")]
            names = tuple(str(base["id"]) for base in bases)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineNotReady(
                f"expected an OpenAI list of models from {upstream.url}/v1/models, got something"
                " else; check engine.url"
            ) from error
    if not bases:
        raise EngineNotReady(f"the engine at {upstream.url} serves no model yet")
    length = bases[0].get("max_model_len")
    return EngineState(
        models=names,
        version=answer.headers.get("server"),
        max_model_len=length if isinstance(length, int) else None,
    )


class _Shared(httpx.AsyncBaseTransport):
    """An upstream lent to one httpx client, which must not close it."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._upstream.handle_async_request(request)
