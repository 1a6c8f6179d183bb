"""Splits an answer's text into reasoning, content and tool calls as it comes.

Uses mlx-lm's state machine and tool parsers, chosen from the chat template. Knows no tokens.
"""

import functools
import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.generate import TextStateMachine

from strop.proxy.embedded.text import marker_ids, special_ids

# What mlx-lm's tool parsers raise on text that is not a call: a number without end is an
# OverflowError, brackets without end are a RecursionError or, from Python's parser, a MemoryError.
_PARSER_ERRORS = (
    ValueError, LookupError, TypeError, AttributeError, SyntaxError, ArithmeticError,
    RecursionError, MemoryError,
)  # fmt: skip

# Some parsers take the beginning of broken JSON for a name.
_NAME = re.compile(r"[\w.:/-]+")
# Templates of Mistral refuse any other length.
_ID_LENGTH = 9
_MOST_OPENING_TOKENS = 16  # of a template's opening of an answer, thought marker included


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; `arguments` is the JSON text of an object."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Delta:
    """What one token adds to an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it adds nothing."""
        return not (self.content or self.reasoning or self.tool_calls)


@dataclass(frozen=True, slots=True)
class Markup:
    """How one model marks thoughts and tool calls, and what of it one request wants split.

    Attributes:
        think: start and end marker, None to leave them in the text.
        tool: the same for tool calls.
        parse: mlx-lm's parser of the text between the tool markers.
        begins_thinking: whether the prompt ends inside a thought.
    """

    think: tuple[str, str] | None = None
    tool: tuple[str, str] | None = None
    parse: Callable[..., Any] | None = None
    begins_thinking: bool = False

    @staticmethod
    def of(tokenizer: Any, prompt: Sequence[int], *, has_tools: bool) -> "Markup":
        """Return the markup of mlx-lm's tokenizer for an answer to `prompt`."""
        think = None
        begins_thinking = False
        if tokenizer.has_thinking:
            think = (tokenizer.think_start, tokenizer.think_end)
            tail = _last_turn(prompt, _turn_marks(tokenizer))
            begins_thinking = tokenizer.rfind_think_start(tail) > tokenizer.rfind_think_end(tail)
        if not (has_tools and tokenizer.has_tool_calling):
            return Markup(think, begins_thinking=begins_thinking)
        tool = (tokenizer.tool_call_start, tokenizer.tool_call_end or "")
        return Markup(think, tool, tokenizer.tool_parser, begins_thinking)

    def machine(self) -> Any:
        """Return the state of a new state machine for one answer."""
        transitions: dict[str, list[tuple[str, str]]] = {"normal": []}
        if self.think:
            transitions["normal"].append((self.think[0], "reasoning"))
            transitions["reasoning"] = [(self.think[1], "normal")]
        if self.tool:
            transitions["normal"].append((self.tool[0], "tool"))
            transitions["tool"] = [(self.tool[1], "normal")] if self.tool[1] else []
        initial = "reasoning" if self.begins_thinking else "normal"
        return TextStateMachine(transitions).make_state(initial)


@functools.lru_cache(maxsize=1)
def _turn_marks(tokenizer: Any) -> frozenset[int]:
    return special_ids(tokenizer) - marker_ids(tokenizer) | frozenset(tokenizer.eos_token_ids)


def _last_turn(prompt: Sequence[int], marks: Collection[int]) -> list[int]:
    """Return what the template put after the last message, at most a few ids.

    A marker that a user wrote into a message must not count.
    """
    tail = list(prompt[-_MOST_OPENING_TOKENS:])
    starts = [at + 1 for at, token in enumerate(tail) if token in marks]
    return tail[starts[-1] :] if starts else tail


class Splitter:
    """Splits one answer.

    White space before and between tool calls is dropped: it belongs to the markup.

    Args:
        markup: what to split.
        tools: the tools of the request, for parsers that want their schemas.
        is_single: whether the client takes one call only; further ones are dropped.
    """

    def __init__(
        self, markup: Markup, tools: Sequence[Any] | None, *, is_single: bool = False
    ) -> None:
        self._markup = markup
        self._tools = tools
        self._is_single = is_single
        self._state = markup.machine()
        self._tool_text: str | None = None
        self._space = ""
        self._ids: set[str] = set()  # of the calls
        self._has_content = False

    @property
    def has_called(self) -> bool:
        """Whether a tool call was found."""
        return bool(self._ids)

    @property
    def is_in_call(self) -> bool:
        """Whether the model is writing what may become a tool call."""
        return bool(self._state[0] == "tool")

    def add(self, text: str, *, is_last: bool, is_cut: bool = False) -> Delta:
        """Return what `text` adds.

        Args:
            text: of one token, or of none.
            is_last: nothing follows, so what was held back is released too.
            is_cut: the model was not done; a call that it was still writing is none.
        """
        delta = Delta()
        self._state, segments = TextStateMachine.split(self._state, text)
        if is_last:
            self._state, held, name = TextStateMachine.flush(self._state)
            segments = [*segments, (name, held)]
        for name, part in segments:
            if name == "tool":
                self._tool_text = (self._tool_text or "") + part
                continue
            if self._tool_text is not None:
                self._end_call(delta, is_closed=True)
            if name == "reasoning":
                delta.reasoning += part
            else:
                self._add_content(delta, part)
        if is_last:
            if self._tool_text is not None:
                self._end_call(delta, is_closed=False, is_cut=is_cut)
            if not self.has_called:
                delta.content += self._space
        return delta

    def _add_content(self, delta: Delta, part: str) -> None:
        if self._markup.tool and (self.has_called or not self._has_content):
            part = self._space + part
            if not part.strip():
                self._space = part
                return
            self._space = ""
            self._has_content = True
        delta.content += part

    def _end_call(self, delta: Delta, *, is_closed: bool, is_cut: bool = False) -> None:
        text, self._tool_text = self._tool_text or "", None
        start, end = self._markup.tool or ("", "")
        # Where calls have no end marker, whether one is whole is for the parser to say.
        calls = [] if is_cut and end else self._parse(text)
        if not calls:
            # Not a call after all: the client gets the text as the model wrote it.
            self._add_content(delta, start + text + (end if is_closed else ""))
            return
        self._space = ""
        for name, arguments, model_id in calls:
            if self._is_single and self.has_called:
                return
            call_id = model_id if model_id and model_id not in self._ids else _new_id()
            delta.tool_calls.append(ToolCall(len(self._ids), call_id, name, arguments))
            self._ids.add(call_id)

    def _parse(self, text: str) -> list[tuple[str, str, str]]:
        """Return name, arguments and the model's own id, if it has one, of each call in `text`."""
        parse = self._markup.parse
        if parse is None:
            return []
        try:
            parsed = parse(text, self._tools)
            return [_read(call) for call in (parsed if isinstance(parsed, list) else [parsed])]
        except _PARSER_ERRORS:
            return []


def _read(call: Any) -> tuple[str, str, str]:
    name, arguments = call["name"], call.get("arguments", call.get("parameters"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a tool call needs a name, got {name!r}")
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict | None):
        raise TypeError(f"the arguments of a call must be an object, got {arguments!r}")
    # The templates of some models read the ids that those models gave.
    model_id = call.get("id")
    if not isinstance(model_id, str) or not _NAME.fullmatch(model_id):
        model_id = ""
    return name, _dump(arguments or {}), model_id


def _dump(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, as the model escaped it: only an escape can carry it.
        return json.dumps(value, allow_nan=False)
    return text


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_ID_LENGTH))
