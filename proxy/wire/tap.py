"""Relays a stream's bytes, keeps a copy, and holds back the end.

Pure: bytes in, bytes out. Does not know when the copy is durable; whoever does calls `flush`.
"""

import re
from typing import Any

from strop.proxy.errors import BadRequest, UpstreamError
from strop.proxy.wire import body, sse
from strop.proxy.wire.answer import Answer
from strop.proxy.wire.restore import Restorer
from strop.proxy.wire.stream_copy import StreamCopy

# What may wait: one event that is not whole yet, and what comes after the answer's end.
MAX_WAITING_BYTES = 32 * 2**20

_ID = re.compile(rb'"id"\s*:\s*"([^"\\]*)"')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')


class Tap:
    """One stream's way through the proxy.

    Everything from the event that ends the last choice is held back, so that nobody has a whole
    answer before it is recorded. Some engines give fewer choices than were asked for: what ends one
    is held back until another goes on.

    Args:
        restore: what to take out for the client; None passes every byte on.
        num_choices: how many choices the client asked for.
        limit_bytes: how long a stream is copied; a longer one is relayed but not recorded.

    Attributes:
        copy: the stream as the engine sent it.
        has_failed: whether what it said last, before [DONE], was an error.
    """

    def __init__(self, restore: Restorer | None, num_choices: int, limit_bytes: int) -> None:
        self.copy = StreamCopy(limit_bytes)
        self.has_failed = False
        self._is_over = False
        self._may_be_over = False
        self._restore = restore
        self._splitter = sse.Splitter()
        self._answer_id: str | None = None
        self._num_choices = num_choices
        self._ended_choices: set[object] = set()
        self._held: list[bytes] = []
        self._num_held_bytes = 0

    @property
    def is_ended(self) -> bool:
        """Whether the engine has said that there is no more, as far as it has come."""
        return self._is_over or (self._may_be_over and not _breaks_off(b"".join(self.copy)))

    @property
    def answer_id(self) -> str | None:
        """The id that the engine gave the answer, once it has come; None where none was kept."""
        if self._answer_id is None and (found := _ID.search(self.copy.head)):
            self._answer_id = found[1].decode("utf-8", "replace")
        return self._answer_id

    def feed(self, data: bytes) -> bytes:
        """Take what the engine sent; return what the client may have of it now.

        Raises:
            UpstreamError: more than `MAX_WAITING_BYTES` wait for the end of an event or of the
                stream.
        """
        self.copy.add(data)
        whole = self._splitter.feed(data)
        if self._splitter.num_waiting_bytes + self._num_held_bytes > MAX_WAITING_BYTES:
            raise UpstreamError(
                f"expected an event, or the end of the stream, within {MAX_WAITING_BYTES} bytes"
                " from the engine, got more; see its log"
            )
        if not whole:
            return b""
        if self._is_over:
            self._hold(whole)
            return b""
        mark = 0 if self._may_be_over else _mark(whole)
        if mark is not None:
            whole = self._until_end(whole, mark)
        return self._restored(whole)

    def flush(self) -> bytes:
        """Return what was held back, to the last byte."""
        return self._restored(self._let_go()) + self._splitter.take_rest()

    def _until_end(self, whole: bytes, mark: int) -> bytes:
        """Return what was held back, and comes before what may be the end; hold back the rest.

        No event before the one at `mark` ends a choice.
        """
        at = sse.start_of_event(whole, mark)
        end: int | None = None
        for event in sse.events(whole[at:]):
            self._look_at(sse.data_of(event))
            if not self._may_be_over:
                end = None
            elif end is None:
                end = at
            if self._is_over:
                break
            at += len(event)
        if end is None:
            return self._let_go() + whole
        # Where it stood so before, all of it waits.
        passed = self._let_go() + whole[:end] if end else b""
        self._hold(whole[end:])
        return passed

    def _look_at(self, data: bytes) -> None:
        """Take from an event whether the answer may end with it."""
        if data == sse.DONE:
            self.has_failed = _ends_in_error(b"".join(self.copy))
            self._may_be_over = self._is_over = True
            return
        if not self._may_be_over and not _FINISH.search(data):
            return
        try:
            said = body.parse(data)
            choices: Any = said.get("choices") or ()
            reasons = {c.get("index", 0): c.get("finish_reason") for c in choices}
        except (BadRequest, TypeError, AttributeError):
            return
        self._ended_choices |= {index for index, reason in reasons.items() if reason}
        self._is_over = len(self._ended_choices) >= self._num_choices
        if reasons:
            self._may_be_over = self._is_over or reasons.keys() <= self._ended_choices
        elif said.get("error"):
            self._may_be_over = False

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._num_held_bytes += len(data)

    def _let_go(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        self._num_held_bytes = 0
        return held

    def _restored(self, data: bytes) -> bytes:
        return self._restore.apply(data) if self._restore and data else data


def _breaks_off(stream: bytes) -> bool:
    """Return whether a choice of `stream` has begun and no end."""
    entries = Answer().entries(sse.payloads(stream))
    ended = {choice.index: choice.finish_reason is not None for choice, _ in entries}
    return not all(ended.values())


def _ends_in_error(stream: bytes) -> bool:
    """Return whether the last event of `stream` that isn't [DONE] is an error."""
    said = [data for data in sse.payloads(stream) if data != sse.DONE]
    if not said or b'"error"' not in said[-1]:
        return False
    try:
        return bool(body.parse(said[-1]).get("error"))
    except BadRequest:
        return False


def _mark(events: bytes) -> int | None:
    """Return from where on one of `events` may end the last choice; None where none does."""
    found = _FINISH.search(events)
    end = found.start() if found else len(events)
    # From behind: `find` takes ten times as long in so much. It may be part of a text.
    if events.rfind(sse.DONE, 0, end) >= 0:
        return 0
    return end if found else None
