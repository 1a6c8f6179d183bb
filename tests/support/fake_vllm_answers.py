"""What a vLLM 0.32 writes for a completion, byte for byte in shape, with made-up text. Pure.

Knows no model: text, token ids and logprobs come from a hash of the served name and the prompt, so
that the same request gets the same answer, and from another version another one. What stands where,
asked and not asked for ids and logprobs, was read off a running server.
"""

import hashlib
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

END_ID = 2
FIRST_ID = 300  # below are the ids of prompts: 3 and the byte
FINGERPRINT = "vllm-0.32.0-fb216b9d"
VOCABULARY = (
    *(" the", " a", " sharp", " blade", " leather", " strap", " is", " was", " rate", " it"),
    *(" good", " bad", " not", " model", " learns", " from", " you", ".", ",", "\n", '"', "\\"),
    *("é", " naïve", " 你好", " 1"),
)
# Tokens that are parts of one character have no text; the last has it all.
EMOJI = ("", "", " 🙂")

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Token:
    """One sampled token and the alternatives to it; the end-of-text token has no text."""

    id: int
    text: str
    logprob: float
    others: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """The token as logprobs show it."""
        return "<|im_end|>" if self.id == END_ID else self.text


@dataclass(frozen=True)
class Choice:
    """One sampled answer to one prompt."""

    index: int
    prompt_ids: list[int]
    tokens: list[Token]
    finish_reason: str

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(token.text for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        """The sampled ids, the end's among them."""
        return [token.id for token in self.tokens]


def sample(served: str, prompt: str, index: int, max_tokens: int | None) -> Choice:
    """Return what `served` answers to `prompt`, as the `index`-th of its answers."""
    digest = hashlib.sha256(f"{served}\0{prompt}\0{index}".encode()).digest()
    chance = random.Random(digest)
    texts: list[str] = []
    for _ in range(chance.randrange(5, 12)):
        texts += EMOJI if chance.random() < 0.1 else [chance.choice(VOCABULARY)]
    names = (*VOCABULARY, *EMOJI)
    tokens = [_token(FIRST_ID + names.index(text), text, chance) for text in texts]
    tokens.append(_token(END_ID, "", chance))
    is_cut = max_tokens is not None and max_tokens < len(tokens)
    prompt_ids = [1, *(3 + byte for byte in prompt.encode())]
    return Choice(index, prompt_ids, tokens[:max_tokens], "length" if is_cut else "stop")


def _token(token_id: int, text: str, chance: random.Random) -> Token:
    logprob = -chance.randrange(1, 4096) / 1024
    names = chance.sample([name for name in VOCABULARY if name != text], 20)
    others = zip(names, range(1, 21), strict=True)
    return Token(token_id, text, logprob, tuple((name, logprob - rank) for name, rank in others))


class Completion:
    """What chat and text completions have in common: who asked for what, and the answers."""

    prefix: str
    name: str
    chunk_name: str

    def __init__(self, model: str, fields: Fields, has_parser: bool) -> None:
        self.fields = fields
        self.has_parser = has_parser
        self.is_hidden = has_parser and fields.get("include_reasoning") is False
        self.wants_ids = bool(fields.get("return_token_ids"))
        self.num_choices = fields.get("n") or 1
        limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
        prompts = [prompt for prompt in self.prompts() for _ in range(self.num_choices)]
        self.choices = [sample(model, prompt, at, limit) for at, prompt in enumerate(prompts)]
        request_id = fields.get("request_id") or uuid.uuid4().hex
        self.id = f"{self.prefix}-{request_id}"
        self.created = int(time.time())
        self.model = model

    def prompts(self) -> list[str]:
        raise NotImplementedError

    def usage(self) -> dict[str, int]:
        num_prompt = sum(len(c.prompt_ids) for c in self.choices[:: self.num_choices])
        num_sampled = sum(len(choice.tokens) for choice in self.choices)
        return {
            "prompt_tokens": num_prompt,
            "total_tokens": num_prompt + num_sampled,
            "completion_tokens": num_sampled,
        }

    def body(self, choices: list[dict[str, object]], tail: dict[str, object]) -> dict[str, object]:
        details = {"prompt_tokens_details": None, "completion_tokens_details": None}
        return {
            "id": self.id,
            "object": self.name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**self.usage(), **details},
            **tail,
        }

    def event(self, choice: dict[str, object], **rest: object) -> dict[str, object]:
        return {
            "id": self.id,
            "object": self.chunk_name,
            "created": self.created,
            "model": self.model,
            "choices": [choice] if choice else [],
            **rest,
        }

    def events(self) -> Iterator[dict[str, object]]:
        """Return the events of a stream: the choices in turn, token by token."""
        has_usage = bool((self.fields.get("stream_options") or {}).get("include_usage"))
        for step in zip_longest(*(choice.tokens for choice in self.choices)):
            for choice, token in zip(self.choices, step, strict=True):
                if token is None:
                    continue
                is_last = token is choice.tokens[-1]
                if content := self.delta(choice, token, is_last=is_last):
                    is_marked = is_last and not has_usage
                    yield self.event(
                        content, **({"system_fingerprint": FINGERPRINT} if is_marked else {})
                    )
        if has_usage:
            yield self.event({}, usage=self.usage(), system_fingerprint=FINGERPRINT)

    def delta(self, choice: Choice, token: Token, *, is_last: bool) -> dict[str, object] | None:
        raise NotImplementedError


