"""Takes what strop asked for in addition out of an answer again, changing no other byte.

Works on the JSON text, not on parsed values: key order, spacing, escapes and number formats stay the
engine's. Does not know which engine or dialect: a driver says what would not be there.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from strop.proxy.wire import sse

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
# Deep enough for the deepest member taken out: logprobs.content[].top_logprobs[].bytes[].
_MAX_DEPTH = 7


def _value(depth: int) -> bytes:
    inner = rb"(?:[^\"\[\]{}]++|" + _STRING + rb")*+"
    for _ in range(depth):
        inner = rb"(?:[^\"\[\]{}]++|" + _STRING + rb"|[\[{]" + inner + rb"[\]}])*+"
    scalar = rb"[^\"\[\]{},\s]++"
    return rb"(?:" + scalar + rb"|" + _STRING + rb"|[\[{]" + inner + rb"[\]}])"


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
        return _members(self.nulls).sub(rb"\1null", data)


@lru_cache
def _members(keys: tuple[str, ...]) -> re.Pattern[bytes]:
    # Every quote inside a JSON string is escaped, so a bare quoted name before a colon is a key.
    names = b"|".join(re.escape(key.encode()) for key in keys)
    return re.compile(rb'("(?<!\\")(?:' + names + rb')"\s*+:\s*+)' + _value(_MAX_DEPTH))
