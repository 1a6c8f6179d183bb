"""OpenAI's harmony format, in which gpt-oss writes: its marks, headers, and what ends an answer.

Knows no text of answers (see `channels`) and no model's name: it is told by the tokenizer and the
chat template. Source: openai/harmony, docs/format.md.

An answer is one or more messages, each `<|start|>`, a header, `<|message|>`, a text, and `<|end|>`,
or `<|return|>` and `<|call|>`, which end the answer too. The header names a role, a channel and,
behind `to=` in either of them, a recipient; the prompt ends within the first one's.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from strop.proxy.embedded.forms import SPACES
from strop.proxy.embedded.text import special_ids


class Mark(StrEnum):
    """The special tokens of the format."""

    START = "<|start|>"
    CHANNEL = "<|channel|>"
    CONSTRAIN = "<|constrain|>"
    MESSAGE = "<|message|>"
    END = "<|end|>"
    CALL = "<|call|>"
    RETURN = "<|return|>"


ENDS = frozenset({Mark.END, Mark.CALL, Mark.RETURN})
"""What ends a message."""

ROLE = "assistant"
ANALYSIS = "analysis"
_CHANNELS = frozenset({ANALYSIS, "commentary", "final"})
_TO = "to="
_FUNCTIONS = "functions."
# Of a message that is no call: gpt-oss writes this where it means nobody.
_NOBODY = frozenset({"", ROLE, "user", "all"})
_TYPES = frozenset({"json", "code", "text"})

Field = tuple[Mark | None, str]
"""Part of a header: the mark that it stands behind, None for the role's, and its text."""


@functools.lru_cache(maxsize=1)
def marks_of(tokenizer: Any) -> Mapping[int, Mark]:
    """Return the marks by their ids; none where the model doesn't write in this format."""
    special = special_ids(tokenizer)
    names = {str(each): token for token, each in tokenizer.added_tokens_decoder.items()}
    marks = {names[mark]: mark for mark in Mark if names.get(mark) in special}
    # Models that share the tokenizer need not share the format.
    is_spoken = Mark.CHANNEL in str(tokenizer.chat_template)
    is_whole = {*Mark} - {Mark.CONSTRAIN} <= {*marks.values()}
    return marks if is_spoken and is_whole else {}


def end_ids(tokenizer: Any) -> set[int]:
    """Return the ids that end an answer, whatever the model's files have left out or added."""
    ids = set(tokenizer.eos_token_ids)
    for token, mark in marks_of(tokenizer).items():
        if mark in (Mark.CALL, Mark.RETURN):
            ids.add(token)
        else:
            ids.discard(token)
    return ids


def opening(prompt: Sequence[int], marks: Mapping[int, Mark]) -> tuple[int, ...]:
    """Return what `prompt` has begun of the message that the answer goes on with.

    From behind its `<|start|>`; nothing where the last message has ended.
    """
    for at in range(len(prompt) - 1, -1, -1):
        mark = marks.get(prompt[at])
        if mark is Mark.START:
            return tuple(prompt[at + 1 :])
        if mark in ENDS:
            break
    return ()


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says.

    Attributes:
        channel: "" where it names none that is known.
        recipient: "" for nobody in particular.
        stray: the words that have no place in a header.
        words: all but the role, for a message that can't be told as what it is.
    """

    channel: str
    recipient: str
    stray: str
    words: str


def read_header(fields: Iterable[Field]) -> Header:
    """Return what a header says; takes any text."""
    channel = recipient = ""
    stray: list[str] = []
    words: list[str] = []
    for mark, text in fields:
        parts = text.split()
        if mark is None and parts[:1] == [ROLE]:
            del parts[0]
        words += parts
        for at, part in enumerate(parts):
            is_type = part in _TYPES if mark is Mark.CHANNEL else mark is Mark.CONSTRAIN and not at
            if part.startswith((_TO, _FUNCTIONS)):
                recipient = part.removeprefix(_TO)
            elif mark is Mark.CHANNEL and part in _CHANNELS:
                # Of two, which gpt-oss writes at times, the second counts.
                channel = part
            elif not is_type:
                stray.append(part)
    if recipient in _NOBODY:
        recipient = ""
    return Header(channel, recipient, " ".join(stray), " ".join(words))


def may_be_role(text: str) -> bool:
    """Whether a header may begin with `text`: the role, and whom the message is for."""
    text = text.lstrip()
    rest = text.removeprefix(ROLE).lstrip()
    return ROLE.startswith(text) or _TO.startswith(rest) or rest.startswith(_TO)


def function_of(recipient: str, tools: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the name of the function that a message for `recipient` calls, "" for none.

    One that the request doesn't offer is called too, as with other formats; what else gpt-oss was
    taught to call, such as `browser.search`, only where it is offered.
    """
    if not tools or not recipient:
        return ""
    name = recipient.removeprefix(_FUNCTIONS)
    is_offered = any(tool["function"]["name"] == name for tool in tools)
    return name if is_offered or recipient.startswith(_FUNCTIONS) else ""


def frame(tokenizer: Any, prompt: Sequence[int], functions: Sequence[str], form: str = "") -> str:
    """Return the grammar, in Lark's notation, of an answer that thinks and then does as it must.

    Args:
        tokenizer: of a model that writes in this format.
        prompt: what the answer goes on from.
        functions: what it may call.
        form: the rule of the final message's text; "" where the answer has to be a call.
    """
    marks = marks_of(tokenizer)
    ends = []
    if form:
        ends.append(f'<|channel|> "final" type? <|message|> {form}')
    if functions:
        ends.append("<|channel|> CALLING to type? <|message|> object")
        ends.append("to <|channel|> CALLING type? <|message|> object")
    rules = {
        "start": _first(tokenizer, opening(prompt, marks), form),
        "answer": f"thought* ({' | '.join(ends)})",
        "thought": f'<|channel|> "{ANALYSIS}" <|message|> FREE next',
        "next": f'<|end|> <|start|> "{ROLE}"',
        "type": '" json"',
        "FREE": r"/(.|\n)*/",
    }
    if Mark.CONSTRAIN in marks.values():
        rules["type"] += ' | " "? <|constrain|> "json"'
    if functions:
        rules["to"] = f'" {_TO}{_FUNCTIONS}" ({" | ".join(map(json.dumps, functions))})'
        schema = {"type": "object", "x-guidance": {"whitespace_pattern": SPACES}}
        rules["object"] = f"%json {json.dumps(schema)}"
        rules["CALLING"] = f"/commentary|{ANALYSIS}/"
    return "\n".join(f"{name}: {rule}" for name, rule in rules.items())


def _first(tokenizer: Any, begun: Sequence[int], form: str) -> str:
    """Return how an answer goes on with the message that the prompt has begun."""
    if not begun:
        return f'<|start|> "{ROLE}" answer'
    marks = marks_of(tokenizer)
    at = next((at for at, token in enumerate(begun) if marks.get(token) is Mark.MESSAGE), None)
    if at is None:
        return "answer"
    header = read_header(fields_of(begun[:at], marks, tokenizer.decode))
    if header.recipient:
        return "FREE"
    return form if form and header.channel != ANALYSIS else "FREE next answer"


def fields_of(
    tokens: Iterable[int], marks: Mapping[int, Mark], decode: Callable[[list[int]], str]
) -> list[Field]:
    """Return the fields of a header by its ids."""
    ids: list[tuple[Mark | None, list[int]]] = [(None, [])]
    for token in tokens:
        mark = marks.get(token)
        if mark is None:
            ids[-1][1].append(token)
        else:
            ids.append((mark, []))
    return [(mark, decode(each)) for mark, each in ids]
