"""What the dialects that strop says in chat completions have in common.

Pure. A request of such a dialect becomes the chat completion that asks for the same, so an engine
answers it with a snapshot, and it is recorded, rated and learned from like any other; the answer is
written back in the dialect. Knows no dialect.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from strop.proxy.wire.members import refuse


class Writer(Protocol):
    """Writes the answer to one request in the dialect that it came in."""

    def whole(self, answer: Mapping[str, object]) -> bytes:
        """Return the JSON body that says what the chat completion `answer` says."""
        ...

    def begin(self) -> bytes:
        """Return the events that open a stream, before anything of the answer is known."""
        ...

    def feed(self, chunk: Mapping[str, object]) -> bytes:
        """Return the events that say what one chunk of a chat stream says; b"" for none yet."""
        ...

    def end(self) -> bytes:
        """Return the events that close a stream whose end was seen."""
        ...

    def fail(self, error: Mapping[str, object]) -> bytes:
        """Return the events that end a stream in which the OpenAI error object `error` came."""
        ...


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier completion: the chat request as it was recorded, in JSON, and its answer.

    `is_whole`: the answer was not cut off before its end.
    """

    request: bytes
    answer: Mapping[str, object]
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Translated:
    """A request of another dialect, as a chat completion.

    Attributes:
        fields: the chat completion's members.
        left_out: where in the request stands what no chat completion can carry and what may be
            missing without changing what the model is asked, such as `tools[3]`.
        writer: makes what writes the answer, given the hexadecimal digits of its id.
        follows: the digits of the answer whose conversation goes on, where the client names one;
            of strop's own answer to a command that begins one, those that stand for nothing.
        last_answer: the digits of the last answer in the chat, where the client names it.
        says_more: whether the chat ends in a command, and more is said with it behind what it
            follows.
    """

    fields: dict[str, object]
    left_out: tuple[str, ...]
    writer: Callable[[str], Writer]
    follows: str | None = None
    last_answer: str | None = None
    says_more: bool = False


NOTHING: Final[Mapping[str, Earlier]] = MappingProxyType({})


class Translation(Protocol):
    """One dialect."""

    def refers_to(self, fields: Mapping[str, object]) -> Collection[str]:
        """Return the digits of the earlier answers that a request names instead of repeating them.

        Takes whatever JSON can hold.
        """
        ...

    def to_chat(
        self, fields: Mapping[str, object], earlier: Mapping[str, Earlier] = NOTHING
    ) -> Translated:
        """Return the chat completion that asks for what a request asks for.

        Args:
            fields: the request's members.
            earlier: what is known of the answers that it refers to, by their digits.

        Raises:
            BadRequest: it is malformed, or asks for what no chat completion can do.
        """
        ...

    def error(self, status: int, error: Mapping[str, object]) -> bytes:
        """Return the JSON body that says what the OpenAI error object `error` says."""
        ...


def stream_members(fields: Mapping[str, object]) -> dict[str, object]:
    """Return what asks a chat for a stream, with its usage, where `fields` ask for one.

    Raises:
        BadRequest: `stream` is no boolean.
    """
    wanted = fields.get("stream")
    if wanted is not None and not isinstance(wanted, bool):
        refuse("stream", "true or false", wanted)
    return {"stream": True, "stream_options": {"include_usage": True}} if wanted else {}


def choice_in(answer: Mapping[str, object]) -> Mapping[str, object]:
    """Return the first choice of an answer or a chunk: no more than one is asked for."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def count_in(holder: object, name: str) -> int:
    """Return the count that a usage object, or its details, call `name`; 0 where there is none."""
    count = holder.get(name) if isinstance(holder, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


def reasoning_in(holder: Mapping[str, object]) -> str:
    """Return the reasoning in a chat message or delta: engines disagree on its name."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(said := holder.get(name), str) and said:
            return said
    return ""
