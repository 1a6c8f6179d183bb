"""The driver for any OpenAI-compatible URL: passes everything through, asks for nothing more.

What answers there is not the person's own model, so its completions are recorded and rated but are
off-policy for training.
"""

from strop.proxy.engines.base import Ask, Capabilities, EngineState, Plan
from strop.proxy.engines.single import SingleServer
from strop.proxy.engines.wanted import ITS_FIRST, Wanted
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire.headers import Headers, to_engine


class OpenAI(SingleServer):
    """An OpenAI-compatible service.

    Args:
        upstream: the connection pool to it.
        key: its API key. Without one, and with `forwards_key`, the caller's goes on.
        wanted: which of its models answers to the name that strop gives it.
        forwards_key: whether the caller's own key may leave; False where it is strop's.
    """

    label = "openai"
    capabilities = Capabilities(
        token_ids=False, stream_logprobs=False, score_tokens=False, adapters=0, is_local=False
    )

    def __init__(
        self,
        upstream: Upstream,
        *,
        key: str = "",
        wanted: Wanted = ITS_FIRST,
        forwards_key: bool = False,
    ) -> None:
        super().__init__(upstream, key, wanted)
        self._forwards_key = forwards_key and not key

    def plan(self, ask: Ask) -> Plan:
        """Return the request as it came, but for the model's name where that was an alias."""
        return Plan.of(ask, ask.served, {})

    def headers(self, client: Headers) -> Headers:
        """Return the client's headers with the configured key, or the client's own."""
        own = [h for h in client if h[0] == b"authorization"] if self._forwards_key else []
        return to_engine(client, self._credentials or own)

    async def check(self) -> EngineState:
        """Return what `/v1/models` says to the configured key."""
        return await self._check_list()
