"""The driver for a stock mlx_lm.server.

Its JSON answers carry the sampled ids, its streams none; the prompt's ids it never gives. Read and
measured on mlx-lm 0.32.2. Adapter versions are in `mlx_server_adapters`.
"""

import contextlib
import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import orjson

from strop.proxy.engines import messages
from strop.proxy.engines.base import Ask, Capabilities, EngineState, Plan
from strop.proxy.engines.calls import LOAD_TIMEOUT_S, json_of, reason_in
from strop.proxy.engines.mlx_server_adapters import DEFAULT_MODEL, NOT_NAMED, MlxServerAdapters
from strop.proxy.engines.single import NO_LOGPROBS, SingleServer, has_ids
from strop.proxy.engines.wanted import ITS_FIRST, Wanted
from strop.proxy.errors import BadRequest, EngineNotReady, Unavailable, UpstreamError
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire import body, weights
from strop.proxy.wire.rechunk import rechunk
from strop.proxy.wire.restore import Restore

_MOST_TOP_LOGPROBS = 11

# What the server takes, and fails at where nothing catches it.
_CONTEXT_SIZES = ("repetition_context_size", "presence_context_size", "frequency_context_size")
_MOST_CONTEXT = 2**31 - 1
_MOST_XTC_THRESHOLD = 0.5
# They can leave no prompt at all.
_NOT_FOR_TEMPLATES = ("chat_template", "truncation")
# Those without an index of their weights' files.
_UNLISTED = (
    ", or start it with a folder, and name that: it lists no model of the hub that is a single file"
)
_HALF = re.compile(r"[\ud800-\udfff]")


