"""The driver for Ollama, which answers with logprobs and without token ids.

The trainer finds the ids again from the text. Read from Ollama's source at v0.33.0-rc2. Adapter
versions are in `ollama_adapters`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from strop.proxy.engines import messages
from strop.proxy.engines.base import Ask, Capabilities, Dialect, EngineState, Plan
from strop.proxy.engines.calls import LOAD_TIMEOUT_S
from strop.proxy.engines.ollama_adapters import OllamaAdapters
from strop.proxy.engines.ollama_models import cards_in, is_ours
from strop.proxy.engines.single import NO_PROMPT, SingleServer
from strop.proxy.engines.wanted import ITS_FIRST, Wanted, listed
from strop.proxy.errors import BadRequest, EngineNotReady, NotFound
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire import weights
from strop.proxy.wire.restore import Restore

LOGPROBS_SINCE = (0, 12, 11)
ADAPTERS_SINCE = (0, 30, 0)

# Of OpenAI's efforts, those that it refuses, and what comes nearest.
_EFFORTS = {"minimal": "low", "xhigh": "high"}

# What it reads of a request. Go takes `"MODEL"`, and `"meſſages"` too, for the same names, the last
# of several counts: what strop resolves and records would not be what is answered.
_READ = frozenset({
    "model", "messages", "prompt", "suffix", "stream", "stream_options", "max_tokens", "seed",
    "stop", "temperature", "top_p", "frequency_penalty", "presence_penalty", "response_format",
    "tools", "reasoning", "reasoning_effort", "logprobs", "top_logprobs",
})  # fmt: skip

# Sent only for its logprobs: the token that ends a text, or one that a parser still holds back.
_EXTRA_CHUNK: Mapping[Dialect, tuple[bytes, ...]] = {
    "chat": (
        b'"delta":{"role":"assistant","content":""}',
        b'"finish_reason":null',
        b'"logprobs":{',
    ),
    "completions": (b'"text":""', b'"finish_reason":null', b'"logprobs":{'),
}


class Ollama(SingleServer):
    """An Ollama server.

    Args:
        upstream: the connection pool to it.
        key: the key that a proxy before it wants; itself it knows none.
        wanted: the model that has versions; without it the newest when strop starts.
        adapters: its adapter control; None where there is no base to convert adapters for.
    """

    label = "ollama"

    def __init__(
        self,
        upstream: Upstream,
        *,
        key: str = "",
        wanted: Wanted = ITS_FIRST,
        adapters: OllamaAdapters | None = None,
    ) -> None:
        super().__init__(upstream, key, wanted)
        self.adapters: OllamaAdapters | None = adapters
        self.capabilities = Capabilities(
            token_ids=False,
            prompt_ids=False,
            stream_logprobs=True,
            score_tokens=False,
            adapters=1 if adapters is not None else 0,
            is_local=True,
            # One of 999 numbers.
            body_ids_are_unique=False,
            may_drop_tokens=True,
            obeys_n=False,
        )
        self._chosen = ""
        self._version = ""
        self._renders = True

    def plan(self, ask: Ask) -> Plan:
        """Return the request with logprobs and usage asked for, and what to take out again."""
        weights.refuse(ask.fields)
        _refuse_other_case(ask.fields)
        fields = ask.fields
        changes: dict[str, object] = {}
        absent: list[str] = []
        limit = fields.get("max_completion_tokens")
        if limit is not None and fields.get("max_tokens") is None:
            # It knows only the old name, and would not stop.
            changes["max_tokens"] = limit
        if ask.dialect == "chat":
            changes |= _said_for_it(fields)
        if ask.is_captured:
            if _asks_no_logprobs(ask):
                changes["logprobs"] = True if ask.dialect == "chat" else 1
                absent.append("logprobs")
            options = fields.get("stream_options")
            known = options if isinstance(options, dict) else {}
            if ask.is_stream and known.get("include_usage") is not True:
                changes["stream_options"] = {**known, "include_usage": True}
                absent.append("usage")
        has_extra = ask.is_stream and "logprobs" in absent
        restore = Restore(
            absent=tuple(absent),
            extra=_EXTRA_CHUNK[ask.dialect] if has_extra else (),
            drops_usage="usage" in absent,
        )
        return Plan.of(ask, self._tag_of(ask.served), changes, restore if absent else None)

    async def check(self) -> EngineState:
        """Return its models, the one with versions first, under every name that it takes for them.

        Tags that strop made are left out.

        Raises:
            UpstreamError: it isn't there, or none of its models may serve.
        """
        said = await self._calls.must("GET", "/api/version")
        version = said.get("version") if isinstance(said, dict) else None
        if not isinstance(version, str):
            raise EngineNotReady(
                f"expected Ollama's version from {self.upstream.url}/api/version, got something"
                " else; check engine.url and engine.kind"
            )
        tags = await self._calls.must("GET", "/api/tags")
        found = {
            str(card["name"]): card
            for card in cards_in(tags)
            if "name" in card and not is_ours(str(card["name"]))
        }
        digests = {name: str(card.get("digest", "")) for name, card in found.items()}
        if not digests:
            raise EngineNotReady("Ollama has no model yet; get one, as in: ollama pull qwen3")
        names = [name for tag in digests for name in _names(tag)]
        self._chosen = self._choice(names)
        first = _full(self._chosen)
        # What another version can show is to be found out anew.
        self._renders = self._renders or version != self._version
        self._version = version
        # Another may be pulled under the same name at any time.
        self.capabilities = replace(self.capabilities, dtype=_dtype_of(found[first]))
        rest = (name for tag in sorted(set(digests) - {first}) for name in _names(tag))
        if self.adapters is not None:
            self.adapters.serves(first)
        return EngineState(
            models=(self._chosen, *rest),
            version=version,
            digest=digests[first],
            synonyms=tuple(name for name in _names(first) if name != self._chosen),
        )

    async def render(self, served: str, chat: Mapping[str, object]) -> str:
        """Return the prompt that it renders, which may lack the oldest messages of a long chat.

        A version that doesn't know what is asked answers the chat, and is asked no second time.
        """
        if not self._renders:
            raise NotFound(NO_PROMPT)
        asked = {
            **chat,
            **_said_for_it(chat),
            "model": self._tag_of(served),
            "stream": False,
            "max_tokens": 1,
            "_debug_render_only": True,
        }
        said = await self._calls.must(
            "POST", "/v1/chat/completions", asked, timeout_s=LOAD_TIMEOUT_S
        )
        shown = said.get("_debug_info") if isinstance(said, dict) else None
        text = shown.get("rendered_template") if isinstance(shown, dict) else None
        if not isinstance(text, str):
            self._renders = False
            raise NotFound(NO_PROMPT)
        return text

    async def verify(self, model: str) -> None:  # noqa: ARG002  # the protocol's
        """Say what this Ollama lacks, and strop for it; to ask for a token would load a model."""
        version = version_of(self._version)
        missing = []
        if not (has_logprobs := version >= LOGPROBS_SINCE):
            missing.append(
                f"Ollama {self._version} gives no logprobs, so what it answers is learned from"
                " without; update it to 0.12.11 or newer"
            )
        adapters = 1 if self.adapters is not None else 0
        if adapters and version < ADAPTERS_SINCE:
            adapters = 0
            missing.append(
                f"Ollama {self._version} can't serve adapters for most models, so strop can't serve"
                " what it trains; update it to 0.30 or newer"
            )
        if self.adapters is not None and self.adapters.lacking:
            adapters = adapters if self.adapters.can_serve_any else 0
            missing.append(
                "strop can't serve what it trains before it is started with what is missing here:"
                f" {self.adapters.lacking}"
            )
        self.shortfalls = tuple(missing)
        self.capabilities = replace(
            self.capabilities,
            logprobs=has_logprobs,
            stream_logprobs=has_logprobs,
            adapters=adapters,
        )

    def _choice(self, names: list[str]) -> str:
        """Return which of its models is to serve; raises EngineNotReady."""
        wanted = self._wanted
        models = list(dict.fromkeys(name.removesuffix(":latest") for name in names))
        # The newest, which is listed first, changes with the next pull.
        is_open = not wanted.is_required and {wanted.name, self._chosen}.isdisjoint(names)
        if self.adapters is not None and is_open and len(models) > 1:
            # Its newest may be any of them, and would be taken for the one that is trained.
            raise EngineNotReady(
                f"Ollama has {listed(models)}: say which of them model.base is, as in --model"
                f" {models[0]}"
            )
        advice = f", or get it: ollama pull {wanted.name}"
        return wanted.among(names, former=self._chosen, advice=advice)

    def _tag_of(self, served: str) -> str:
        tag = self.adapters.tag_of(served) if self.adapters is not None else None
        return tag or served


def _refuse_other_case(fields: Mapping[str, object]) -> None:
    """Raise BadRequest for a name that Ollama would take for one that it reads."""
    for name in fields:
        if name not in _READ and (meant := name.casefold()) in _READ:
            raise BadRequest(
                f"expected `{meant}`, got {name!a}, which Ollama would take for it; write it"
                " in lower case",
                param=name,
            )


def _said_for_it(fields: Mapping[str, object]) -> dict[str, object]:
    """Return what a chat has to say otherwise: a form that Ollama refuses, or passes over.

    It makes a message of each part, forgetting whose answer or tool's result that is; of what a
    model thought it reads `reasoning` only; it refuses an answer of nothing but that.
    """
    said: dict[str, object] = {}
    if (plain := messages.plain(fields.get("messages"))) is not fields.get("messages"):
        said["messages"] = plain
    effort = fields.get("reasoning_effort")
    if isinstance(effort, str) and effort in _EFFORTS:
        said["reasoning_effort"] = _EFFORTS[effort]
    return said


def _asks_no_logprobs(ask: Ask) -> bool:
    wanted = ask.fields.get("logprobs")
    if ask.dialect == "completions":
        return wanted is None or wanted == 0
    return wanted in (None, False) and not ask.fields.get("top_logprobs")


def _dtype_of(card: Mapping[str, object]) -> str:
    """Return what a listed model computes in: its cache is float16 unless it is set otherwise."""
    details = card.get("details")
    level = details.get("quantization_level") if isinstance(details, dict) else None
    if not isinstance(level, str):
        return ""
    return "float16" if level in ("F32", "F16") else level.lower()


def _full(model: str) -> str:
    """Return a model's name with its tag, as it is listed."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _names(tag: str) -> tuple[str, ...]:
    """Return the names that requests may use for a tag: `latest` may be left out."""
    short = tag.removesuffix(":latest")
    return (tag,) if short == tag else (short, tag)


def version_of(said: str) -> tuple[int, ...]:
    """Return the numbers of a version such as `0.33.0-rc2`; a build from source counts as new."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", said)
    numbers = tuple(int(one) for one in found.groups()) if found else (0, 0, 0)
    return numbers if any(numbers) else (1 << 16, 0, 0)
