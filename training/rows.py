"""Rows: one recorded choice as token ids to learn from, or the reason why it can't be.

Pure, but for the tokenizer it is given. Knows no rating and no loss. docs/learning.md, "What is
learned from", says which rows are sound, and why.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import numpy as np

from strop.proxy.store import prompt
from strop.proxy.store.records import Choice, Completion
from strop.training.sequences import Floats, Tokens

# Below it vLLM, and strop's own engine, take the best token.
_GREEDY_BELOW: Final = 1e-5


class LeftOut(StrEnum):
    """Why something isn't learned from."""

    OTHER_BASE = "answered by another base"
    OTHER_MODEL = "answered by another model"
    REDACTED = "redacted"
    NO_TOKENS = "no token ids, and not text alone"
    NO_TOKENIZER = "no token ids, and no tokenizer"
    SEVERAL_PROMPTS = "several prompts in one request"
    PROMPT_DIFFERS = "no prompt ids, and its messages encode to other ones"
    TEXT_DIFFERS = "no token ids, and its text encodes to other ones"
    NOT_TEXT = "the prompt holds more than text"
    EMPTY = "empty answer"
    TOO_LONG = "longer than the context, or than fits into memory"


class Flag(StrEnum):
    """What is unusual about something that is learned from all the same."""

    GREEDY = "sampled at temperature 0"
    TRUNCATED = "sampled with top_p, top_k or min_p"
    CONSTRAINED = "sampled with penalties, biases or a grammar"
    PROCESSED = "logprobs recomputed: the engine's are processed"
    NO_LOGPROBS = "logprobs recomputed: the engine gave none, or not one for each token"
    PROMPT_ENCODED = "prompt ids from its messages, or its text"
    ANSWER_ENCODED = "token ids from its text"
    TOKENS_ENCODED = "token ids from the texts of its tokens"
    PARTIAL = "a part of the turn is left out"


class Tokenizer(Protocol):
    """The base's own tokenizer and chat template."""

    def encode_chat(self, fields: Mapping[str, object]) -> tuple[int, ...]:
        """Return the prompt of a chat request, up to where the assistant's answer begins.

        Raises:
            ValueError: the template refuses it.
        """
        ...

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the prompt of a text completion."""
        ...

    def encode_shown(self, text: str) -> Sequence[tuple[int, ...]]:
        """Return the ways to read a prompt that an engine shows as text.

        What every text begins with is in it, or the engine adds it.
        """
        ...

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """Return an assistant's text; the last id ends the turn.

        No part of `text` is read as a special token.
        """
        ...

    def encode_tokens(self, texts: Sequence[str]) -> tuple[int, ...] | None:
        """Return the ids of sampled tokens, given each one's text: that of the last may be empty.

        It ends the turn then. None where a text is not one token's alone.
        """
        ...

    def encode_opening(self, asked: Sequence[int], fields: Mapping[str, object]) -> tuple[int, ...]:
        """Return what stands between a prompt and the text of an answer that has no thoughts.

        Args:
            asked: the prompt's ids, as the model was given them.
            fields: the body of the chat request that they are of; nothing of a text completion.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What is trained.

    Attributes:
        base: its identity.
        context: the most tokens of prompt and answer together, of the base or of what fits here.
        tokenizer: None where there is none; then only ids from engines are of use.
    """

    base: str
    context: int
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One answer with what it answers.

    Attributes:
        tokens: the ids.
        captured: the engine's logprobs, float32 (S,), raw; None where the trainer's stand in.
        version: the adapter version that answered, or `base`.
        flags: what is unusual about it.
    """

    tokens: Tokens
    captured: Floats | None
    version: str
    flags: frozenset[Flag] = frozenset()


def read(completion: Completion, index: int, target: Target) -> Row | LeftOut:
    """Return the row of a completion's choice `index`."""
    if completion.base != target.base:
        return LeftOut.OTHER_MODEL if completion.base is None else LeftOut.OTHER_BASE
    choice = next((one for one in completion.choices if one.index == index), None)
    if choice is None:
        return LeftOut.EMPTY
    asked = read_prompt(completion, target)
    if isinstance(asked, LeftOut):
        return asked
    sampling = _sampling(completion)
    flags = _sampling_flags(sampling)
    if completion.prompt_ids is None:
        flags.add(Flag.PROMPT_ENCODED)
    sampled: Sequence[int] | None = choice.token_ids
    if sampled is None and (sampled := _encode_tokens(completion, choice, sampling, target)):
        flags.add(Flag.TOKENS_ENCODED)
    if sampled is not None:
        answer: Sequence[int] | LeftOut = sampled
        captured = _captured(choice, len(sampled), flags)
    else:
        answer, captured = _encode_answer(completion, choice, asked, sampling, target), None
        flags |= {Flag.ANSWER_ENCODED, Flag.NO_LOGPROBS}
    if isinstance(answer, LeftOut):
        return answer
    tokens = join(asked, answer, target)
    if isinstance(tokens, LeftOut):
        return tokens
    return Row(tokens, captured, completion.version, frozenset(flags))


