"""A fake vLLM whose answers depend on the weights it has loaded, and that can be told to lie.

Weights are known by their folder, without the digits that it gets when it is written; what they
answer to token ids is a hash of both, so that a probe of them can be made without a model.
"""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fake_engine import Call
from fake_vllm import FakeVllm

from strop.adapters.probe import Item, Probe

BASE_WEIGHTS = "base"
MARGIN = 5.0


async def _at_once(_: str) -> None:
    return None


def answer(weights: str, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], list[float]]:
    """Return the greedy ids after `prompt`, all weights' the same, and their logprobs by these."""
    ids: list[int] = []
    for _ in range(num_tokens):
        ids.append(_number("", [*prompt, *ids], "id") % 1000)
    return ids, score(weights, prompt, ids)


def score(weights: str, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
    """Return the logprobs of `ids` after `prompt`."""
    return [
        -(_number(weights, [*prompt, *ids[: at + 1]], "logprob") % 4096) / 1024
        for at in range(len(ids))
    ]


def _number(weights: str, ids: Sequence[int], what: str) -> int:
    folder = re.sub(r"-[0-9a-f]{8}$", "", weights)
    said = f"{folder}\0{what}\0{list(ids)}".encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest())


def probe_of(folder: Path | str, parent: Path | None = None, num_tokens: int = 24) -> Probe:
    """Return the probe of the weights in `folder`: a short prompt and one of 300 tokens."""
    items = []
    for prompt in ((5, 6, 7), tuple(range(300))):
        ids, logprobs = answer(str(folder), prompt, num_tokens)
        items.append(
            Item(
                prompt_ids=prompt,
                ids=tuple(ids),
                margins=(MARGIN,) * num_tokens,
                candidate=tuple(logprobs),
                parent=tuple(score(str(parent), prompt, ids)) if parent else None,
                base=tuple(score(BASE_WEIGHTS, prompt, ids)),
            )
        )
    return Probe(tuple(items), "float32")


@dataclass
class FakeAdapters(FakeVllm):
    """The handler.

    Attributes:
        has_one_slot: whether a loaded version displaces the one before, and the base.
        weights_of: which weights answer for a served name, given its folder; where it lies, others.
        shares_cache: whether its prefix cache forgets whose a prompt was: then a prompt that was
            seen before, of the same salt, is answered with the weights that it was first seen with.
        before_load: awaited, with the name, before a version is loaded.
        before_answer: awaited, with the served name, before a text completion.
        load_error: what it says in place of loading; None to load.
        has_forgotten: names that it answers with 404 though it lists them.
    """

    has_one_slot: bool = False
    weights_of: Callable[[str, str], str] = lambda _name, folder: folder
    shares_cache: bool = False
    before_load: Callable[[str], Awaitable[None]] = _at_once
    before_answer: Callable[[str], Awaitable[None]] = _at_once
    load_error: str | None = None
    unloaded: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    probed: list[str] = field(default_factory=list)
    displaced: list[str] = field(default_factory=list)
    _seen: dict[tuple[str, str], str] = field(default_factory=dict)

    def restart(self) -> None:
        """Lose what was loaded, as a process does that ends and begins again."""
        self.adapters.clear()
        self._seen.clear()

    async def _load(self, call: Call) -> None:
        name = call.request.json()["lora_name"]
        self.loads.append(name)
        await self.before_load(name)
        if self.load_error is not None:
            error = {"message": self.load_error, "type": "InternalServerError", "code": 500}
            await call.json({"error": error}, 500)
            return
        if self.has_one_slot:
            self.adapters.clear()
        await super()._load(call)

    async def _unload(self, call: Call) -> None:
        name = call.request.json()["lora_name"]
        if name in self.adapters:
            self.unloaded.append(name)
        await super()._unload(call)

    async def _complete(self, call: Call, *, is_chat: bool) -> None:
        fields = call.request.json()
        model, prompt = str(fields.get("model")), fields.get("prompt")
        if self.has_one_slot and model == self.base and self.adapters:
            self.displaced.append(model)
        if is_chat or not isinstance(prompt, list):
            await super()._complete(call, is_chat=is_chat)
            return
        if model != self.base and model not in self.adapters:
            message = f"The model `{model}` does not exist."
            await call.json({"error": {"message": message, "code": 404}}, 404)
            return
        await self.before_answer(model)
        self.probed.append(model)
        weights = BASE_WEIGHTS
        if model != self.base:
            weights = self.weights_of(model, self.adapters[model])
        # As in vLLM, scoring a prompt reads no cache.
        if self.shares_cache and fields.get("prompt_logprobs") is None:
            weights = self._seen.setdefault((fields.get("cache_salt", ""), str(prompt)), weights)
        ids, logprobs = answer(weights, prompt, fields["max_tokens"])
        choice: dict[str, object] = {
            "index": 0,
            "text": "",
            "token_ids": ids,
            "prompt_token_ids": prompt,
            "logprobs": {"token_logprobs": logprobs},
            "finish_reason": "length",
        }
        if fields.get("prompt_logprobs") is not None:
            scored = [
                score(weights, prompt[:at], prompt[at : at + 1])[0] for at in range(len(prompt))
            ]
            entries = [{str(t): {"logprob": s}} for t, s in zip(prompt, scored, strict=True)]
            choice["prompt_logprobs"] = [None, *entries[1:]]
        await call.json({"id": "cmpl-1", "object": "text_completion", "choices": [choice]})


class Gate:
    """Stops whoever passes until it is opened, and says when somebody has come."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, _: str) -> None:
        """Wait."""
        self.reached.set()
        await self.opened.wait()
