"""Adapter versions on an engine that speaks vLLM's dialect: loaded, unloaded, listed and asked.

Knows no version's meaning and decides nothing. Measured on vLLM 0.32 and the embedded engine.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import msgspec

from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.engines.calls import Calls, reason_in
from strop.proxy.errors import UpstreamDied, UpstreamError

TIMEOUT_S = 300.0
UNLOAD_TIMEOUT_S = 30.0

WITH_ADAPTERS = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"

# Said, since an engine takes what isn't from the model's generation_config.json.
_GREEDY: Mapping[str, object] = {
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "add_special_tokens": False,
}


class _Logprob(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float]


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[str, _Logprob] | None] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


class VllmAdapters:
    """The adapter control of one server.

    Args:
        calls: to the server.
        label: what it is called where there are several.
        folder: where strop's adapters are, here and there.
    """

    def __init__(self, calls: Calls, *, label: str, folder: AdaptersFolder) -> None:
        self._calls = calls
        self._label = label
        self._folder = folder

    def members(self) -> "Mapping[str, VllmAdapters]":
        """Return this one."""
        return {self._label: self}

    async def prepare(self, name: str, folder: Path) -> None:
        """Do nothing: it reads PEFT folders as they are."""

    async def load(self, name: str, folder: Path) -> None:
        """Load `folder` as `name`, never in place: vLLM would keep the former's prefix cache."""
        fields = {"lora_name": name, "lora_path": self._folder.seen(folder)}
        answer = await self._calls.ask("POST", "/v1/load_lora_adapter", fields, timeout_s=TIMEOUT_S)
        if answer.status_code == httpx.codes.OK:
            return
        # Loaded by a strop that was killed before it could say so.
        if (await self.loaded()).get(name) != str(folder):
            raise self._refused(f"to load {name}", answer)

    async def unload(self, name: str) -> None:
        """Unload `name`; requests under way keep it."""
        fields = {"lora_name": name}
        answer = await self._calls.ask(
            "POST", "/v1/unload_lora_adapter", fields, timeout_s=UNLOAD_TIMEOUT_S
        )
        if answer.status_code != httpx.codes.OK and name in await self.loaded():
            raise self._refused(f"to unload {name}", answer)

    async def loaded(self) -> Mapping[str, str]:
        """Return the names with a parent in `/v1/models`, and the folder of each."""
        _, cards = await self._calls.list_cards()
        return {
            str(card["id"]): self._folder.known(str(card.get("root", "")))
            for card in cards
            if card.get("parent")
        }

    async def generate(
        self, name: str, prompt_ids: Sequence[int], num_tokens: int, *, uses_cache: bool
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return a greedy continuation; without the cache by a salt that nobody else has."""
        fields: dict[str, object] = {
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        if not uses_cache:
            fields["cache_salt"] = secrets.token_hex(16)
        choice = await self._complete(name, prompt_ids, fields)
        ids = choice.token_ids
        logprobs = choice.logprobs and choice.logprobs.token_logprobs
        if not ids or not logprobs or len(ids) != len(logprobs):
            raise UpstreamError(
                f"expected the ids and logprobs of {num_tokens} tokens from {self._calls.url},"
                " got none; strop's vllm driver needs `return_token_ids` (vLLM 0.10.2 or newer)"
            )
        return tuple(ids), tuple(logprobs)

    async def score(
        self, name: str, prompt_ids: Sequence[int], ids: Sequence[int]
    ) -> tuple[float, ...]:
        """Return the logprobs of `ids`, by `prompt_logprobs` and one more token."""
        fields = {"max_tokens": 1, "prompt_logprobs": 0}
        choice = await self._complete(name, [*prompt_ids, *ids], fields)
        entries = (choice.prompt_logprobs or [])[len(prompt_ids) :]
        try:
            scored = zip(ids, entries, strict=True)
            return tuple((entry or {})[str(token)].logprob for token, entry in scored)
        except (KeyError, ValueError) as error:
            raise UpstreamError(
                f"expected the logprobs of {len(ids)} tokens from {self._calls.url}, got"
                f" {len(entries)}; its answer to `prompt_logprobs` can't be read"
            ) from error

    async def _complete(
        self, name: str, prompt_ids: Sequence[int], fields: Mapping[str, object]
    ) -> _Choice:
        body = {"model": name, "prompt": list(prompt_ids), **_GREEDY, **fields}
        answer = await self._calls.ask("POST", "/v1/completions", body, timeout_s=TIMEOUT_S)
        if answer.status_code == httpx.codes.NOT_FOUND and name not in await self.loaded():
            raise UpstreamDied(
                f"the engine at {self._calls.url} has {name} no more: it was started anew"
                " since that was loaded"
            )
        if answer.status_code != httpx.codes.OK:
            raise self._refused(f"to answer as {name}", answer)
        try:
            (choice,) = msgspec.json.decode(answer.content, type=_Answer).choices
        except (msgspec.DecodeError, ValueError) as error:
            raise UpstreamError(
                f"expected a text completion from {self._calls.url}, got something else: {error}"
            ) from error
        return choice

    def _refused(self, what: str, answer: httpx.Response) -> UpstreamError:
        said = reason_in(answer)
        if answer.status_code == httpx.codes.NOT_FOUND and b'"error"' not in answer.content:
            said = f"it has no such route; {WITH_ADAPTERS}"
        return UpstreamError(
            f"the engine at {self._calls.url} refuses {what}, with status {answer.status_code}:"
            f" {said}"
        )