def read_prompt(completion: Completion, target: Target) -> Sequence[int] | LeftOut:
    """Return the ids of what was asked: the snapshot's, or those that its messages encode to."""
    fields = prompt.fields(completion)
    if fields is not None and not _is_text(fields.get("messages")):
        return LeftOut.NOT_TEXT
    is_own = completion.base == target.base
    if is_own and completion.prompt_ids is not None:
        return completion.prompt_ids
    is_text = completion.dialect == "completions"
    if is_text and fields is not None and prompt.has_several_prompts(fields):
        return LeftOut.SEVERAL_PROMPTS
    if fields is None or prompt.is_redacted(completion.request):
        return LeftOut.REDACTED if fields is not None else LeftOut.NO_TOKENS
    if target.tokenizer is None:
        return LeftOut.NO_TOKENIZER
    counted = completion.prompt_tokens if is_own else None
    if is_own and completion.prompt_text is not None:
        shown = target.tokenizer.encode_shown(completion.prompt_text)
        fitting = [ids for ids in shown if counted in (None, len(ids))]
        return fitting[0] if fitting else LeftOut.PROMPT_DIFFERS
    text = prompt.only_prompt(fields)
    if is_text and not isinstance(text, str):
        return LeftOut.NO_TOKENS
    try:
        ids = (
            target.tokenizer.encode_text(text)
            if is_text and isinstance(text, str)
            else target.tokenizer.encode_chat(fields)
        )
    except ValueError:
        return LeftOut.PROMPT_DIFFERS
    if counted not in (None, len(ids)):
        return LeftOut.PROMPT_DIFFERS
    return ids


def encode_answer(
    completion: Completion, asked: Sequence[int], text: str, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Return the ids of `text` as the model would have said it after `asked`, to the turn's end."""
    fields = prompt.fields(completion) if completion.dialect == "chat" else None
    return (*tokenizer.encode_opening(asked, fields or {}), *tokenizer.encode_answer(text))


def join(asked: Sequence[int], answer: Sequence[int], target: Target) -> Tokens | LeftOut:
    """Return prompt and answer as one sequence.

    A sequence that is longer than that is left out whole: without its head the prompt is
    another one, and what the model would say to that was neither sampled nor rated.
    """
    if not len(asked) or not len(answer):
        return LeftOut.EMPTY
    if len(asked) + len(answer) > target.context:
        return LeftOut.TOO_LONG
    return Tokens.of(asked, answer)


def _captured(choice: Choice, num_tokens: int, flags: set[Flag]) -> Floats | None:
    if choice.logprobs is None or len(choice.logprobs) != num_tokens:
        flags.add(Flag.NO_LOGPROBS)
        return None
    if choice.logprobs_kind != "raw":
        flags.add(Flag.PROCESSED)
        return None
    return np.asarray(choice.logprobs, np.float32)


def _encode_tokens(
    completion: Completion, choice: Choice, sampling: Mapping[str, object], target: Target
) -> Sequence[int] | None:
    """Return the ids that the texts of the sampled tokens tell, whatever they say; None: none."""
    if choice.token_texts is None or target.tokenizer is None:
        return None
    texts = choice.token_texts
    if prompt.has_ended(choice, sampling) and texts[-1]:
        # What ended the turn shows in no text, and has no entry everywhere.
        texts = (*texts, "")
    ids = target.tokenizer.encode_tokens(texts)
    counted = completion.completion_tokens if len(completion.choices) == 1 else None
    return ids if ids is not None and _has_as_many(ids, counted) else None


def _encode_answer(
    completion: Completion,
    choice: Choice,
    asked: Sequence[int],
    sampling: Mapping[str, object],
    target: Target,
) -> Sequence[int] | LeftOut:
    """Return the ids of an answer's text, where that can only be these."""
    if prompt.is_redacted(choice.message):
        return LeftOut.REDACTED
    text = prompt.text(completion, choice)
    if text is None:
        return LeftOut.NO_TOKENS
    if target.tokenizer is None:
        return LeftOut.NO_TOKENIZER
    if not text:
        return LeftOut.EMPTY
    plain = target.tokenizer.encode_answer(text)
    if target.tokenizer.decode(plain[:-1]) != text:
        return LeftOut.TEXT_DIFFERS
    whole = encode_answer(completion, asked, text, target.tokenizer)
    counted = completion.completion_tokens if len(completion.choices) == 1 else None
    # Whether an engine took an opening out of the text, only its count can tell.
    fits = [one for one in {plain, whole} if _has_as_many(one, counted)]
    if len(fits) != 1:
        return LeftOut.TEXT_DIFFERS
    (ids,) = fits
    return ids if prompt.has_ended(choice, sampling) else ids[:-1]


def _has_as_many(ids: Sequence[int], counted: int | None) -> bool:
    """Return whether an engine can have counted so many; some don't count what ends the turn."""
    return counted is None or len(ids) - 1 <= counted <= len(ids)


def _sampling(completion: Completion) -> Mapping[str, object]:
    read = json.loads(completion.sampling)
    return read if isinstance(read, dict) else {}


def _sampling_flags(sampling: Mapping[str, object]) -> set[Flag]:
    """Return how the answer's distribution was not the model's own, as far as that is known."""

    def number(name: str, default: float) -> float:
        value = sampling.get(name)
        return float(value) if isinstance(value, int | float) else default

    flags = set()
    if number("temperature", 1) < _GREEDY_BELOW or number("top_k", 0) == 1:
        flags.add(Flag.GREEDY)
    elif number("top_p", 1) < 1 or number("top_k", 0) > 0 or number("min_p", 0) > 0:
        flags.add(Flag.TRUNCATED)
    shape = sampling.get("response_format")
    if (
        number("presence_penalty", 0)
        or number("frequency_penalty", 0)
        or number("repetition_penalty", 1) != 1
        or number("min_tokens", 0)
        or sampling.get("ignore_eos")
        or sampling.get("logit_bias")
        or sampling.get("structured_outputs")
        or (isinstance(shape, dict) and shape.get("type") != "text")
        or sampling.get("tool_choice") not in (None, "auto", "none")
    ):
        flags.add(Flag.CONSTRAINED)
    return flags


def _is_text(messages: object) -> bool:
    """Return whether the messages hold no image, sound or file."""
    return all(
        isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str))
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )
