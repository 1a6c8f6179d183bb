"""Splits an answer's text into reasoning, content and tool calls as it comes.

Uses mlx-lm's state machine and tool parsers, chosen from the chat template. Knows no tokens.
"""

import json
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.generate import TextStateMachine

# What mlx-lm's tool parsers raise on text that is not a call.
_PARSER_ERRORS = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, SyntaxError,
)  # fmt: skip

_MOST_OPENING_TOKENS = 16  # of a template's opening of an answer, thought marker included


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; `arguments` is JSON text."""

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
            tail = _last_turn(prompt, tokenizer.eos_token_ids)
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


def _last_turn(prompt: Sequence[int], ends: Collection[int]) -> list[int]:
    """Return what the template put after the last message, at most a few ids.

    A marker that a user wrote into a message must not count.
    """
    tail = list(prompt[-_MOST_OPENING_TOKENS:])
    starts = [at + 1 for at, token in enumerate(tail) if token in ends]
    return tail[starts[-1] :] if starts else tail


class Splitter:
    """Splits one answer.

    White space before and between tool calls is dropped: it belongs to the markup.

    Args:
        markup: what to split.
        tools: the tools of the request, for parsers that want their schemas.
    """

    def __init__(self, markup: Markup, tools: Sequence[Any] | None) -> None:
        self._markup = markup
        self._tools = tools
        self._state = markup.machine()
        self._tool_text: str | None = None
        self._space = ""
        self._num_calls = 0
        self._has_content = False

    @property
    def has_called(self) -> bool:
        """Whether a tool call was found."""
        return self._num_calls > 0

    def add(self, text: str, *, is_last: bool) -> Delta:
        """Return what `text` adds; the last one also releases what was held back."""
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
                self._end_call(delta, is_closed=False)
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

    def _end_call(self, delta: Delta, *, is_closed: bool) -> None:
        text, self._tool_text = self._tool_text or "", None
        calls = self._parse(text)
        if calls:
            self._space = ""
            self._num_calls += len(calls)
            delta.tool_calls += calls
        else:
            # Not a call after all: the client gets the text as the model wrote it.
            start, end = self._markup.tool or ("", "")
            self._add_content(delta, start + text + (end if is_closed else ""))

    def _parse(self, text: str) -> list[ToolCall]:
        parse = self._markup.parse
        if parse is None:
            return []
        try:
            parsed = parse(text, self._tools)
            found = parsed if isinstance(parsed, list) else [parsed]
            return [self._call(index, call) for index, call in enumerate(found)]
        except _PARSER_ERRORS:
            return []

    def _call(self, offset: int, call: Any) -> ToolCall:
        name, arguments = call["name"], call.get("arguments", {})
        if not isinstance(name, str) or not name:
            raise ValueError("a tool call needs a name")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return ToolCall(
            self._num_calls + offset, f"chatcmpl-tool-{uuid.uuid4().hex[:16]}", name, arguments
        )
