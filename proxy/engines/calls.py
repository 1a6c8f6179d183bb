"""Control calls to one engine: JSON there and back, what it serves, what it says where it refuses.

They go over the connections of the hot path. Knows no engine.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from strop.proxy.engines.base import EngineState
from strop.proxy.engines.wanted import ITS_FIRST, Wanted
from strop.proxy.errors import (
    BadRequest,
    EngineNotReady,
    NotFound,
    UpstreamAborted,
    UpstreamDied,
    UpstreamError,
    UpstreamUnreachable,
)
from strop.proxy.upstream.engine_connection import EngineConnection
from strop.proxy.upstream.upstream import ADDRESS, Upstream
from strop.proxy.wire import body
from strop.proxy.wire.headers import JSON, Headers

CHECK_TIMEOUT_S = 10.0
# Reading the weights of a large model from a slow disk.
LOAD_TIMEOUT_S = 600.0
# Rendering and encoding a prompt of a million tokens.
READ_TIMEOUT_S = 60.0
# A list of models is the longest that is asked for.
MAX_ANSWER_BYTES = 16 * 2**20
# No parameter of sampling means anything beyond; NaN is not below it either.
_MOST = 2**31
NO_COUNT = (
    "this engine can't tell how many tokens a prompt has without answering it; vLLM, llama-server"
    " and strop's own engine can"
)
# Some gateways refuse who doesn't say who it is.
_HEADERS: Headers = [(b"user-agent", b"strop"), (b"accept-encoding", b"identity")]

Card = Mapping[str, object]


class Calls:
    """Control calls to one engine.

    Args:
        upstream: its connections.
        credentials: the headers with its key.
    """

    def __init__(self, upstream: Upstream, credentials: Headers) -> None:
        self.url = upstream.url
        self._upstream = upstream
        self._credentials = credentials

    async def ask(
        self,
        method: str,
        path: str,
        fields: object = None,
        *,
        content: bytes | None = None,
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> httpx.Response:
        """Send `fields` as JSON, or `content` as it is; return the answer, a refusal too.

        Raises:
            UpstreamUnreachable: nobody answers there, or not all of it within `timeout_s`; or the
                key can't be sent.
            UpstreamError: the answer is longer than `MAX_ANSWER_BYTES`, or in a coding that strop
                can't read.
        """
        headers = [*_HEADERS, *self._credentials]
        if fields is not None:
            content = body.dumps(fields)
            headers.append(JSON)
        target = self._upstream.base_path + path.encode()
        try:
            exchange = self._upstream.exchange(method.encode(), target, headers, content or b"")
        except ValueError as error:
            raise UpstreamUnreachable(f"can't send engine.key to {self.url}: {error}") from error
        try:
            async with asyncio.timeout(timeout_s):
                await exchange.start()
                exchange.unpack()
                whole = await exchange.read_all(MAX_ANSWER_BYTES)
                return httpx.Response(exchange.status, headers=exchange.headers, content=whole)
        except TimeoutError as error:
            raise UpstreamUnreachable(
                f"expected an answer from {self.url}{path}, got: none within {timeout_s:g} s"
            ) from error
        except (UpstreamDied, UpstreamAborted) as error:
            raise UpstreamUnreachable(error.message) from error
        finally:
            exchange.close()

    async def hold(self) -> EngineConnection | None:
        """Return a connection on which nothing is asked: it is lost when the engine's process ends.

        None where the engine wants a key: what asks for that may close it for its silence.

        Raises:
            UpstreamUnreachable: nobody listens there.
        """
        return None if self._credentials else await self._upstream.connect()

    async def must(
        self,
        method: str,
        path: str,
        fields: object = None,
        *,
        content: bytes | None = None,
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> Any:
        """Send as `ask` does; return the JSON of an answer that is no refusal, None if it has none.

        Raises:
            UpstreamError: the engine refuses; the message has its own words.
        """
        answer = await self.ask(method, path, fields, content=content, timeout_s=timeout_s)
        if answer.status_code >= httpx.codes.BAD_REQUEST:
            raise UpstreamError(
                f"expected {method} {self.url}{path} to be answered, got status"
                f" {answer.status_code}: {reason_in(answer)}"
            )
        return json_of(answer)

    async def read(self, path: str, fields: object, member: str) -> Any:
        """Return `member` of what the engine makes of a prompt in `fields`.

        Raises:
            NotFound: it has no such route.
            BadRequest: it can't read the prompt; the message is its own.
            UpstreamError: it isn't there, or fails.
        """
        answer = await self.ask("POST", path, fields, timeout_s=READ_TIMEOUT_S)
        if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            raise NotFound(NO_COUNT)
        if answer.is_client_error:
            raise BadRequest(f"the engine can't read the prompt: {reason_in(answer)}")
        read = json_of(answer)
        if answer.is_error or not isinstance(read, dict) or member not in read:
            raise UpstreamError(
                f"expected `{member}` from {self.url}{path}, got status {answer.status_code}:"
                f" {reason_in(answer)}"
            )
        return read[member]

    async def list_cards(self) -> tuple[httpx.Response, list[Card]]:
        """Return what `GET /v1/models` answered, and its entries.

        Raises:
            UpstreamUnreachable: nobody answers there.
            EngineNotReady: somebody answers, but not with a list of models.
        """
        answer = await self.ask("GET", "/v1/models")
        if answer.status_code != httpx.codes.OK:
            is_refused = answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
            is_busy = answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
            advice = "it may be loading its model" if is_busy else f"check {ADDRESS} and engine.key"
            if is_refused and not self._credentials:
                advice = (
                    "set engine.key, best as STROP_ENGINE_KEY: strop asks for this list itself, and"
                    " no client's key is there for that"
                )
            raise EngineNotReady(
                f"expected a list of models from {self.url}/v1/models, got status"
                f" {answer.status_code}; {advice}"
            )
        payload = json_of(answer)
        cards = payload.get("data") if isinstance(payload, dict) else None
        if isinstance(cards, list) and all(isinstance(c, dict) and "id" in c for c in cards):
            return answer, cards
        raise EngineNotReady(
            f"expected an OpenAI list of models from {self.url}/v1/models, got something else;"
            f" check {ADDRESS}"
        )

    async def list_models(
        self, wanted: Wanted = ITS_FIRST, *, former: str = "", called: Callable[[str], str] = str
    ) -> EngineState:
        """Return what `GET /v1/models` says, the wanted one first; the rest is said of that one.

        Names with a parent are adapters and left out. `former` is the id that was first before, and
        `called` gives what `wanted` calls an id.

        Raises:
            UpstreamUnreachable: nobody answers there.
            EngineNotReady: somebody answers, but not with a list of models, or one that has no
                model which may serve.
        """
        answer, cards = await self.list_cards()
        bases = {str(card["id"]): card for card in cards if not card.get("parent")}
        if not bases:
            raise EngineNotReady(f"the engine at {self.url} serves no model yet")
        ids = {called(name): name for name in bases}
        first = ids[wanted.among(list(ids), former=called(former))]
        length, root = bases[first].get("max_model_len"), bases[first].get("root")
        return EngineState(
            # Sorted: an order that changes, or differs between replicas, says nothing.
            models=(first, *sorted(bases.keys() - {first})),
            version=answer.headers.get("server"),
            max_model_len=length if isinstance(length, int) else None,
            digest=root if isinstance(root, str) else None,
            sampling=_sampling(bases[first].get("sampling")),
        )


def _sampling(said: object) -> dict[str, int | float]:
    """Return what strop's own engine says of its model's sampling; no other says anything."""
    return {
        name: value
        for name, value in (said.items() if isinstance(said, dict) else ())
        if type(value) in (int, float) and abs(value) <= _MOST
    }


def credentials(key: str) -> Headers:
    """Return the header that carries an engine's key, if it has one."""
    return [(b"authorization", b"Bearer " + key.encode())] if key else []


def reason_in(answer: httpx.Response) -> str:
    """Return what a refusal says is wrong, whichever engine wrote it.

    OpenAI's `{"error": {"message"}}`, Ollama's and mlx_lm.server's `{"error": "..."}`, or text.
    """
    payload = json_of(answer)
    error = payload.get("error") if isinstance(payload, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    said = error if isinstance(error, str) else answer.text.strip()
    return said[:500] or answer.reason_phrase


def json_of(answer: httpx.Response) -> Any:
    """Return an answer's JSON; None where it has none."""
    try:
        return answer.json()
    except ValueError:
        return None
