"""Takes what strop asked for in addition out of an answer again, changing no other byte.

Works on the JSON text, not on parsed values: key order, spacing, escapes and number formats stay
the engine's. Does not know which engine or dialect: a driver says what would not be there.
"""

import re
from dataclasses import dataclass

from strop.proxy.wire import sse

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


@dataclass(frozen=True, slots=True)
class Restore:
    """What to take out of an answer.

    Attributes:
        nulls: the object members that would be null, had strop not asked.
        extra: marks of an event that exists only because strop asked: one that holds all of these
            bytes is dropped. Empty: no event is.
    """

    nulls: tuple[str, ...]
    extra: tuple[bytes, ...] = ()

    def apply(self, data: bytes) -> bytes:
        """Return JSON text, or whole events, with nulls for the members and no extra events."""
        if self.extra and self.extra[0] in data:
            data = b"".join(
                e for e in sse.events(data) if not all(mark in e for mark in self.extra)
            )
        # An engine writes all its JSON in one style: `"key":value`, or `"key": value`.
        first = data.find(b'":')
        colon = b'": ' if data[first + 2 : first + 3] == b" " else b'":'
        for key in self.nulls:
            data = _nulled(data, b'"' + key.encode() + colon)
        return data


def _nulled(data: bytes, head: bytes) -> bytes:
    """Return `data` with null in place of each value that stands behind `head`.

    Every quote inside a JSON string is escaped, so a bare quoted name before a colon is a key.
    """
    at = data.find(head)
    if at < 0:
        return data
    kept, start = [], 0
    while at >= 0:
        at += len(head)
        if value := _VALUE.match(data, at):
            kept += [data[start:at], b"null"]
            start = at = value.end()
        at = data.find(head, at)
    kept.append(data[start:])
    return b"".join(kept)
