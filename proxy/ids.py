"""Ids that sort by the time they were made: a prefix and a UUIDv7 (RFC 9562, section 5.7).

Knows nothing of what they name.
"""

import os
import re
import time
from random import Random

# An id needs no secrecy, only to be nobody else's; one system call an id would cost more than it.
_random = Random(os.urandom(32))  # noqa: S311
_IN_ANOTHER_DIALECT = re.compile(
    r"(?:msg|resp)_([0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15})(?:_(?:own|end)[0-9a-f]{16})?"
)


def new_id(prefix: str, now_ms: int | None = None) -> str:
    """Return `<prefix>_` and 32 hexadecimal digits: 48 bits of time, then 74 of chance."""
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    chance = _random.getrandbits(74)
    high, low = chance >> 62, chance & 0x3FFF_FFFF_FFFF_FFFF
    return f"{prefix}_{now_ms:012x}7{high:03x}{0x8000_0000_0000_0000 | low:016x}"


def digits_of(identity: str) -> str:
    """Return the digits of an id: an answer in another dialect goes by them, too."""
    return identity.partition("_")[2]


def own_digits(follows: str | None, *, is_link: bool = True) -> str:
    """Return digits for what is answered in the model's place, behind those that it follows.

    Clients take two answers with the same id for one, so these are nobody else's. They say whether
    a conversation can go on from there.
    """
    digits = digits_of(new_id("own"))
    return f"{follows}_{'own' if is_link else 'end'}{digits[16:]}" if follows else digits


def completion_id(name: str) -> str:
    """Return the id of the completion whose answer is called `name`; any other name as it is.

    The same completion is `cmp_...`, a message's `msg_...`, and a response's `resp_...`; strop's
    own answer to a command stands for the one before it.
    """
    found = _IN_ANOTHER_DIALECT.fullmatch(name)
    return f"cmp_{found[1]}" if found else name
