"""The control calls that every OpenAI-style engine answers: is it there, what does it serve.

Not on the hot path: these go through httpx, over the same transport.
"""

import asyncio
from collections.abc import Mapping

import httpx

from strop.proxy.engines.base import EngineState
from strop.proxy.errors import EngineNotReady, UpstreamError, UpstreamUnreachable
from strop.proxy.upstream import Upstream
from strop.proxy.wire.headers import Headers

CHECK_TIMEOUT_S = 10.0
# A list of models is the longest that is asked for.
MAX_ANSWER_BYTES = 16 * 2**20
_FRAMING = ("content-encoding", "content-length", "transfer-encoding")

Card = Mapping[str, object]


async def ask(
    upstream: Upstream,
    method: str,
    path: str,
    *,
    credentials: Headers,
    json: object = None,
    content: bytes | None = None,
    timeout_s: float = CHECK_TIMEOUT_S,
) -> httpx.Response:
    """Return what the engine answers to one control call, whatever the status.

    The body is `json`, or `content` as it is.

    Raises:
        UpstreamUnreachable: nobody answers there, or not all of it within `timeout_s`.
        UpstreamError: the answer is longer than `MAX_ANSWER_BYTES`.
    """
    async with httpx.AsyncClient(
        transport=_Shared(upstream), base_url=upstream.url, timeout=timeout_s
    ) as client:
        try:
            # httpx's own limit is for each read: an engine could go on for ever.
            async with (
                asyncio.timeout(timeout_s),
                client.stream(
                    method, path, json=json, content=content, headers=credentials
                ) as response,
            ):
                return await _whole(response)
        except (httpx.RequestError, TimeoutError) as error:
            said = str(error) or f"none within {timeout_s:g} s"
            raise UpstreamUnreachable(
                f"expected an answer from {upstream.url}{path}, got: {said}"
            ) from error


async def _whole(response: httpx.Response) -> httpx.Response:
    """Return a response with its whole body, in plain bytes."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise UpstreamError(
                f"expected at most {MAX_ANSWER_BYTES} bytes from {response.url}, got more"
            )
    headers = [(k, v) for k, v in response.headers.multi_items() if k not in _FRAMING]
    return httpx.Response(response.status_code, headers=headers, content=bytes(body))


async def list_cards(upstream: Upstream, credentials: Headers) -> tuple[httpx.Response, list[Card]]:
    """Return what `GET /v1/models` answered, and its entries.

    Raises:
        UpstreamUnreachable: nobody answers there.
        EngineNotReady: somebody answers, but not with a list of models.
    """
    answer = await ask(upstream, "GET", "/v1/models", credentials=credentials)
    if answer.status_code != httpx.codes.OK:
        is_refused = answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
        is_busy = answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
        advice = "it may be loading its model" if is_busy else "check engine.url and engine.key"
        if is_refused and not credentials:
            advice = (
                "set engine.key, best as STROP_ENGINE_KEY: strop asks for this list itself, and no"
                " client's key is there for that"
            )
        raise EngineNotReady(
            f"expected a list of models from {upstream.url}/v1/models, got status"
            f" {answer.status_code}; {advice}"
        )
    try:
        cards = answer.json()["data"]
        if all(isinstance(card, dict) and "id" in card for card in cards):
            return answer, cards
    except (ValueError, TypeError, KeyError):
        pass
    raise EngineNotReady(
        f"expected an OpenAI list of models from {upstream.url}/v1/models, got something else;"
        " check engine.url"
    )


async def list_models(upstream: Upstream, credentials: Headers) -> EngineState:
    """Return what `GET /v1/models` says; names with a parent are adapters and left out.

    Raises:
        UpstreamUnreachable: nobody answers there.
        EngineNotReady: somebody answers, but not with a list of models.
    """
    answer, cards = await list_cards(upstream, credentials)
    bases = [card for card in cards if not card.get("parent")]
    if not bases:
        raise EngineNotReady(f"the engine at {upstream.url} serves no model yet")
    length, root = bases[0].get("max_model_len"), bases[0].get("root")
    return EngineState(
        models=tuple(str(base["id"]) for base in bases),
        version=answer.headers.get("server"),
        max_model_len=length if isinstance(length, int) else None,
        digest=root if isinstance(root, str) else None,
    )


class _Shared(httpx.AsyncBaseTransport):
    """An upstream lent to one httpx client, which must not close it."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._upstream.handle_async_request(request)
