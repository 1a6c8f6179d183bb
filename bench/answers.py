"""What the fake vLLM answers, and so what a client must receive, as bytes fixed in advance.

Knows the dialect of vLLM 0.32 (its `ChatCompletionResponse`, dumped whole, and
`ChatCompletionStreamResponse`, dumped without unset members); sends nothing.
"""

import random
from dataclasses import dataclass, replace
from functools import lru_cache

import orjson

MODEL = "bench"
# Each answer carries an id of its own in this place, as an engine's do.
ID_HOLE = b"0" * 32
_ID_STEP = 0x9E3779B97F4A7C15F39CC0605CEDC835
_CREATED = 1_795_000_000
_FINGERPRINT = "vllm-0.32.0-5d4d9cf9"
_PROMPT_TOKENS = 200
_NUM_ALTERNATIVES = 5

# Quoted keys, escapes and characters beyond ASCII are where a proxy that edits bytes goes wrong.
_PIECES = (
    " the", " answer", " proxy", " to", "\n", " token", "ing", " a", ",", " of", " naïve", " →",
    ' "token_ids": [1]', ' "logprobs":{', "}", "\\n", " weight", "s", ".", " 日本", " and", " is",
    "\t", " in", " sharp", "er", " stro", "p", " edge", "<|x|>", " 0.5", " é", " with", " one",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """The members of a request that change an answer's bytes.

    `top_logprobs` is None where `logprobs` was not asked for.
    """

    max_tokens: int
    stream: bool = False
    top_logprobs: int | None = None
    token_ids: bool = False

    def plain(self) -> "Ask":
        """Return the same request with no snapshot asked for."""
        return replace(self, top_logprobs=None, token_ids=False)


@dataclass(frozen=True, slots=True)
class _Token:
    id: int
    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]


def answer_id(number: int) -> bytes:
    """Return the 32 hex digits of the id of the `number`-th answer, spread out as real ones are."""
    return b"%032x" % ((number * _ID_STEP) & ((1 << 128) - 1))


@lru_cache
def content(num_tokens: int) -> str:
    """Return the text of an answer of that many tokens."""
    return "".join(token.text for token in _tokens(num_tokens))


@lru_cache
def document(ask: Ask) -> bytes:
    """Return the JSON body that answers `ask`, with the hole where its id goes."""
    tokens = _tokens(ask.max_tokens)
    logprobs = None if ask.top_logprobs is None else _logprobs(tokens, ask.top_logprobs)
    return orjson.dumps(
        {
            "id": _id(),
            "object": "chat.completion",
            "created": _CREATED,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": content(ask.max_tokens),
                        "refusal": None,
                        "annotations": None,
                        "audio": None,
                        "function_call": None,
                        "reasoning": None,
                    },
                    "logprobs": logprobs,
                    "finish_reason": "length",
                    "stop_reason": None,
                    "token_ids": [token.id for token in tokens] if ask.token_ids else None,
                    "routed_experts": None,
                }
            ],
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
            "usage": {
                "prompt_tokens": _PROMPT_TOKENS,
                "total_tokens": _PROMPT_TOKENS + ask.max_tokens,
                "completion_tokens": ask.max_tokens,
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
            "prompt_logprobs": None,
            "prompt_token_ids": _prompt_ids() if ask.token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


@lru_cache
def events(ask: Ask) -> tuple[bytes, ...]:
    """Return the events of a stream that answers `ask`, with the hole where its id goes.

    One for the role, one per token, one `[DONE]`.
    """
    tokens = _tokens(ask.max_tokens)
    role = {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    prompt_ids = _prompt_ids() if ask.token_ids else None
    found = [_event([role], prompt_token_ids=prompt_ids, prompt_text=None)]
    for number, token in enumerate(tokens, 1):
        is_last = number == len(tokens)
        choice: dict[str, object] = {
            "index": 0,
            "delta": {"content": token.text},
            "logprobs": None if ask.top_logprobs is None else _logprobs((token,), ask.top_logprobs),
            "finish_reason": "length" if is_last else None,
        }
        if is_last:
            choice["stop_reason"] = None
        choice["token_ids"] = [token.id] if ask.token_ids else None
        extra = {"system_fingerprint": _FINGERPRINT} if is_last else {}
        found.append(_event([choice], **extra))
    return (*found, b"data: [DONE]\n\n")


def _event(choices: list[dict[str, object]], **rest: object) -> bytes:
    chunk = {
        "id": _id(),
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": MODEL,
        "choices": choices,
        **rest,
    }
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _id() -> str:
    return "chatcmpl-" + ID_HOLE.decode()


@lru_cache
def _prompt_ids() -> list[int]:
    rng = random.Random(_PROMPT_TOKENS)
    return [rng.randrange(150_000) for _ in range(_PROMPT_TOKENS)]


@lru_cache
def _tokens(num_tokens: int) -> tuple[_Token, ...]:
    rng = random.Random(num_tokens)
    return tuple(
        _Token(
            id=rng.randrange(150_000),
            text=rng.choice(_PIECES),
            logprob=_logprob(rng),
            alternatives=tuple(
                (rng.choice(_PIECES), _logprob(rng)) for _ in range(_NUM_ALTERNATIVES)
            ),
        )
        for _ in range(num_tokens)
    )


def _logprob(rng: random.Random) -> float:
    # As many digits as a float32 has once it is a JSON number.
    return -round(rng.expovariate(1.0) + 1e-6, 16)


def _logprobs(tokens: tuple[_Token, ...], top: int) -> dict[str, object]:
    return {
        "content": [
            {
                **_entry(token.text, token.logprob),
                "top_logprobs": [
                    _entry(*pair)
                    for pair in ((token.text, token.logprob), *token.alternatives)[:top]
                ],
            }
            for token in tokens
        ]
    }


def _entry(text: str, logprob: float) -> dict[str, object]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
