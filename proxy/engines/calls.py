"""Control calls to one engine: JSON there and back, and what the engine says where it refuses.

Not on the hot path. Knows no engine.
"""

from typing import Any

import httpx

from strop.proxy.engine_connection import EngineConnection
from strop.proxy.engines.control import CHECK_TIMEOUT_S, ask
from strop.proxy.errors import BadRequest, NotFound, UpstreamError
from strop.proxy.upstream import Upstream
from strop.proxy.wire.headers import Headers

# Reading the weights of a large model from a slow disk.
LOAD_TIMEOUT_S = 600.0
# Rendering and encoding a prompt of a million tokens.
READ_TIMEOUT_S = 60.0
NO_COUNT = (
    "this engine can't tell how many tokens a prompt has without answering it; vLLM, llama-server"
    " and strop's own engine can"
)


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
            UpstreamUnreachable: nobody answers, or not in time.
        """
        return await ask(
            self._upstream,
            method,
            path,
            credentials=self._credentials,
            json=fields,
            content=content,
            timeout_s=timeout_s,
        )

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
