"""Writes an answer in the Responses dialect: JSON, or a stream's events.

Pure. Takes a chat message or its deltas from any engine; does not know what was asked, but for
what `Envelope` says of it.
"""

import time
from collections.abc import Iterable, Mapping

from strop.proxy.message import texts_of
from strop.proxy.wire import body, sse
from strop.proxy.wire.call_places import CallPlaces
from strop.proxy.wire.responses.object import Envelope, closed, failed
from strop.proxy.wire.responses.output import (
    COMPLETED,
    REFUSAL,
    TEXT,
    THOUGHT,
    CallItem,
    Event,
    Item,
    Kind,
    TextItem,
    logprobs_in,
)
from strop.proxy.wire.translation import choice_in, reasoning_in


class ResponseWriter:
    """Writes the answer to one request.

    Args:
        envelope: what the response says besides its items.
        digits: of the response's id; its items' ids have them too.
    """

    def __init__(self, envelope: Envelope, digits: str) -> None:
        self._envelope = envelope
        self._digits = digits
        self._opened = envelope.opened(f"resp_{digits}", int(time.time()))
        self._items: list[Item] = []
        # The one text that goes on; calls go on until the end, as engines may mix their pieces.
        self._text: TextItem | None = None
        self._calls: dict[int, CallItem] = {}
        self._places = CallPlaces()
        self._sequence = 0
        self._finish_reason: object = None
        self._usage: object = None
        self._model: object = None

    def whole(self, answer: Mapping[str, object]) -> bytes:
        """Return the JSON body that says what the chat completion `answer` says."""
        created = answer.get("created")
        if isinstance(created, int):
            self._opened["created_at"] = created
        self._take(answer, "message")
        self._say_something()
        return body.dumps(self._closed())

    def begin(self) -> bytes:
        """Return the events that open a stream, before anything of the answer is known."""
        said: dict[str, object] = {"response": self._opened}
        return self._written([("response.created", said), ("response.in_progress", said)])

    def feed(self, chunk: Mapping[str, object]) -> bytes:
        """Return the events that say what one chunk of a chat stream says; b"" for none yet."""
        return self._written(self._take(chunk, "delta"))

    def end(self) -> bytes:
        """Return the events that close a stream whose end was seen."""
        events = self._say_something()
        if self._text is not None:
            events += self._close_text()
        response = self._closed()
        for call in self._calls.values():
            events += call.closes(self._status_of(call))
        events.append((f"response.{response['status']}", {"response": response}))
        return self._written(events)

    def fail(self, error: Mapping[str, object]) -> bytes:
        """Return the events that end a stream in which the OpenAI error object `error` came."""
        said = [item.whole("incomplete") for item in self._items]
        return self._written([("response.failed", {"response": failed(self._opened, said, error)})])

    def _take(self, part: Mapping[str, object], holder: str) -> list[Event]:
        """Take what a chunk or a body says, in the choice's member `holder`; return its events."""
        events: list[Event] = []
        if part.get("usage"):
            self._usage = part["usage"]
        if self._model is None:
            self._model = part.get("model")
        choice = choice_in(part)
        said = choice.get(holder)
        if isinstance(said, dict):
            self._take_message(said, choice, events)
            for place, part in self._places.read(said, are_pieces=holder == "delta"):
                self._add_call(part, place, events)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        return events

    def _take_message(
        self, said: Mapping[str, object], choice: Mapping[str, object], events: list[Event]
    ) -> None:
        if thought := reasoning_in(said):
            self._add_text(THOUGHT, thought, events)
        content = said.get("content")
        if text := content if isinstance(content, str) else "".join(texts_of(said)):
            logprobs = logprobs_in(choice) if self._envelope.has_logprobs else None
            self._add_text(TEXT, text, events, logprobs)
        refusal = said.get("refusal")
        if refusal and isinstance(refusal, str):
            self._add_text(REFUSAL, refusal, events)

    def _add_text(
        self, kind: Kind, piece: str, events: list[Event], logprobs: list[object] | None = None
    ) -> None:
        item = self._text
        if item is None or item.kind is not kind:
            item = TextItem(kind, self._new_id(kind.prefix), len(self._items))
            # First: the one before it is not where the answer was cut short.
            self._items.append(item)
            if self._text is not None:
                events += self._close_text()
            self._text = item
            events += item.opens()
        events.append(item.add(piece, logprobs))

    def _close_text(self) -> list[Event]:
        item, self._text = self._text, None
        assert item is not None
        return list(item.closes(self._status_of(item)))

    def _add_call(self, part: Mapping[str, object], place: int, events: list[Event]) -> None:
        function = part.get("function")
        told = function if isinstance(function, dict) else {}
        item = self._calls.get(place)
        if item is None:
            if self._text is not None:
                events += self._close_text()
            name, identity = told.get("name"), part.get("id")
            tool = self._envelope.tool(name if isinstance(name, str) else "")
            own = self._new_id("ctc" if tool.is_custom else "fc")
            call_id = identity if isinstance(identity, str) and identity else f"call_{own}"
            item = self._calls[place] = CallItem(tool, own, len(self._items), call_id)
            self._items.append(item)
            events += item.opens()
        arguments = told.get("arguments")
        if isinstance(arguments, dict | list):
            arguments = body.dumps(arguments).decode()
        if isinstance(arguments, str) and arguments and (event := item.add(arguments)):
            events.append(event)

    def _say_something(self) -> list[Event]:
        """Say an empty text where there is no text and no call: clients wait for either."""
        events: list[Event] = []
        if all(isinstance(item, TextItem) and item.kind is THOUGHT for item in self._items):
            self._add_text(TEXT, "", events)
        return events

    def _closed(self) -> dict[str, object]:
        return closed(
            self._opened,
            [item.whole(self._status_of(item)) for item in self._items],
            finish_reason=self._finish_reason,
            usage=self._usage,
            model=self._model,
        )

    def _status_of(self, item: Item) -> str:
        """Return `incomplete` for the item in which an answer was cut short."""
        is_cut = self._finish_reason in ("length", "content_filter") and item is self._items[-1]
        return "incomplete" if is_cut else COMPLETED

    def _new_id(self, prefix: str) -> str:
        """Return an id that is no other item's: clients take two with the same one for one."""
        before = sum(item.id.startswith(f"{prefix}_") for item in self._items)
        return f"{prefix}_{self._digits}_{before}" if before else f"{prefix}_{self._digits}"

    def _written(self, events: Iterable[Event]) -> bytes:
        written = []
        for name, members in events:
            event = {"type": name, "sequence_number": self._sequence, **members}
            self._sequence += 1
            written.append(sse.event(body.dumps(event), name))
        return b"".join(written)
