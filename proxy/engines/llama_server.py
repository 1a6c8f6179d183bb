"""The driver for llama.cpp's llama-server.

Its logprobs carry the sampled ids, in JSON and in streams; the prompt's ids it does not give with
them. It takes adapters only when it is started, so it serves no versions. Measured on commit
0c1e570.
"""

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote

from strop.proxy.engines.base import Ask, Capabilities, EngineState, Plan
from strop.proxy.engines.calls import LOAD_TIMEOUT_S, json_of
from strop.proxy.engines.single import NO_LOGPROBS, SingleServer, has_ids
from strop.proxy.engines.wanted import ITS_FIRST, Wanted
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire import weights
from strop.proxy.wire.restore import Restore

_OTHER_WEIGHTS = (
    "it was started with --lora, so it isn't the base that answers; start it without, or set the"
    " scales to 0"
)


class LlamaServer(SingleServer):
    """A llama-server.

    Args:
        upstream: the connection pool to it.
        key: its API key, sent in place of the client's.
        wanted: which of its models is to serve.
    """

    label = "llama_server"

    def __init__(self, upstream: Upstream, *, key: str = "", wanted: Wanted = ITS_FIRST) -> None:
        super().__init__(upstream, key, replace(wanted, name=_name(wanted.name)))
        self.capabilities = Capabilities(
            token_ids=True,
            prompt_ids=False,
            stream_logprobs=True,
            score_tokens=False,
            adapters=0,
            is_local=True,
            may_drop_tokens=True,
        )
        self._ids: dict[str, str] = {}

    def plan(self, ask: Ask) -> Plan:
        """Return the request with logprobs asked for where it allows them, and what to take out."""
        weights.refuse(ask.fields)
        changes = _snapshot(ask) if ask.is_captured else {}
        restore = None
        if changes:
            # A text completion has a null where it has none, a chat has no such member.
            is_chat = ask.dialect == "chat"
            restore = Restore(absent=("logprobs",)) if is_chat else Restore(nulls=("logprobs",))
        return Plan.of(ask, self._ids.get(ask.served, ask.served), changes, restore)

    async def count_prompt(self, served: str, chat: Mapping[str, object]) -> int:
        """Return how many tokens it makes of the prompt that it renders."""
        model = self._ids.get(served, served)
        prompt = await self._calls.read("/apply-template", {**chat, "model": model}, "prompt")
        text = {"model": model, "content": prompt, "add_special": True, "parse_special": True}
        return len(await self._calls.read("/tokenize", text, "tokens"))

    async def check(self) -> EngineState:
        """Return what `/v1/models` says, files by their names alone.

        It answers 503 while the model is being loaded.
        """
        state = await self._check_list(called=_name)
        self._ids = {_name(model): model for model in state.models}
        return replace(state, models=tuple(self._ids))

    async def verify(self, model: str) -> None:
        """Ask for a token, and whether adapters change what the base answers."""
        # Several tokens: one that ends inside a character has no logprob.
        asked = {"prompt": "1 2 3", "max_tokens": 8, "temperature": 0, "logprobs": 1}
        said = await self._calls.must(
            "POST",
            "/v1/completions",
            {"model": self._ids.get(model, model), **asked},
            timeout_s=LOAD_TIMEOUT_S,
        )
        gives_ids = has_ids(said)
        missing = [] if gives_ids else [NO_LOGPROBS]
        named = quote(self._ids.get(model, model), safe="")
        loras = json_of(await self._calls.ask("GET", f"/lora-adapters?model={named}"))
        if isinstance(loras, list) and any(one.get("scale") for one in loras):
            missing.append(_OTHER_WEIGHTS)
        self.shortfalls = tuple(missing)
        self.capabilities = replace(
            self.capabilities, token_ids=gives_ids, logprobs=gives_ids, stream_logprobs=gives_ids
        )


def _name(model: str) -> str:
    """Return what clients call a model: without an alias it goes by the path of its file."""
    return model.rpartition("/")[2].removesuffix(".gguf") if model.endswith(".gguf") else model


def _snapshot(ask: Ask) -> dict[str, object]:
    """Return the fields to add for a snapshot; none where the client asked, or it may not be."""
    fields: Mapping[str, object] = ask.fields
    wanted = fields.get("logprobs")
    if ask.dialect == "completions":
        return {"logprobs": 1} if wanted in (None, False, 0) else {}
    if wanted is True or fields.get("top_logprobs") is not None:
        return {}
    if ask.is_stream and fields.get("tools"):
        # It refuses the two together.
        return {}
    # Without a number it gives twenty alternatives to each token.
    return {"logprobs": True, "top_logprobs": 1}
