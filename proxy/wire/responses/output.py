"""The output items of a response: what a chat message says, one thing at a time.

Pure. Each item knows its own events; does not know in what order they are sent.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from strop.proxy.wire.responses.tools import Tool, custom_input

Event = tuple[str, dict[str, object]]
"""An event's type, and its members."""

COMPLETED: Final = "completed"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a text in an answer is.

    Attributes:
        prefix: how the ids of its items begin.
        text: the events that say it.
        part: the events around it.
        position: what they call its place in the item.
        part_type: the type of the part that holds it.
        member: what that part calls it.
    """

    prefix: str
    text: str
    part: str
    position: str
    part_type: str
    member: str = "text"


TEXT: Final = Kind(
    "msg", "response.output_text", "response.content_part", "content_index", "output_text"
)
REFUSAL: Final = Kind(
    "msg", "response.refusal", "response.content_part", "content_index", "refusal", "refusal"
)
# Thoughts are `content` by the book, and a summary is what the vendor's models tell of theirs. But
# Codex shows the summary alone, and LangChain, where it streams, sends nothing else back.
THOUGHT: Final = Kind(
    "rs",
    "response.reasoning_summary_text",
    "response.reasoning_summary_part",
    "summary_index",
    "summary_text",
)


@dataclass(slots=True)
class TextItem:
    """A message or the reasoning before it: one text."""

    kind: Kind
    id: str
    index: int
    pieces: list[str] = field(default_factory=list)
    logprobs: list[object] = field(default_factory=list)
    _place: dict[str, object] = field(init=False)
    _delta: str = field(init=False)

    def __post_init__(self) -> None:
        self._place = {"item_id": self.id, "output_index": self.index, self.kind.position: 0}
        self._delta = f"{self.kind.text}.delta"

    def opens(self) -> Iterator[Event]:
        """Yield the events before its first piece."""
        yield _added(self.index, self._around([], "in_progress"))
        yield f"{self.kind.part}.added", {**self._place, "part": self._part("", [])}

    def add(self, piece: str, logprobs: list[object] | None = None) -> Event:
        """Take the next piece and its logprobs; return the event that says it."""
        self.pieces.append(piece)
        event = {**self._place, "delta": piece}
        if self.kind is TEXT:
            event["logprobs"] = logprobs or []
            if logprobs:
                self.logprobs += logprobs
        return self._delta, event

    def closes(self, status: str) -> Iterator[Event]:
        """Yield the events behind its last piece."""
        text = "".join(self.pieces)
        said: dict[str, object] = {**self._place, self.kind.member: text}
        if self.kind is TEXT:
            said["logprobs"] = self.logprobs
        yield f"{self.kind.text}.done", said
        part = self._part(text, self.logprobs)
        yield f"{self.kind.part}.done", {**self._place, "part": part}
        yield _done(self.index, self._around([part], status))

    def whole(self, status: str) -> dict[str, object]:
        """Return the item as a whole."""
        return self._around([self._part("".join(self.pieces), self.logprobs)], status)

    def _part(self, text: str, logprobs: list[object]) -> dict[str, object]:
        part: dict[str, object] = {"type": self.kind.part_type, self.kind.member: text}
        return {**part, "annotations": [], "logprobs": logprobs} if self.kind is TEXT else part

    def _around(self, parts: list[dict[str, object]], status: str) -> dict[str, object]:
        if self.kind is THOUGHT:
            return {"id": self.id, "type": "reasoning", "summary": parts, "status": status}
        said = {"type": "message", "role": "assistant", "content": parts}
        return {"id": self.id, **said, "status": status}


@dataclass(slots=True)
class CallItem:
    """A call of a function, or of a custom tool."""

    tool: Tool
    id: str
    index: int
    call_id: str
    pieces: list[str] = field(default_factory=list)

    def opens(self) -> Iterator[Event]:
        """Yield the event before its first piece."""
        yield _added(self.index, self._said("", "in_progress"))

    def add(self, piece: str) -> Event | None:
        """Take the next piece; return the event that says it.

        None for a custom tool: its input stands in JSON, and is plain text only when it is whole.
        """
        self.pieces.append(piece)
        if self.tool.is_custom:
            return None
        return "response.function_call_arguments.delta", {**self._place(), "delta": piece}

    def closes(self, status: str) -> Iterator[Event]:
        """Yield the events behind its last piece."""
        item = self.whole(status)
        if self.tool.is_custom:
            text, stem = item["input"], "response.custom_tool_call_input"
            yield f"{stem}.delta", {**self._place(), "delta": text}
            yield f"{stem}.done", {**self._place(), "input": text}
        else:
            done = {**self._place(), "name": self.tool.name, "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", done
        yield _done(self.index, item)

    def whole(self, status: str) -> dict[str, object]:
        """Return the item as a whole."""
        return self._said("".join(self.pieces), status)

    def _place(self) -> dict[str, object]:
        return {"item_id": self.id, "output_index": self.index}

    def _said(self, arguments: str, status: str) -> dict[str, object]:
        item: dict[str, object] = {"id": self.id, "call_id": self.call_id, "name": self.tool.name}
        if self.tool.namespace is not None:
            item["namespace"] = self.tool.namespace
        if self.tool.is_custom:
            given = custom_input(arguments) if arguments else ""
            item |= {"type": "custom_tool_call", "input": given}
        else:
            item |= {"type": "function_call", "arguments": arguments}
        return {**item, "status": status}


Item = TextItem | CallItem


def logprobs_in(choice: Mapping[str, object]) -> list[object]:
    """Return the logprobs of a chat choice's text, as this dialect has them."""
    holder = choice.get("logprobs")
    content = holder.get("content") if isinstance(holder, dict) else None
    if not isinstance(content, list):
        return []
    return [_token(entry) for entry in content if isinstance(entry, dict)]


def _token(entry: Mapping[str, object]) -> dict[str, object]:
    others = entry.get("top_logprobs")
    tokens = others if isinstance(others, list) else []
    return {
        **_one(entry),
        "top_logprobs": [_one(other) for other in tokens if isinstance(other, dict)],
    }


def _one(entry: Mapping[str, object]) -> dict[str, object]:
    return {
        "token": entry.get("token"),
        "logprob": entry.get("logprob"),
        "bytes": entry.get("bytes") or [],
    }


def _added(index: int, item: dict[str, object]) -> Event:
    return "response.output_item.added", {"output_index": index, "item": item}


def _done(index: int, item: dict[str, object]) -> Event:
    return "response.output_item.done", {"output_index": index, "item": item}
