"""What Ollama writes for a completion, in shape as its source at v0.33.0-rc2 says. Pure.

Knows no model: ids come from a hash of the weights and the prompt. It gives none of them away: a
token's text is all that is shown of it, and one that ends inside a character is not shown at all.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from fake_vllm_answers import VOCABULARY

# A character in three tokens; the end-of-text token is the last.
_EMOJI = (b" \xf0\x9f", b"\x99", b"\x82")
THINK_END = b"</think>"
PIECES = (*(text.encode() for text in VOCABULARY), *_EMOJI, THINK_END, b"")
END_ID = len(PIECES) - 1

_numbers = count(1)


def encode(text: str) -> list[int]:
    """Return some ids for a prompt, of which only the number shows."""
    return list(text.encode())


@dataclass(frozen=True)
class Vocabulary:
    """How a model reads prompts, and what bytes each id it samples stands for.

    With `has_parts` it samples tokens that are parts of characters too.
    """

    encode: Callable[[str], Sequence[int]] = encode
    pieces: Sequence[bytes] = PIECES
    end_id: int = END_ID
    has_parts: bool = True


@dataclass(frozen=True)
class Sampled:
    """One answer: the ids, their logprobs, and how many the prompt has."""

    ids: list[int]
    logprobs: list[float]
    num_prompt: int
    vocabulary: Vocabulary

    def thinking(self) -> "Sampled":
        """Return an answer of which the first character's tokens are thoughts."""
        pieces = self.vocabulary.pieces
        whole = (
            number
            for number in range(1, len(self.ids))
            if _is_text(b"".join(pieces[token] for token in self.ids[:number]))
        )
        at, end = next(whole, len(self.ids)), pieces.index(THINK_END)
        return replace(
            self,
            ids=[*self.ids[:at], end, *self.ids[at:]],
            logprobs=[*self.logprobs[:at], -0.25, *self.logprobs[at:]],
        )

    @property
    def reason(self) -> str:
        """Why it ended."""
        return "stop" if self.ids[-1] == self.vocabulary.end_id else "length"

    def steps(self, *, drops_end: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield the text that each token completes, and its logprob's entry, if it has one."""
        held = b""
        for token, logprob in zip(self.ids, self.logprobs, strict=True):
            piece = self.vocabulary.pieces[token]
            is_end = token == self.vocabulary.end_id
            held = b"" if is_end else held + piece
            try:
                text = held.decode()
            except UnicodeDecodeError:
                continue
            held = b""
            shown = piece.decode("utf-8", "replace") if not is_end else ""
            entry = {"token": shown, "logprob": logprob, "bytes": list(shown.encode())}
            yield text, [] if is_end and drops_end else [entry]


def sample(weights: str, prompt: str, limit: int | None, vocabulary: Vocabulary) -> Sampled:
    """Return what a model with these weights answers."""
    chance = random.Random(hashlib.sha256(f"{weights}\0{prompt}".encode()).digest())
    ids: list[int] = []
    known = set(vocabulary.pieces)
    parts = _EMOJI if known.issuperset(_EMOJI) else [bytes([one]) for one in "🙂".encode()]
    emoji = [vocabulary.pieces.index(part) for part in parts]
    whole = [
        token
        for token, piece in enumerate(vocabulary.pieces)
        if piece not in (b"", THINK_END) and token != vocabulary.end_id and _is_text(piece)
    ]
    for _ in range(chance.randrange(5, 12)):
        is_emoji = vocabulary.has_parts and chance.random() < 0.1
        ids += emoji if is_emoji else [chance.choice(whole)]
    ids = [*ids, vocabulary.end_id][:limit]
    logprobs = [-chance.randrange(1, 4096) / 1024 for _ in ids]
    return Sampled(ids, logprobs, len(vocabulary.encode(prompt)), vocabulary)


def _is_text(piece: bytes) -> bool:
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


class Answer:
    """One answer in one dialect of its OpenAI routes.

    Args:
        fields: the request's.
        sampled: what is said.
        is_chat: which dialect.
        drops_end: as on models with a renderer: no entry for the token that ends the text.
        thinks: what stands before `THINK_END` are thoughts.
        has_parser: each second token's text is held back until the next.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        sampled: Sampled,
        *,
        is_chat: bool,
        drops_end: bool,
        thinks: bool,
        has_parser: bool,
    ) -> None:
        self._sampled = sampled
        self._is_chat = is_chat
        self._drops_end = drops_end
        self._thinks = thinks
        self._has_parser = has_parser
        self._wants = bool(fields.get("logprobs"))
        self._has_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
        kind = "chat.completion" if is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{next(_numbers) % 999}",
            "object": kind,
            "created": int(time.time()),
            "model": fields["model"],
            "system_fingerprint": "fp_ollama",
        }

    def whole(self) -> dict[str, Any]:
        """Return the JSON answer."""
        steps = list(self._sampled.steps(drops_end=self._drops_end))
        text = "".join(said for said, _ in steps)
        entries = [entry for _, found in steps for entry in found]
        thoughts: dict[str, str] = {}
        if self._thinks:
            thoughts["reasoning"], _, text = text.partition(THINK_END.decode())
        message = {"role": "assistant", "content": text, **thoughts}
        said = {"message": message} if self._is_chat else {}
        choice = {
            **({} if self._is_chat else {"text": text}),
            "index": 0,
            **said,
            "finish_reason": self._sampled.reason,
            **({"logprobs": {"content": entries}} if self._wants and entries else {}),
        }
        return {**self._head, "choices": [choice], "usage": self._usage()}

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream."""
        held, is_thought = "", self._thinks
        for number, (text, entries) in enumerate(self._sampled.steps(drops_end=self._drops_end)):
            if is_thought and text == THINK_END.decode():
                yield self._event(held, entries, None, is_thought=True)
                held, is_thought = "", False
                continue
            held += text
            is_held = not text or (self._has_parser and number % 2 == 0)
            if not is_held:
                yield self._event(held, entries, None, is_thought=is_thought)
                held = ""
            elif self._wants and entries:
                yield self._event("", entries, None)
        yield self._event(held, [], self._sampled.reason)
        if self._has_usage:
            yield {**self._chunk_head, "choices": [], "usage": self._usage()}

    @property
    def _chunk_head(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._head, "object": kind}

    def _event(
        self, text: str, entries: list[Any], reason: str | None, *, is_thought: bool = False
    ) -> dict[str, Any]:
        said = {"content": "", "reasoning": text} if is_thought else {"content": text}
        delta = {"delta": {"role": "assistant", **said}} if self._is_chat else {}
        choice = {
            **({} if self._is_chat else {"text": text}),
            "index": 0,
            **delta,
            "finish_reason": reason,
            **({"logprobs": {"content": entries}} if self._wants and entries else {}),
        }
        nothing = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
        usage = {"usage": nothing} if self._has_usage else {}
        return {**self._chunk_head, "choices": [choice], **usage}

    def _usage(self) -> dict[str, int]:
        num_prompt, num_sampled = self._sampled.num_prompt, len(self._sampled.ids)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_sampled,
            "total_tokens": num_prompt + num_sampled,
        }
