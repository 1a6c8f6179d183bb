"""Splits an answer in harmony into reasoning, content and tool calls as it comes.

Reads ids, because marks are tokens, and what a model quotes of them is text. Knows no HTTP.

The channel analysis is reasoning; commentary for nobody, and final, are content; a message for a
function is a call. Marks and headers are never shown. What isn't as the format wants it is content:
a text without a header, and with the words of its header a call of nothing that was offered.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from strop.proxy.embedded.harmony import (
    ANALYSIS,
    ENDS,
    ROLE,
    Field,
    Mark,
    function_of,
    may_be_role,
    read_header,
)
from strop.proxy.embedded.text import Detokenizer, StopStrings
from strop.proxy.embedded.tool_calls import CALL_ERRORS, Calls, Delta, read_call

# The longest name of a function has 64.
_MOST_HEADER_CHARS = 256


class _Kind(Enum):
    """Where the next text belongs."""

    HEADER = auto()
    REASONING = auto()
    CONTENT = auto()
    CALL = auto()


class Channels:
    """Splits one answer.

    Messages of one kind are parted by a new line, as vLLM parts them.

    Args:
        marks: of the model.
        opening: what the prompt has begun of the first message.
        detokenizer: makes one for each stretch of text between marks.
        stops: end the answer; they look at what a client gets to read, one message at a time.
        tools: of the request; None to leave calls in the text.
        is_single: whether the client takes one call only; further ones are dropped.
    """

    def __init__(
        self,
        marks: Mapping[int, Mark],
        opening: Sequence[int],
        detokenizer: Callable[[], Detokenizer],
        stops: StopStrings,
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        is_single: bool,
    ) -> None:
        self._marks = marks
        self._new_detokenizer = detokenizer
        self._detokenizer = detokenizer()
        self._stops = stops
        self._tools = tools
        self._calls = Calls(is_single=is_single)
        self._kind = _Kind.HEADER
        self._fields: list[Field] = [(None, "")]
        self._words = ""  # of the header of a call, should it be none
        self._function = ""
        self._call_text = ""
        self._has_text: set[_Kind] = set()  # kinds that a message has given
        self._is_begun = False  # whether the message has given any
        self._may_end = False
        self._read_opening(opening)

    @property
    def has_called(self) -> bool:
        """Whether a tool call was found."""
        return bool(self._calls)

    def add(self, token: int, *, is_shown: bool, may_end: bool) -> Delta:
        """Return what a token adds.

        Args:
            token: of the answer.
            is_shown: whether its text counts; marks do in any case.
            may_end: whether a stop string may end the answer with it.
        """
        delta = Delta()
        self._may_end = may_end
        mark = self._marks.get(token)
        if mark is not None:
            # Half a character before a mark stays half of one.
            self._add_text(self._detokenizer.held, delta)
            self._detokenizer = self._new_detokenizer()
            self._turn(mark, delta)
        elif is_shown:
            self._add_text(self._detokenizer.add(token), delta)
        return delta

    def end(self, delta: Delta, *, is_cut: bool) -> None:
        """Add to `delta` what was held back, at the end of the answer.

        Args:
            delta: of the last token.
            is_cut: the model was not done: a header that it was writing is dropped, and a call
                is none.
        """
        if self._kind is not _Kind.HEADER:
            self._end_message(delta, is_cut=is_cut)
        elif not is_cut:
            self._end_header(delta)

    def _read_opening(self, opening: Sequence[int]) -> None:
        """Go on from where the prompt leaves off, without what it says."""
        stops, self._stops = self._stops, StopStrings(())
        for token in opening:
            self.add(token, is_shown=True, may_end=False)
        self._stops = stops

    def _turn(self, mark: Mark, delta: Delta) -> None:
        """Go on to the next part; a mark that has no place in a text is nothing in it."""
        is_header = self._kind is _Kind.HEADER
        if is_header and mark is Mark.MESSAGE:
            self._begin_message(delta)
        elif is_header and mark in (Mark.CHANNEL, Mark.CONSTRAIN):
            self._fields.append((mark, ""))
        elif mark in ENDS or mark in (Mark.START, Mark.CHANNEL):
            if is_header:
                self._end_header(delta)
            self._end_message(delta)
            if mark is Mark.CHANNEL:
                self._fields.append((mark, ""))

    def _add_text(self, text: str, delta: Delta) -> None:
        if self._kind is _Kind.HEADER:
            self._add_to_header(text, delta)
        else:
            self._read(text, delta)

    def _add_to_header(self, text: str, delta: Delta) -> None:
        mark, before = self._fields[-1]
        self._fields[-1] = mark, before + text
        if len(self._fields) == 1 and not may_be_role(before + text):
            # The role is the prompt's, or as good as the format's.
            said = (before + text).removeprefix(ROLE)
            self._begin(_Kind.CONTENT)
        elif sum(len(each) for _, each in self._fields) > _MOST_HEADER_CHARS:
            said = self._begin_by_header()
        else:
            return
        self._read(said, delta)

    def _end_header(self, delta: Delta) -> None:
        """End a header that no text follows; what it says besides is the text."""
        self._read(self._begin_by_header(), delta)

    def _begin_message(self, delta: Delta) -> None:
        """Begin the text that the header is of."""
        header = read_header(self._fields)
        function = function_of(header.recipient, self._tools)
        if function:
            self._function, self._words = function, header.words
            self._begin(_Kind.CALL)
            return
        if said := self._begin_by_header():
            self._read(said + " ", delta)

    def _begin_by_header(self) -> str:
        """Begin a text that is no call; return the words of its header that are part of it."""
        header = read_header(self._fields)
        is_thought = header.channel == ANALYSIS and not header.recipient
        self._begin(_Kind.REASONING if is_thought else _Kind.CONTENT)
        return header.words if header.recipient else header.stray

    def _begin(self, kind: _Kind) -> None:
        self._kind = kind
        self._is_begun = False
        self._fields = [(None, "")]

    def _end_message(self, delta: Delta, *, is_cut: bool = False) -> None:
        self._say(self._stops.flush(), delta)
        if self._kind is _Kind.CALL:
            text, self._call_text = self._call_text, ""
            if is_cut or not self._call(text, delta):
                self._begin(_Kind.CONTENT)
                self._say(f"{self._words} {text}", delta)
        self._begin(_Kind.HEADER)

    def _call(self, text: str, delta: Delta) -> bool:
        arguments = text.strip() or None
        try:
            name, arguments, _ = read_call({"name": self._function, "arguments": arguments})
        except CALL_ERRORS:
            return False
        delta.tool_calls += self._calls.add(name, arguments)
        return True

    def _read(self, text: str, delta: Delta) -> None:
        """Add what is certain of the message's text, up to a stop string."""
        self._say(self._stops.add(text, may_end=self._may_end), delta)

    def _say(self, text: str, delta: Delta) -> None:
        """Add text of the message to where it belongs."""
        if not text:
            return
        if self._kind is _Kind.CALL:
            self._call_text += text
            return
        if not self._is_begun and self._kind in self._has_text:
            text = "\n" + text
        self._is_begun = True
        self._has_text.add(self._kind)
        if self._kind is _Kind.REASONING:
            delta.reasoning += text
        else:
            delta.content += text
