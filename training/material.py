"""What `strop eval` measures versions on: held-out ratings, and prompts, recorded or from a file.

Reads the store and files, and encodes with the base's tokenizer. Computes nothing with a model.
"""

import json
from pathlib import Path
from typing import Any, Final

from strop.proxy.store import prompt as recorded
from strop.proxy.store.records import Completion
from strop.proxy.store.training_store import TrainingStore
from strop.training import rows
from strop.training.collection import MAX_PROMPT_TOKENS, held_out_turns
from strop.training.evaluate import Material, Prompt
from strop.training.figures import MAX_SAMPLE_TOKENS, MAX_SAMPLES
from strop.training.rows import LeftOut, Target, Tokenizer

NOTHING: Final = (
    "there is nothing to measure on: no rating of an answer of this base is held out yet (about"
    " 15 % of conversations are, and never learned from); rate more, or name prompts with --prompts"
    " FILE"
)


class BadPrompts(ValueError):
    """A prompt file that can't be read; the message names the line."""


async def gather(
    ratings: TrainingStore, target: Target, prompts: tuple[Prompt, ...] | None
) -> Material:
    """Return what there is: held-out turns, prompts, and how people rated each version.

    Args:
        ratings: what people said.
        target: the base, its context and its tokenizer.
        prompts: what is asked; None for the recorded prompts of what is held out.
    """
    kept = await held_out_turns(ratings, target)
    if prompts is None:
        prompts = await _recorded_prompts(ratings, target)
    return Material(
        prompts=prompts,
        held_out=tuple(one.as_held_out() for one in kept),
        live=await ratings.live_rates(base=target.base),
    )


async def _recorded_prompts(ratings: TrainingStore, target: Target) -> tuple[Prompt, ...]:
    """Return the distinct prompts of rated answers that are held out, newest first."""
    found: dict[tuple[int, ...], Prompt] = {}
    async for turn in ratings.held_out_turns(base=target.base):
        # The last one is what was rated.
        completion = turn.completions[-1].completion
        asked = rows.read_prompt(completion, target)
        if not isinstance(asked, LeftOut) and len(asked) <= MAX_PROMPT_TOKENS:
            ids = tuple(asked)
            found.setdefault(ids, Prompt(_messages(completion), ids))
        if len(found) == MAX_SAMPLES:
            break
    return tuple(found.values())


def _messages(completion: Completion) -> list[dict[str, Any]]:
    fields = recorded.fields(completion) or {}
    messages = fields.get("messages")
    if isinstance(messages, list):
        return messages
    text = recorded.only_prompt(fields) or str(fields.get("prompt", ""))
    return [{"role": "user", "content": text}]


def fitting(material: Material, longest: int, max_tokens: int) -> tuple[Material, str]:
    """Return what of `material` fits, and what doesn't, for people; empty where all does.

    Args:
        material: what versions are to be measured on.
        longest: the most tokens of a sequence.
        max_tokens: of a fresh answer.

    Raises:
        ValueError: nothing fits.
    """
    fits = material.within(longest, min(max_tokens, MAX_SAMPLE_TOKENS))
    counts = (
        (len(material.held_out), len(fits.held_out), "held-out ratings"),
        (len(material.prompts), len(fits.prompts), "prompts"),
    )
    parts = [f"{num - left} of {num} {what}" for num, left, what in counts if left < num]
    left_out = (
        f"left out: {', '.join(parts)}, longer than the {longest:,} tokens that the context and"
        " the memory that is free have room for, answer included"
        if parts
        else ""
    )
    if not fits.prompts and not fits.held_out:
        raise ValueError(f"nothing can be measured here; {left_out}")
    return fits, left_out


def read_prompts(path: Path, tokenizer: Tokenizer) -> tuple[Prompt, ...]:
    """Return the prompts of a file of JSON lines.

    A line is an object with `messages`, as a chat request has them, or a string, which is a user's
    message.

    Raises:
        BadPrompts: there is none, or a line is neither.
    """
    try:
        # Not splitlines: JSON has U+2028 and its like in strings as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadPrompts(f"expected a file of JSON lines, can't read {path}: {error}") from error
    found = [
        _prompt(line, f"{path}, line {number}", tokenizer)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise BadPrompts(f"expected at least one prompt in {path}, got none")
    return tuple(found)


def _prompt(line: str, where: str, tokenizer: Tokenizer) -> Prompt:
    try:
        read = json.loads(line)
    except ValueError as error:
        raise BadPrompts(f"{where}: expected JSON, {error}") from error
    fields = {"messages": [{"role": "user", "content": read}]} if isinstance(read, str) else read
    messages = fields.get("messages") if isinstance(fields, dict) else None
    if not isinstance(messages, list) or not messages:
        raise BadPrompts(
            f'{where}: expected a string, or an object with "messages"; got {line[:80]}'
        )
    try:
        return Prompt(messages, tokenizer.encode_chat(fields))
    except ValueError as error:
        raise BadPrompts(f"{where}: {error}") from error
