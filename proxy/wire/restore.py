"""Takes what strop asked for in addition out of an answer again, changing no other byte.

Works on the JSON text, not on parsed values: key order, spacing, escapes and number formats stay
the engine's. Does not know which engine or dialect: a driver says what would not be there.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

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
        for head, pattern, null in _members(self.nulls):
            if head in data:
                data = pattern.sub(null, data)
        return data


@lru_cache
def _members(keys: tuple[str, ...]) -> tuple[tuple[bytes, re.Pattern[bytes], bytes], ...]:
    # Every quote inside a JSON string is escaped, so a bare quoted name before a colon is a key.
    # Engines write `"key":value` or `"key": value`; a literal for each is what `re` is fast at.
    heads = [b'"%b":%b' % (key.encode(), space) for key in keys for space in (b"", b" ")]
    return tuple((head, re.compile(re.escape(head) + _value()), head + b"null") for head in heads)