class ChatCompletion(Completion):
    prefix, name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def prompts(self) -> list[str]:
        parts = [
            f"<|im_start|>{m['role']}\n{_text(m)}<|im_end|>\n" for m in self.fields["messages"]
        ]
        return ["".join([*parts, "<|im_start|>assistant\n"])]

    def logprobs(self, tokens: list[Token]) -> dict[str, object] | None:
        if not self.fields.get("logprobs") or self.is_hidden:
            return None
        num_top = self.fields.get("top_logprobs") or 0
        return {
            "content": [
                {
                    **_entry(token.name, token.logprob),
                    "top_logprobs": [
                        _entry(*other)
                        for other in ((token.name, token.logprob), *token.others)[:num_top]
                    ],
                }
                for token in tokens
            ]
        }

    def ids(self, tokens: list[Token]) -> list[int] | None:
        return [token.id for token in tokens] if self.wants_ids and not self.is_hidden else None

    def whole(self) -> dict[str, object]:
        nulls = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
        choices: list[dict[str, object]] = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, **nulls},
                "logprobs": self.logprobs(choice.tokens),
                "finish_reason": choice.finish_reason,
                "stop_reason": None,
                "token_ids": self.ids(choice.tokens),
                "routed_experts": None,
            }
            for choice in self.choices
        ]
        return self.body(
            choices,
            {
                "prompt_logprobs": None,
                "prompt_token_ids": self.choices[0].prompt_ids if self.wants_ids else None,
                "prompt_text": None,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            },
        )

    def events(self) -> Iterator[dict[str, object]]:
        """Return the events: first the role of each choice, with the prompt's ids."""
        for choice in self.choices:
            delta = {"role": "assistant", "content": ""}
            yield self.event(
                {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None},
                prompt_token_ids=choice.prompt_ids if self.wants_ids else None,
                prompt_text=None,
            )
        yield from super().events()

    def delta(self, choice: Choice, token: Token, *, is_last: bool) -> dict[str, object] | None:
        logprobs, ids = self.logprobs([token]), self.ids([token])
        delta: dict[str, object] = {"content": token.text}
        if self.has_parser and not token.text:
            if logprobs is None and ids is None and not is_last:
                return None
            delta = {}
        elif self.is_hidden:
            delta["reasoning"] = None
        return {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason if is_last else None,
            **({"stop_reason": None} if is_last else {}),
            "token_ids": ids,
        }


class TextCompletion(Completion):
    prefix, name, chunk_name = "cmpl", "text_completion", "text_completion"

    def prompts(self) -> list[str]:
        prompt = self.fields["prompt"]
        if isinstance(prompt, str):
            return [prompt]
        if all(isinstance(part, int) for part in prompt):
            return [repr(prompt)]
        return [part if isinstance(part, str) else repr(part) for part in prompt]

    def logprobs(self, tokens: list[Token], offset: int = 0) -> dict[str, object] | None:
        num_top = self.fields.get("logprobs")
        if num_top is None:
            return None
        offsets = [offset]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token.name))
        return {
            "text_offset": offsets,
            "token_logprobs": [token.logprob for token in tokens],
            "tokens": [token.name for token in tokens],
            "top_logprobs": [
                dict(((token.name, token.logprob), *token.others)[: max(1, num_top)])
                for token in tokens
            ],
        }

    def whole(self) -> dict[str, object]:
        choices: list[dict[str, object]] = [
            {
                "index": choice.index,
                "text": choice.text,
                "logprobs": self.logprobs(choice.tokens),
                "finish_reason": choice.finish_reason,
                "stop_reason": None,
                "token_ids": [token.id for token in choice.tokens] if self.wants_ids else None,
                "prompt_logprobs": None,
                "prompt_token_ids": choice.prompt_ids if self.wants_ids else None,
                "routed_experts": None,
            }
            for choice in self.choices
        ]
        tail = dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
        return self.body(choices, {**tail})

    def delta(self, choice: Choice, token: Token, *, is_last: bool) -> dict[str, object] | None:
        at = next(i for i, other in enumerate(choice.tokens) if other is token)
        is_first = at == 0
        return {
            "index": choice.index,
            "text": token.text,
            "logprobs": self.logprobs([token], sum(len(t.name) for t in choice.tokens[:at])),
            "finish_reason": choice.finish_reason if is_last else None,
            "stop_reason": None,
            "prompt_token_ids": choice.prompt_ids if self.wants_ids and is_first else None,
            "token_ids": [token.id] if self.wants_ids else None,
        }


def _text(message: Fields) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _entry(name: str, logprob: float) -> dict[str, object]:
    return {"token": name, "logprob": logprob, "bytes": list(name.encode())}