class MlxServer(SingleServer):
    """A stock mlx_lm.server, which has one model and at most one adapter in memory.

    Args:
        upstream: the connection pool to it.
        key: the key that a proxy before it wants; itself it knows none.
        wanted: which model is to serve, by the id that the server lists.
        base_id: what `model.base` says, which may be such an id.
        rechunks: whether streams are asked for as JSON, so that they have a snapshot too.
        adapters: its adapter control; None where there is no base to convert adapters for.
        vocab_size: how many tokens the model has; None where that isn't known.
    """

    label = "mlx_server"

    def __init__(
        self,
        upstream: Upstream,
        *,
        key: str = "",
        wanted: Wanted = ITS_FIRST,
        base_id: str = "",
        rechunks: bool = False,
        adapters: MlxServerAdapters | None = None,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__(upstream, key, wanted)
        self.adapters: MlxServerAdapters | None = adapters
        self.capabilities = Capabilities(
            token_ids=True,
            prompt_ids=False,
            stream_logprobs=rechunks,
            score_tokens=False,
            adapters=1 if adapters is not None else 0,
            is_local=True,
            logprobs_show_penalties=True,
            obeys_n=False,
        )
        self._base_id = base_id
        self._rechunks = rechunks
        self._vocab_size = vocab_size
        self._model = DEFAULT_MODEL
        self._version: str | None = None
        self._has_answered = False
        self._gives_ids = True

    def plan(self, ask: Ask) -> Plan:
        """Return the request: the version's weights named, ids asked for where there are any.

        Raises:
            BadRequest: the request names weights itself, or would end the server's generation.
            Unavailable: the version is not the one that this server holds.
        """
        weights.refuse(ask.fields)
        # It takes null for a value of the wrong type.
        fields = {name: value for name, value in ask.fields.items() if value is not None}
        asked = fields.get("logprobs")
        wants_logprobs = asked is True or (ask.dialect == "completions" and type(asked) is int)
        top = fields.get("top_logprobs")
        if isinstance(top, int) and 0 < top <= _MOST_TOP_LOGPROBS:
            # With it, it reports the id of a token that it did not sample; without `logprobs` too.
            del fields["top_logprobs"]
        if ask.dialect == "chat" and "messages" in fields:
            fields["messages"] = messages.plain(fields["messages"])
        if ask.dialect == "completions" and "prompt" in fields:
            fields["prompt"] = _text_of(fields["prompt"])
        _check(fields, self._vocab_size)
        if wants_logprobs:
            # It takes no number, not even in a stream, which has none.
            fields["logprobs"] = True
        rechunks = self._rechunks and ask.is_stream and ask.is_captured
        restore = None
        is_ours = ask.is_captured and not wants_logprobs and asked in (None, False)
        if is_ours and (rechunks or not ask.is_stream):
            fields["logprobs"] = True
            restore = Restore(absent=("logprobs",))
        options = fields.get("stream_options")
        wants_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        if rechunks:
            fields["stream"] = False
            fields.pop("stream_options", None)
        elif ask.is_stream and (ask.is_captured or options is not None):
            # Without ids, how many tokens there were tells whether they were found again. And
            # options that don't say whether they include the usage break its stream.
            is_added = ask.is_captured and not wants_usage
            fields["stream_options"] = {"include_usage": wants_usage or is_added}
            restore = Restore(drops_usage=True) if is_added else None
        return Plan(
            body.dumps({**fields, **self._weights(ask.served)}),
            restore,
            reword=as_openai_error,
            rechunk=functools.partial(rechunk, include_usage=wants_usage) if rechunks else None,
        )

    async def check(self) -> EngineState:
        """Return the one model that is served, once it has answered with a token.

        Its /health is fine before a model is loaded, and its list of models may be empty.
        """
        try:
            answer = await self._calls.ask("GET", "/health")
        except UpstreamError:
            self._has_answered = False
            raise
        if answer.status_code != httpx.codes.OK:
            self._has_answered = False
            raise EngineNotReady(
                f"expected {self.upstream.url}/health to be fine, got status {answer.status_code}:"
                f" {reason_in(answer)}; see the log of mlx_lm.server"
            )
        if not self._has_answered:
            await self._begin()
            self._has_answered = True
        return EngineState(models=(self._name,), version=self._version, digest=self._model)

    async def verify(self, model: str) -> None:  # noqa: ARG002  # it holds one
        """Say whether the first token came with its id and logprob, and whether adapters can."""
        missing = [] if self._gives_ids else [NO_LOGPROBS]
        adapters = 1 if self.adapters is not None else 0
        if adapters and self._model == DEFAULT_MODEL:
            adapters = 0
            missing.append(NOT_NAMED)
        self.shortfalls = tuple(missing)
        self.capabilities = replace(
            self.capabilities,
            token_ids=self._gives_ids,
            logprobs=self._gives_ids,
            adapters=adapters,
        )

    @property
    def _name(self) -> str:
        """What clients call the model: a folder's name, or the hub id."""
        return self._model.rstrip("/").rpartition("/")[2] if _is_path(self._model) else self._model

    def _weights(self, served: str) -> dict[str, str]:
        if self.adapters is not None and (path := self.adapters.path_of(served)) is not None:
            return {"model": self._model, "adapters": path}
        if served == self._name:
            return {"model": self._model}
        raise Unavailable(
            f"expected a version that the engine holds, got {served}; it holds one at a time:"
            " activate that one first"
        )

    async def _begin(self) -> None:
        """Find out what is served, and wait for the first token of it."""
        self._model = _chosen(await self._list_models(), self._wanted, self._base_id)
        if self.adapters is not None:
            self.adapters.serves(self._model, self._name)
        active = self.adapters.active if self.adapters is not None else None
        fields = {"prompt": "1", "max_tokens": 1, "logprobs": True}
        said = await self._calls.must(
            "POST",
            "/v1/completions",
            {**self._weights(active or self._name), **fields},
            timeout_s=LOAD_TIMEOUT_S,
        )
        if not isinstance(said, dict) or "choices" not in said:
            raise EngineNotReady(
                f"expected a text completion from {self.upstream.url}/v1/completions, got something"
                " else; check engine.url and engine.kind"
            )
        if self.adapters is not None:
            self.adapters.forget()
        fingerprint = said.get("system_fingerprint")
        self._version = fingerprint.partition("-")[0] if isinstance(fingerprint, str) else None
        self._gives_ids = has_ids(said)

    async def _list_models(self) -> list[str]:
        """Return the ids it lists; none where its list is broken off, for want of a hub cache."""
        payload = json_of(await self._calls.ask("GET", "/v1/models"))
        cards = payload.get("data") if isinstance(payload, dict) else None
        if not isinstance(cards, list):
            return []
        return [str(card["id"]) for card in cards if isinstance(card, dict) and "id" in card]


def _text_of(prompt: object) -> object:
    """Return the prompt of a text completion as a text, where it is one in a list, as LangChain's.

    Raises:
        BadRequest: it is several texts, or none: the server would answer nobody any more.
    """
    texts = prompt if isinstance(prompt, list) else [prompt]
    if all(isinstance(one, str) for one in texts):
        if len(texts) != 1 or not texts[0]:
            came = "an empty one" if len(texts) == 1 else f"{len(texts)} of them"
            raise BadRequest(
                f"expected `prompt` to be one text, got {came}, after which mlx_lm.server would"
                " answer nobody any more; send each by itself",
                param="prompt",
            )
        return texts[0]
    # Ids, which it refuses by itself.
    return prompt


def _check(fields: Mapping[str, object], vocab_size: int | None) -> None:
    """Raise BadRequest for what would end the server's generation: it would answer nobody more."""
    stop = fields.get("stop", [])
    if not all(map(_is_text, stop if isinstance(stop, list) else [stop])):
        raise BadRequest("expected `stop` to be a text or a list of texts", param="stop")
    threshold = fields.get("xtc_threshold") if fields.get("xtc_probability") else None
    if isinstance(threshold, float) and threshold > _MOST_XTC_THRESHOLD:
        raise BadRequest(
            f"expected `xtc_threshold` to be {_MOST_XTC_THRESHOLD} at most, got {threshold}; leave"
            " `xtc_probability` out to do without",
            param="xtc_threshold",
        )
    for name in _CONTEXT_SIZES:
        size = fields.get(name)
        if isinstance(size, int) and size > _MOST_CONTEXT:
            raise BadRequest(
                f"expected `{name}` to be {_MOST_CONTEXT} at most, got {str(size)[:80]}", param=name
            )
    for_template = fields.get("chat_template_kwargs")
    for name in _NOT_FOR_TEMPLATES:
        if isinstance(for_template, Mapping) and name in for_template:
            raise BadRequest(
                f"expected `chat_template_kwargs` to have what the model's template reads, got"
                f" {name!r}; take it out",
                param="chat_template_kwargs",
            )
    if isinstance(fields.get("top_k"), bool):
        raise BadRequest("expected `top_k` to be a number, got a boolean", param="top_k")
    if vocab_size is not None:
        _check_tokens(fields, vocab_size)


def _is_text(value: object) -> bool:
    """Whether it is a text of whole characters: JSON can hold half of one."""
    return isinstance(value, str) and _HALF.search(value) is None


def _check_tokens(fields: Mapping[str, object], vocab_size: int) -> None:
    """Raise BadRequest for what names more tokens than there are: it would end the generation."""
    top_k, bias = fields.get("top_k"), fields.get("logit_bias")
    if isinstance(top_k, int) and top_k >= vocab_size:
        raise BadRequest(
            f"expected `top_k` below the {vocab_size} tokens that the model has, got {top_k}; leave"
            " it out to cut nothing off",
            param="top_k",
        )
    for token in bias if isinstance(bias, Mapping) else ():
        # What is no number it refuses by itself.
        with contextlib.suppress(ValueError):
            if not 0 <= int(token) < vocab_size:
                raise BadRequest(
                    f"expected `logit_bias` to name tokens from 0 to {vocab_size - 1}, got"
                    f" {ascii(token)[:80]}; take it out",
                    param="logit_bias",
                )


def _chosen(ids: list[str], wanted: Wanted, base_id: str) -> str:
    """Return the id of the model of its command line: it lists all of the hub's cache beside it.

    An id of the hub is taken only where the settings name it: the server would drop its own model
    for the one that it is asked for, and that one may not be listed.

    Raises:
        EngineNotReady: it doesn't list the one that is required.
    """
    # A folder is listed by its whole path, links followed.
    if wanted.is_required and wanted.name not in ids and Path(wanted.name).is_dir():
        wanted = replace(wanted, name=str(Path(wanted.name).resolve()))
    # Without that cache it lists nothing, not even the folder that it was started with.
    if not ids and _is_path(wanted.name):
        return wanted.name
    if not ids and wanted.is_required:
        raise EngineNotReady(
            f"mlx_lm.server lists no models, so it can't be told whether it serves {wanted.name!r},"
            " which engine.model (--model) names; start it with a folder, and name that by its"
            " full path"
        )
    if wanted.name in ids or wanted.is_required:
        return wanted.among(ids, advice=_UNLISTED)
    # A folder is listed only where it was named, and last.
    named = [one for one in ids if _is_path(one)]
    if named:
        return named[-1]
    return base_id if base_id in ids else DEFAULT_MODEL


def _is_path(model: str) -> bool:
    return model.startswith("/")


def as_openai_error(status: int, said: bytes) -> bytes:
    """Return an error as OpenAI writes it; the server writes `{"error": "text"}`, or text alone."""
    try:
        payload = orjson.loads(said)
    except orjson.JSONDecodeError:
        payload = {"error": said.decode("utf-8", "replace").strip()}
    error = payload.get("error") if isinstance(payload, dict) else None
    if not isinstance(error, str):
        return said
    kind = "invalid_request_error" if status < httpx.codes.INTERNAL_SERVER_ERROR else "server_error"
    return orjson.dumps({"error": {"message": error, "type": kind, "param": None, "code": None}})
