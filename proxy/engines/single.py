"""What the drivers of one server have in common: a key, calls, and nothing to choose between.

Knows no engine.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

from strop.proxy.engines.base import AdapterControls, Ask, Capabilities, EngineState
from strop.proxy.engines.calls import NO_COUNT, Calls, credentials
from strop.proxy.engines.findings import Findings
from strop.proxy.engines.replica import Replica
from strop.proxy.engines.wanted import ITS_FIRST, Wanted
from strop.proxy.errors import NotFound
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire.headers import Headers, to_engine

NO_PROMPT = "this engine shows no prompts"
NO_LOGPROBS = "it accepts `logprobs` and returns none, so what it answers is learned from without"


class SingleServer:
    """The part of an `Engine` that is the same for all that are one server.

    Args:
        upstream: the connection pool to it.
        key: its API key, sent in place of the client's.
        wanted: which of its models is to serve.
    """

    adapters: AdapterControls | None = None
    capabilities: Capabilities
    hides_ids: bool = False
    shortfalls: tuple[str, ...] = ()
    replicas: tuple[Replica, ...] = ()

    def __init__(self, upstream: Upstream, key: str = "", wanted: Wanted = ITS_FIRST) -> None:
        self.upstream = upstream
        self._wanted = wanted
        self._first = ""
        self._credentials = credentials(key)
        self._calls = Calls(upstream, self._credentials)

    def pick(self, ask: Ask, session: str | None) -> Self:  # noqa: ARG002
        """Return this one."""
        return self

    def suspect(self, engine: object) -> None:
        """Do nothing: there is no other to prefer."""

    async def _check_list(self, called: Callable[[str], str] = str) -> EngineState:
        """Return what `Calls.list_models` does; its first stays so while it is there."""
        state = await self._calls.list_models(self._wanted, former=self._first, called=called)
        self._first = state.models[0]
        return state

    def headers(self, client: Headers) -> Headers:
        """Return the client's headers with the engine's own key."""
        return to_engine(client, self._credentials)

    async def count_prompt(self, served: str, chat: Mapping[str, object]) -> int:  # noqa: ARG002
        """Raise NotFound: most engines count what they have read, not what they would read."""
        raise NotFound(NO_COUNT)

    async def render(self, served: str, chat: Mapping[str, object]) -> str:  # noqa: ARG002
        """Raise NotFound: some engines give the ids of a prompt, and most nothing of it."""
        raise NotFound(NO_PROMPT)

    async def verify(self, model: str) -> None:
        """Claim nothing that would have to be found out."""

    def findings(self) -> Findings:
        """Return what `verify` found."""
        return Findings(self.capabilities, self.shortfalls, self.hides_ids)

    def adopt(self, findings: Findings) -> None:
        """Take over what another process has found."""
        self.capabilities = findings.capabilities or self.capabilities
        self.shortfalls, self.hides_ids = findings.shortfalls, findings.hides_ids


def has_ids(completion: Any) -> bool:
    """Whether a text completion has the id of its first token with that one's logprob."""
    try:
        return "id" in completion["choices"][0]["logprobs"]["content"][0]
    except (LookupError, TypeError):
        return False
