"""Splits an answer's text into reasoning, content and tool calls as it comes.

Uses mlx-lm's state machine and tool parsers, chosen from the chat template. Knows no HTTP, and
not the formats whose marks are read as tokens: see `channels`.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.generate import TextStateMachine

from strop.proxy.embedded import harmony
from strop.proxy.embedded.text import Detokenizer, StopStrings, marker_ids, special_ids
from strop.proxy.embedded.tool_calls import CALL_ERRORS, Calls, Delta, read_call

_MOST_OPENING_TOKENS = 16  # of a template's opening of an answer, thought marker included


@dataclass(frozen=True, slots=True)
class Markup:
    """How one model marks thoughts and tool calls, and what of it one request wants split.

    Attributes:
        think: start and end marker, None to leave them in the text.
        tool: the same for tool calls.
        parse: mlx-lm's parser of the text between the tool markers.
        begins_thinking: whether the prompt ends inside a thought.
        marks: the marks of a model that answers in harmony; what is above is not used then.
        opening: what of the first message in harmony the prompt has begun.
    """

    think: tuple[str, str] | None = None
    tool: tuple[str, str] | None = None
    parse: Callable[..., Any] | None = None
    begins_thinking: bool = False
    marks: Mapping[int, harmony.Mark] = field(default_factory=dict)
    opening: tuple[int, ...] = ()

    @staticmethod
    def of(tokenizer: Any, prompt: Sequence[int], *, has_tools: bool) -> "Markup":
        """Return the markup of mlx-lm's tokenizer for an answer to `prompt`."""
        if marks := harmony.marks_of(tokenizer):
            return Markup(marks=marks, opening=harmony.opening(prompt, marks))
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
        self._state = markup.machine()
        self._tool_text: str | None = None
        self._space = ""
        self._calls = Calls(is_single=is_single)
        self._has_content = False

    @property
    def has_called(self) -> bool:
        """Whether a tool call was found."""
        return bool(self._calls)

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
            delta.tool_calls += self._calls.add(name, arguments, model_id)

    def _parse(self, text: str) -> list[tuple[str, str, str]]:
        """Return name, arguments and the model's own id, if it has one, of each call in `text`."""
        parse = self._markup.parse
        if parse is None:
            return []
        try:
            parsed = parse(text, self._tools)
            return [read_call(call) for call in (parsed if isinstance(parsed, list) else [parsed])]
        except CALL_ERRORS:
            return []


class Parts:
    """Splits one answer of a model that marks thoughts and calls in its text.

    Args:
        splitter: splits the text.
        detokenizer: makes it.
        stops: end it; they look at the markers too.
    """

    def __init__(self, splitter: Splitter, detokenizer: Detokenizer, stops: StopStrings) -> None:
        self._splitter = splitter
        self._detokenizer = detokenizer
        self._stops = stops

    @property
    def has_called(self) -> bool:
        """Whether a tool call was found."""
        return self._splitter.has_called

    def add(self, token: int, *, is_shown: bool, may_end: bool) -> Delta:
        """Return what a token adds, as `Channels.add` does."""
        text = ""
        if is_shown:
            # Some models write special tokens between the parts of a call.
            in_call = self._splitter.is_in_call
            text = self._detokenizer.add(token, keeps_special=in_call)
        return self._splitter.add(self._stops.add(text, may_end=may_end), is_last=False)

    def end(self, delta: Delta, *, is_cut: bool) -> None:
        """Add to `delta` what was held back, as `Channels.end` does."""
        rest = self._splitter.add(self._stops.flush(), is_last=True, is_cut=is_cut)
        delta.content += rest.content
        delta.reasoning += rest.reasoning
        delta.tool_calls += rest.tool_calls
