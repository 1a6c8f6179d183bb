"""The driver for vLLM, and for the embedded engine, which speaks vLLM's dialect.

Asks for the token ids and logprobs that a snapshot needs, and says what an answer looks like
without them. Measured on vLLM 0.32.
"""

from collections.abc import Mapping

from strop.proxy.engines.base import Ask, Capabilities, EngineState, Plan
from strop.proxy.engines.control import list_models
from strop.proxy.errors import BadRequest
from strop.proxy.upstream import Upstream
from strop.proxy.wire import body
from strop.proxy.wire.headers import Headers, to_engine
from strop.proxy.wire.restore import Restore

# These choose weights or files on the engine's side: only strop's own model names do that.
REFUSED = ("adapters", "draft_model", "lora", "lora_request", "lora_path")

# Sent only for its ids: a piece of a character, or of a tool call's markup.
_EXTRA_CHUNK = (b'"delta":{}', b'"finish_reason":null')
# What each injected field fills that would be null without it.
_NULLS = {
    (): (),
    ("logprobs",): ("logprobs",),
    ("return_token_ids",): ("token_ids", "prompt_token_ids"),
    ("return_token_ids", "logprobs"): ("logprobs", "token_ids", "prompt_token_ids"),
}


class Vllm:
    """A vLLM server, or one that speaks as it does.

    Args:
        upstream: the connection pool to it.
        key: its API key, sent in place of the client's.
        label: what completions record as their engine.
    """

    capabilities = Capabilities(
        token_ids=True, stream_logprobs=True, score_tokens=True, adapters=2, is_local=True
    )

    def __init__(self, upstream: Upstream, *, key: str = "", label: str = "vllm") -> None:
        self.label = label
        self.upstream = upstream
        self._credentials: Headers = [(b"authorization", b"Bearer " + key.encode())] if key else []

    def plan(self, ask: Ask) -> Plan:
        """Return the request with ids and logprobs asked for, and what to take out again."""
        refuse_weights(ask.fields)
        wants_snapshot = ask.is_captured and not _changes_the_answer(ask)
        changes = _snapshot(ask) if wants_snapshot else {}
        nulls = _NULLS[tuple(changes)]
        extra = _EXTRA_CHUNK if ask.is_stream and ask.dialect == "chat" and nulls else ()
        if ask.fields.get("model") != ask.served:
            changes["model"] = ask.served
        if not changes and not ask.is_rewritten:
            return Plan(ask.raw, None)
        return Plan(body.dumps({**ask.fields, **changes}), Restore(nulls, extra) if nulls else None)

    def headers(self, client: Headers) -> Headers:
        """Return the client's headers with the engine's own key."""
        return to_engine(client, self._credentials)

    async def check(self) -> EngineState:
        """Return what `/v1/models` says."""
        return await list_models(
            self.upstream, {k.decode(): v.decode() for k, v in self._credentials}
        )


def _snapshot(ask: Ask) -> dict[str, object]:
    """Return the fields to add for a snapshot, those that the client asked for itself left out."""
    add: dict[str, object] = {}
    if ask.fields.get("return_token_ids") is not True:
        add["return_token_ids"] = True
    wanted = ask.fields.get("logprobs")
    if ask.dialect == "completions":
        if wanted is None or wanted is False:
            add["logprobs"] = 0
    elif wanted is not True and not ask.fields.get("top_logprobs"):
        # top_logprobs alone is an error, and must stay one.
        add["logprobs"] = True
    return add


def _changes_the_answer(ask: Ask) -> bool:
    """Whether asking for a snapshot would change more of the answer than can be taken out."""
    fields = ask.fields
    return bool(
        (ask.dialect == "completions" and fields.get("echo")) or fields.get("use_beam_search")
    )


def refuse_weights(fields: Mapping[str, object]) -> None:
    """Raise BadRequest where a request tries to choose weights or files itself."""
    for name in REFUSED:
        if name in fields:
            raise BadRequest(
                f"`{name}` is not accepted: strop decides which weights answer; choose a version by"
                ' the model name, for instance "model": "<name>@base"',
                param=name,
            )
