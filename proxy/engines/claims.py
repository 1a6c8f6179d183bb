"""What an engine delivers of what a snapshot needs: found out, since it accepts what it can't do.

Asks for a token or two, in the OpenAI dialect with vLLM's additions. Knows no engine, and has no
words for what is missing: its driver does.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import httpx

from strop.proxy.engines.base import Dialect, Engine
from strop.proxy.engines.calls import Calls
from strop.proxy.errors import (
    EngineNotReady,
    StropError,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from strop.proxy.wire import chat, completions, sse
from strop.proxy.wire.answer import Answer

log = logging.getLogger(__name__)

# A full engine lets even this wait; then it is served from unchecked, and checked later.
TIMEOUT_S = 15.0
RETRY_S = 60.0

_REQUESTS: Mapping[Dialect, Mapping[str, object]] = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True},
    "completions": {"prompt": "Hi", "logprobs": 0},
}
_SNAPSHOT: dict[str, object] = {"max_tokens": 1, "return_token_ids": True}
# Hardly ever the first token of an answer, so its raw logprob is far below 0. Drawn for certain
# with this bias, it has the logprob 0 where temperature and bias are counted in.
_FORCED = {"logit_bias": {"0": 100}, "temperature": 1.0}
_NEARLY_ZERO = 0.01
# It has no such route, as one for embeddings alone; it is full; who stands before it had to wait.
_NO_FAILURE = (
    httpx.codes.NOT_IMPLEMENTED,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
)


@dataclass(frozen=True, slots=True)
class Found:
    """What came back.

    Attributes:
        token_ids: the sampled ids, in JSON and in streams.
        prompt_ids: the prompt's ids.
        logprobs: a logprob for each sampled token, in JSON.
        stream_logprobs: the same in streams.
        kind: what the logprobs are; None where that could not be told.
        hides_ids: ids go missing where a client wants no reasoning.
    """

    token_ids: bool
    prompt_ids: bool
    logprobs: bool
    stream_logprobs: bool
    kind: Literal["raw", "processed", "logits"] | None
    hides_ids: bool


@dataclass(slots=True)
class Verification:
    """Whether an engine's claims were checked; until they are, it is taken at its word.

    Attributes:
        failure: why it answers nothing; empty where it answers, or is too busy to.
    """

    is_done: bool = False
    failure: str = ""
    _retry_at: float = 0.0
    _doubt_at: float = 0.0
    _said: tuple[str, ...] = ()

    async def attempt(self, engine: Engine, model: str) -> None:
        """Let a driver find out what its engine delivers, and log what is missing.

        Does nothing where it was found out, or tried within `RETRY_S`: an engine that is too busy
        to be asked should not be asked all the time.
        """
        if self.is_done or monotonic() < self._retry_at:
            return
        at = {"engine": engine.label, "url": engine.upstream.url}
        try:
            await engine.verify(model)
        except StropError as error:
            self._retry_at = monotonic() + RETRY_S
            if isinstance(error, EngineNotReady):
                self.failure = error.message
            log.warning("the engine could not be verified", extra={**at, "reason": error.message})
            return
        self.is_done, self.failure = True, ""
        # Each of several was verified before, by itself.
        shortfalls = () if engine.replicas else engine.shortfalls
        for what in shortfalls:
            if what not in self._said:
                log.warning("the engine falls short", extra={**at, "what": what})
        self._said = shortfalls

    def doubt(self) -> None:
        """Let the next attempt ask again, since requests failed; once within `RETRY_S`."""
        if not self.failure and monotonic() >= self._doubt_at:
            self.is_done, self._retry_at = False, 0.0
            self._doubt_at = monotonic() + RETRY_S

    def forget(self) -> None:
        """What comes back may be another engine, or be started in another way."""
        self.is_done, self.failure, self._said = False, "", ()
        self._retry_at = self._doubt_at = 0.0


async def find(calls: Calls, model: str) -> Found:
    """Ask `model` for a few tokens in every way, at once, and return what came.

    Raises:
        EngineNotReady: it fails at that, or breaks off.
        UpstreamTimeout: it has no answer within `TIMEOUT_S`.
        UpstreamError: it refuses all of it. These messages say what it answered.
    """
    asked = f"expected a token or two from {model} to see what a snapshot can have"

    async def get(dialect: Dialect, **fields: object) -> httpx.Response:
        request = {"model": model, **_REQUESTS[dialect], **_SNAPSHOT, **fields}
        path = "/v1/chat/completions" if dialect == "chat" else "/v1/completions"
        try:
            # The limit of the call itself comes later: who is late is told from who breaks off.
            async with asyncio.timeout(TIMEOUT_S):
                return await calls.ask("POST", path, request, timeout_s=2 * TIMEOUT_S)
        except TimeoutError as error:
            raise UpstreamTimeout(f"{asked}, got none within {TIMEOUT_S:g} s") from error
        except UpstreamUnreachable as error:
            raise EngineNotReady(error.message) from error

    async def special(dialect: Dialect, **fields: object) -> httpx.Response | None:
        # Few clients ask so, and who fails at that alone does not fail them.
        with contextlib.suppress(EngineNotReady):
            answer = await get(dialect, **fields)
            return answer if answer.status_code == httpx.codes.OK else None
        return None

    said, has_failed = "", False
    # A model without a chat template answers the second only.
    for dialect in _REQUESTS:
        forced, stream, hidden = await asyncio.gather(
            special(dialect, **_FORCED),
            get(dialect, stream=True, temperature=0.0),
            special(dialect, include_reasoning=False),
        )
        # Some engines can't force a token, as vLLM that decodes by speculation.
        whole = await get(dialect) if forced is None else forced
        refused = next((one for one in (whole, stream) if one.status_code != httpx.codes.OK), None)
        if refused is None and not _read_stream(dialect, stream.content).error:
            said_hidden = b"" if hidden is None else hidden.content
            return judge(dialect, whole.content, stream.content, said_hidden)
        answer = refused or stream
        said = f"status {answer.status_code}: {answer.text[:200]}"
        has_failed = has_failed or (
            answer.is_server_error and answer.status_code not in _NO_FAILURE
        )
    raise (EngineNotReady if has_failed else UpstreamError)(f"{asked}, got {said}")


async def loads_adapters(calls: Calls) -> bool:
    """Return whether adapters can be loaded: there is a route for it, and it may do so.

    Loads none: it is asked in vain, for one that there isn't.
    """
    asked = {"lora_name": "none-of-this-name"}
    answer = await calls.ask("POST", "/v1/unload_lora_adapter", asked)
    if b'"error"' not in answer.content:
        return False
    # vLLM has this metric only with --enable-lora; its log gets a traceback from what follows.
    if b"vllm:lora_requests_info" in (await calls.ask("GET", "/metrics")).content:
        return True
    # Absolute: vLLM would look for another on the hub.
    asked["lora_path"] = "/none-of-this-name"
    answer = await calls.ask("POST", "/v1/load_lora_adapter", asked, timeout_s=TIMEOUT_S)
    return b"LoRA is not enabled" not in answer.content


def judge(dialect: Dialect, whole: bytes, stream: bytes, hidden: bytes) -> Found:
    """Return what the answers amount to.

    Args:
        dialect: of all of them.
        whole: a JSON body, its only token forced.
        stream: the same unforced, as a stream.
        hidden: a body asked for without reasoning; empty where it was refused.
    """
    read = chat.read_json if dialect == "chat" else completions.read_json
    one, other = read(whole), _read_stream(dialect, stream)
    values, stream_values = _values(one), _values(other)
    has_ids = _has_ids(one) and _has_ids(other)
    return Found(
        token_ids=has_ids,
        prompt_ids=one.prompt_ids is not None and other.prompt_ids is not None,
        logprobs=bool(values),
        stream_logprobs=bool(stream_values),
        kind=_kind(one, values, stream_values),
        hides_ids=bool(hidden) and has_ids and not _has_ids(read(hidden)),
    )


def _read_stream(dialect: Dialect, stream: bytes) -> Answer:
    chunks = [one for one in sse.payloads(stream) if one[:1] == b"{"]
    return chat.read_stream(chunks) if dialect == "chat" else completions.read_stream(chunks)


def _has_ids(answer: Answer) -> bool:
    return any(choice.token_ids is not None for choice in answer.choices.values())


def _values(answer: Answer) -> list[float]:
    return [v for choice in answer.choices.values() for v in choice.logprobs or ()]


def _kind(
    forced: Answer, values: list[float], others: list[float]
) -> Literal["raw", "processed", "logits"] | None:
    if any(value > _NEARLY_ZERO for value in (*values, *others)):
        return "logits"
    ids = [i for choice in forced.choices.values() for i in choice.token_ids or ()]
    if not values or (ids and ids[0] != 0):
        return None
    return "processed" if values[0] > -_NEARLY_ZERO else "raw"
