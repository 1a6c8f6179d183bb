"""What the rest of strop may ask of an engine, whichever it is.

Knows no engine. A driver declares what its engine can do; nobody asks for an engine's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from strop.proxy.upstream import Upstream
from strop.proxy.wire.restore import Restore

Dialect = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do.

    Attributes:
        token_ids: it returns the sampled ids and the prompt's.
        stream_logprobs: streams carry logprobs too.
        score_tokens: it returns the logprobs of given ids.
        adapters: how many adapter versions may be live at once; 0 for none.
        is_local: the weights behind it are the person's own, so answers are on-policy.
        body_ids_are_unique: the `id` in its answers names one answer.
        logprobs_kind: what its logprobs are: `raw` log-softmax at T = 1, or `processed`.
    """

    token_ids: bool
    stream_logprobs: bool
    score_tokens: bool
    adapters: int
    is_local: bool
    body_ids_are_unique: bool = True
    logprobs_kind: Literal["raw", "processed"] = "raw"


@dataclass(frozen=True, slots=True)
class Ask:
    """A client's request as the relay has read it.

    Attributes:
        dialect: which API it speaks.
        raw: the body as the client sent it.
        fields: the body's members, inline commands taken out.
        served: the engine's name for the version that serves.
        is_rewritten: whether `fields` differ from `raw`.
        is_captured: whether the answer is recorded, so that a snapshot is of use.
    """

    dialect: Dialect
    raw: bytes
    fields: Mapping[str, object]
    served: str = ""
    is_rewritten: bool = False
    is_captured: bool = True

    @property
    def is_stream(self) -> bool:
        """Whether the client wants server-sent events."""
        return self.fields.get("stream") is True


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes to the engine, and what comes out of its answer again (None: nothing)."""

    body: bytes
    restore: Restore | None


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine says of itself: the names of the bases it serves, and its version."""

    models: tuple[str, ...]
    version: str | None
    max_model_len: int | None = None


class Engine(Protocol):
    """One engine, local or remote."""

    label: str
    capabilities: Capabilities
    upstream: Upstream

    def plan(self, ask: Ask) -> Plan:
        """Return the request to send for `ask`, with a snapshot asked for where the engine can.

        Raises:
            BadRequest: `ask` has fields that choose weights or files.
        """
        ...

    def headers(self, client: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the request headers to send, from those the client sent."""
        ...

    async def check(self) -> EngineState:
        """Return what the engine says of itself, once it is ready to answer.

        Raises:
            UpstreamError: it isn't there, or isn't ready.
        """
        ...
