"""The driver for vLLM, and for the embedded engine, which speaks vLLM's dialect.

Asks for the token ids and logprobs that a snapshot needs, and says what an answer looks like
without them. Measured on vLLM 0.32.
"""

from collections.abc import Mapping
from dataclasses import replace

from strop.proxy.engines import claims
from strop.proxy.engines.base import AdaptersFolder, Ask, Capabilities, EngineState, Plan
from strop.proxy.engines.single import NO_LOGPROBS, SingleServer
from strop.proxy.engines.vllm_adapters import WITH_ADAPTERS, VllmAdapters
from strop.proxy.engines.wanted import ITS_FIRST, Wanted
from strop.proxy.errors import BadRequest
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire import body, weights
from strop.proxy.wire.hide import Hide
from strop.proxy.wire.restore import Restore, Restorer

# These without `logprobs` are an error of a chat, and must stay one.
_NEEDS_LOGPROBS = ("top_logprobs", "logprob_token_ids")

# What of a chat makes its prompt.
_RENDERED = ("messages", "tools", "tool_choice", "chat_template_kwargs")

# Sent only for its ids: a piece of a character, or of a tool call's markup.
_EXTRA_CHUNK = (b'"delta":{}', b'"finish_reason":null')
# What each injected field fills that would be null without it.
_FILLS = {"logprobs": ("logprobs",), "return_token_ids": ("token_ids", "prompt_token_ids")}

_NO_IDS = (
    "it accepts `return_token_ids` and returns no ids, so what it answers can't be learned from;"
    " use vLLM 0.10.2 or newer"
)
_NO_STREAM_LOGPROBS = "its streams carry no logprobs, though its JSON answers do"
_LOGITS = "its logprobs are logits, which can't be used; start it with --logprobs-mode raw_logprobs"
_NO_ADAPTERS = f"it loads no adapters, so strop can't serve what it trains; {WITH_ADAPTERS}"


