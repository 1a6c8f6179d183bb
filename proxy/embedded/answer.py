"""One answer on its way from sampled ids to what a client reads.

Knows neither dialect: `render` puts the pieces into bodies and chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from strop.proxy.embedded.channels import Channels
from strop.proxy.embedded.jobs import Sampled, Scored
from strop.proxy.embedded.protocol import Request
from strop.proxy.embedded.text import Detokenizer, StopStrings, Vocabulary
from strop.proxy.embedded.text_parts import Markup, Parts, Splitter
from strop.proxy.embedded.tool_calls import Delta, ToolCall


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token brings.

    Attributes:
        token: the token with its logprobs.
        token_text: its text as logprobs show it; "" where none are asked for.
        before: the ids before it, for the text of its alternatives.
        delta: what it adds to the answer.
        finish_reason: set on the last piece.
        stop_reason: the stop string or stop token id that ended the answer.
    """

    token: Scored
    token_text: str
    before: tuple[int, ...]
    delta: Delta
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Answer:
    """One choice of one request.

    Args:
        request: what was asked for.
        prompt: the ids that it answers.
        vocabulary: of the model.
        markup: of the model's chat template; for a text completion an empty one.
    """

    request: Request
    prompt: Sequence[int]
    vocabulary: Vocabulary
    markup: Markup
    pieces: list[Piece] = field(default_factory=list)
    _stops: StopStrings = field(init=False)
    _reader: Channels | Parts = field(init=False)

    def __post_init__(self) -> None:
        request, vocabulary, markup = self.request, self.vocabulary, self.markup
        silent = (
            vocabulary.silent(keeps_markers=request.dialect == "chat")
            if request.skip_special_tokens
            else frozenset()
        )
        self._stops = StopStrings(request.stop, request.include_stop)
        is_single = request.wants_one_call
        if markup.marks:
            self._reader = Channels(
                markup.marks,
                markup.opening,
                lambda: Detokenizer(vocabulary, silent),
                self._stops,
                request.tools,
                is_single=is_single,
            )
        else:
            self._reader = Parts(
                Splitter(markup, request.tools, is_single=is_single),
                Detokenizer(vocabulary, silent, self.prompt[-4:]),
                self._stops,
            )

    @property
    def is_finished(self) -> bool:
        """Whether the last piece has come."""
        return bool(self.pieces) and self.pieces[-1].finish_reason is not None

    @property
    def is_stopped_early(self) -> bool:
        """Whether a stop string ended it, which the worker doesn't know."""
        return self._stops.found is not None

    def add(self, sampled: Sampled) -> Piece:
        """Return what the next token brings; not to be called on a finished answer."""
        token = sampled.token
        before = tuple(piece.token.id for piece in self.pieces[-4:])
        # As in vLLM, what stops an answer is part of its text only where that is asked for.
        is_shown = sampled.finish != "stop" or self.request.include_stop
        may_end = len(self.pieces) >= self.request.sampling.min_tokens
        delta = self._reader.add(token.id, is_shown=is_shown, may_end=may_end)
        finish: str | None = sampled.finish
        stop_reason: str | int | None = None
        if self._stops.found is not None:
            finish, stop_reason = "stop", self._stops.found
        elif finish == "stop" and token.id in self.request.stop_token_ids:
            stop_reason = token.id
        if finish:
            self._reader.end(delta, is_cut=finish == "length")
        if not self.request.include_reasoning:
            delta.reasoning = ""
        if finish == "stop" and self._reader.has_called:
            finish = "tool_calls"
        piece = Piece(
            token,
            "" if self.request.logprobs is None else self.vocabulary.token_text(token.id, before),
            before,
            delta,
            finish,
            stop_reason,
        )
        self.pieces.append(piece)
        return piece

    @property
    def content(self) -> str:
        """The text of the answer."""
        return "".join(piece.delta.content for piece in self.pieces)

    @property
    def reasoning(self) -> str:
        """The thoughts before and between."""
        return "".join(piece.delta.reasoning for piece in self.pieces)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls in the order they were made."""
        return [call for piece in self.pieces for call in piece.delta.tool_calls]

    @property
    def token_ids(self) -> list[int]:
        """The sampled ids, a stop token included."""
        return [piece.token.id for piece in self.pieces]


def render_tool_call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call as OpenAI writes it in a message."""
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
