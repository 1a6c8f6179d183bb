"""Takes what strop asked for in addition out of an answer again, changing no other byte.

Works on the JSON text, not on parsed values: key order, spacing, escapes and number formats stay
the engine's. Does not know which engine or dialect: a driver says what would not be there.
"""

import re
from typing import Protocol

import msgspec

from strop.proxy.wire import sse
from strop.proxy.wire.snapshot import Snapshot

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# Deep enough for the deepest member taken out: logprobs.content[].top_logprobs[].bytes[].
_MAX_DEPTH = 7


def _value() -> bytes:
    text = rb"[^\"\[\]{}]*+"
    inner = text + rb"(?:" + _STRING + text + rb")*+"
    for _ in range(_MAX_DEPTH):
        inner = text + rb"(?:(?:" + _STRING + rb"|[\[{]" + inner + rb"[\]}])" + text + rb")*+"
    return rb"(?:[\[{]" + inner + rb"[\]}]|" + _STRING + rb"|[^\"\[\]{},\s]++)"


_VALUE = re.compile(_value())
_NO_CHOICE = re.compile(rb'"choices": ?\[\]')
_FINISH = b'"finish_reason"'
_COMMA_BEHIND = re.compile(rb"\s*,\s*")
# Raw: reads on to the end of one value, and makes none of it.
_check = msgspec.json.Decoder(msgspec.Raw).decode


class Split(msgspec.Struct, frozen=True):
    """A body of one choice, in two.

    Attributes:
        rest: the body that the client asked for.
        snapshot: what was taken out.
    """

    rest: bytes
    snapshot: Snapshot


class Restorer(Protocol):
    """What makes of an engine's answer the one that the client asked for."""

    def apply(self, data: bytes, num_choices: int | None = None) -> bytes:
        """Return what a body, or whole events, would be had strop not asked for more."""
        ...

    def split(self, body: bytes) -> Split | None:
        """Return a body of one choice in two, or None where only `apply` can tell what to take."""
        ...


class Restore(msgspec.Struct, frozen=True):
    """What to take out of an answer.

    Attributes:
        nulls: the object members that would be null, had strop not asked.
        extra: marks of an event that exists only because strop asked: one that holds all of these
            bytes is dropped. Empty: no event is.
        absent: the object members that would not be there.
        drops_usage: whether the event that has the usage and no choice is one that strop asked for.
    """

    nulls: tuple[str, ...] = ()
    extra: tuple[bytes, ...] = ()
    absent: tuple[str, ...] = ()
    drops_usage: bool = False

    def apply(self, data: bytes, num_choices: int | None = None) -> bytes:
        """Return JSON text, or whole events, as the engine sends them to one who asks for less.

        Args:
            data: the engine's.
            num_choices: how many choices a body has at most, so that a member stands in it no more
                often. Engines write the members behind what a long answer is long by: this is how
                far has to be searched. None: there may be any number, as there are of events.
        """
        if self.extra and self.extra[0] in data:
            data = b"".join(
                e for e in sse.events(data) if not all(mark in e for mark in self.extra)
            )
        if self.drops_usage and b'"usage"' in data and _NO_CHOICE.search(data):
            data = b"".join(
                e for e in sse.events(data) if b'"usage"' not in e or not _NO_CHOICE.search(e)
            )
        colon = _colon(data)
        starts: list[int] = []
        for key in self.nulls:
            starts += _values_behind(data, b'"' + key.encode() + colon, num_choices)
        if starts:
            data = _nulled(data, sorted(starts))
        for key in self.absent:
            head = b'"' + key.encode() + colon
            if starts := _values_behind(data, head, num_choices):
                data = _without(data, sorted(starts), len(head))
        return data

    def split(self, body: bytes) -> Split | None:
        """Return a body of one choice as the client is to have it, and what that leaves out.

        What is taken out is read once, which also proves that it is all of a value. None where it
        isn't as engines write it.
        """
        if self.extra or self.absent or self.drops_usage:
            return None
        colon, finish, view = _colon(body), body.rfind(_FINISH), memoryview(body)
        spans, members = [], {}
        for key in self.nulls:
            head = b'"' + key.encode() + colon
            at = body.rfind(head)
            if at >= 0:
                start = at + len(head)
                end = _likely_end(body, start, finish)
                spans.append((start, end))
                members[key] = view[start:end]
        snapshot = Snapshot.read(members)
        if snapshot is None:
            return None
        kept: list[bytes | memoryview] = []
        done = 0
        for start, end in sorted(spans):
            if start < done:
                return None
            kept += (view[done:start], b"null")
            done = end
        kept.append(view[done:])
        return Split(b"".join(kept), snapshot)


def _colon(data: bytes) -> bytes:
    """Return what stands behind a name: an engine writes all its JSON in one style."""
    first = data.find(b'":')
    return b'": ' if data[first + 2 : first + 3] == b" " else b'":'


def _values_behind(data: bytes, head: bytes, most: int | None) -> list[int]:
    """Return where the values start that stand behind `head`, from the last one on.

    Every quote inside a JSON string is escaped, so a bare quoted name before a colon is a key.
    """
    starts: list[int] = []
    at = data.rfind(head)
    while at >= 0:
        starts.append(at + len(head))
        if len(starts) == most:
            break
        at = data.rfind(head, 0, at)
    return starts


def _nulled(data: bytes, starts: list[int]) -> bytes:
    """Return `data` with null in place of the value at each of `starts`, which are in order."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = []
    done = 0
    for start in starts:
        # What stands inside a value that was taken out is gone with it.
        if start >= done and (end := _end_of_value(data, view, start)):
            kept += (view[done:start], b"null")
            done = end
    kept.append(view[done:])
    return b"".join(kept)


def _without(data: bytes, starts: list[int], num_head: int) -> bytes:
    """Return `data` without the members whose values are at `starts`, in order, and one comma each.

    `num_head` is how many bytes the name and the colon before a value have.
    """
    view = memoryview(data)
    kept: list[bytes | memoryview] = []
    done = 0
    for start in starts:
        end = _end_of_value(data, view, start) if start >= done else 0
        if not end:
            continue
        begin = start - num_head
        before = begin
        while before > done and data[before - 1] in b" \t\r\n":
            before -= 1
        if before > done and data[before - 1] == ord(","):
            begin = before - 1
        elif comma := _COMMA_BEHIND.match(data, end):
            end = comma.end()
        kept.append(view[done:begin])
        done = end
    kept.append(view[done:])
    return b"".join(kept)


def _end_of_value(data: bytes, view: memoryview, start: int) -> int:
    """Return where the JSON value at `start` ends; 0 where none can be made out.

    To check a guess takes a fifteenth of the time of the regular expression.
    """
    if end := _likely_end(data, start, data.find(_FINISH, start)):
        try:
            _check(view[start:end])
        except msgspec.DecodeError:
            pass
        else:
            return end
    value = _VALUE.match(data, start)
    return value.end() if value else 0


def _likely_end(data: bytes, start: int, finish: int) -> int:
    """Return where the value at `start` ends if it is what engines write; 0 if it isn't.

    That is an array of numbers, or the object before the `finish_reason` at `finish`.
    """
    first = data[start : start + 1]
    if first == b"[":
        return data.find(b"]", start) + 1
    return data.rfind(b"}", start, finish) + 1 if first == b"{" else 0