class Vllm(SingleServer):
    """A vLLM server, or one that speaks as it does.

    Args:
        upstream: the connection pool to it.
        key: its API key, sent in place of the client's.
        wanted: which of its models is to serve.
        label: what completions record as their engine.
        adapters: where strop's adapters are; without it the engine serves its bases only.
        num_adapters: how many may be loaded at once. vLLM takes two in one batch unless it is
            started with more, and none fails for being one too many: they wait for each other.
        scores: whether it may be asked for the logprobs of a prompt. vLLM that can load adapters
            ends when such a request meets others in a batch.

    Attributes:
        hides_ids: whether it leaves ids and logprobs out where a client wants no reasoning, as it
            does with a parser on. Then it is asked for all of it, and the client gets less.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        key: str = "",
        wanted: Wanted = ITS_FIRST,
        label: str = "vllm",
        adapters: AdaptersFolder | None = None,
        num_adapters: int = 2,
        scores: bool = False,
    ) -> None:
        super().__init__(upstream, key, wanted)
        self.label = label
        self.capabilities = Capabilities(
            token_ids=True,
            stream_logprobs=True,
            score_tokens=scores,
            adapters=num_adapters if adapters is not None else 0,
            is_local=True,
        )
        self._claimed = self.capabilities
        if adapters is not None:
            self.adapters = VllmAdapters(self._calls, label=label, folder=adapters)

    def plan(self, ask: Ask) -> Plan:
        """Return the request with ids and logprobs asked for, and what to take out again."""
        weights.refuse(ask.fields)
        if self.capabilities.adapters and not self._claimed.score_tokens:
            _refuse_scoring(ask)
        wants_snapshot = ask.is_captured and not _changes_the_answer(ask)
        changes = _snapshot(ask) if wants_snapshot else {}
        nulls = tuple(null for name in _FILLS if name in changes for null in _FILLS[name])
        # Who asks for ids or logprobs gets all of them.
        is_ours = ask.is_stream and ask.dialect == "chat" and len(changes) == len(_FILLS)
        extra = _EXTRA_CHUNK if is_ours else ()
        restore: Restorer | None = Restore(nulls, extra) if nulls else None
        if ask.fields.get("include_reasoning") is False and self.hides_ids and wants_snapshot:
            changes["include_reasoning"] = True
            restore = Hide(keeps_prompt_ids="return_token_ids" not in changes)
        return Plan.of(ask, ask.served, changes, restore)

    async def count_prompt(self, served: str, chat: Mapping[str, object]) -> int:
        """Return what `/tokenize` counts."""
        asked = {name: chat[name] for name in _RENDERED if name in chat}
        count: int = await self._calls.read("/tokenize", {"model": served, **asked}, "count")
        return count

    async def check(self) -> EngineState:
        """Return what `/v1/models` and `/version` say."""
        state = await self._check_list()
        if state.sampling != self.capabilities.sampling:
            self.capabilities = replace(self.capabilities, sampling=state.sampling)
        answer = await self._calls.ask("GET", "/version")
        return replace(state, version=_version(answer.content) or state.version)

    async def verify(self, model: str) -> None:
        """Ask it for a token in every way; what came decides `capabilities` and `shortfalls`."""
        found = await claims.find(self._calls, model)
        claimed, missing = self._claimed, []
        if not found.token_ids or not found.prompt_ids:
            missing.append(_NO_IDS)
        if found.kind == "logits":
            missing.append(_LOGITS)
        elif not found.logprobs:
            missing.append(NO_LOGPROBS)
        elif not found.stream_logprobs:
            missing.append(_NO_STREAM_LOGPROBS)
        num_adapters = claimed.adapters
        if num_adapters and not await claims.loads_adapters(self._calls):
            missing.append(_NO_ADAPTERS)
            num_adapters = 0
        has_logprobs = found.logprobs and found.kind != "logits"
        self.hides_ids = found.hides_ids
        self.shortfalls = tuple(missing)
        self.capabilities = replace(
            claimed,
            token_ids=found.token_ids,
            prompt_ids=found.prompt_ids,
            logprobs=has_logprobs,
            stream_logprobs=has_logprobs and found.stream_logprobs,
            score_tokens=claimed.score_tokens and found.kind != "logits",
            adapters=num_adapters,
            logprobs_kind="processed" if found.kind == "processed" else "raw",
            sampling=self.capabilities.sampling,
        )


def _version(answer: bytes) -> str | None:
    try:
        version = body.parse(answer).get("version")
    except BadRequest:
        return None
    return version if isinstance(version, str) else None


def _snapshot(ask: Ask) -> dict[str, object]:
    """Return the fields to add for a snapshot, those that the client asked for itself left out."""
    add: dict[str, object] = {}
    # It takes 1 and "true" for true, and refuses a chat's 5: neither is ours to change.
    if ask.fields.get("return_token_ids") in (None, False):
        add["return_token_ids"] = True
    wanted = ask.fields.get("logprobs")
    if ask.dialect == "completions":
        # Here it takes false for 0, so who says so gets them.
        if wanted is None:
            add["logprobs"] = 0
    elif wanted in (None, False) and not any(map(ask.fields.get, _NEEDS_LOGPROBS)):
        add["logprobs"] = True
    return add


def _changes_the_answer(ask: Ask) -> bool:
    """Whether asking for a snapshot would change more of the answer than can be taken out."""
    fields = ask.fields
    if ask.dialect == "completions" and fields.get("echo"):
        return True
    # Without reasoning wanted, vLLM holds it to the structure too.
    if fields.get("include_reasoning") is False and _is_structured(fields):
        return True
    return bool(fields.get("use_beam_search"))


def _is_structured(fields: Mapping[str, object]) -> bool:
    """Whether the answer has to have a form: JSON, a grammar, or a call of a certain tool."""
    if any(fields.get(name) for name in ("structured_outputs", "response_format")):
        return True
    if any(name.startswith("guided_") for name in fields):
        return True
    if fields.get("tool_choice") not in (None, "auto", "none"):
        return True
    tools = fields.get("tools")
    return isinstance(tools, list) and any(_is_strict(tool) for tool in tools)


def _is_strict(tool: object) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and function.get("strict") is True


def _refuse_scoring(ask: Ask) -> None:
    """Raise BadRequest for what ends a vLLM that can load adapters, as soon as it is not alone."""
    fields = ask.fields
    name = "prompt_logprobs" if fields.get("prompt_logprobs") is not None else ""
    # A text completion means the same by asking for both; a chat, in vLLM, by `echo` alone.
    is_chat = ask.dialect == "chat"
    if fields.get("echo") and (is_chat or fields.get("logprobs") is not None):
        name = "echo"
    if name:
        raise BadRequest(
            f"`{name}` asks for the logprobs of a prompt, and vLLM with adapters ends when that"
            " meets other requests; ask an engine of its own, without --enable-lora",
            param=name,
        )
