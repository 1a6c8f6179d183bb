"""Earlier answers that a request names instead of repeating them.

Pure. Does not know whether there are such answers.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final

# As an answer and its items are called.
_OUR_ID = re.compile(r"(?:resp|rs|msg|fc|ctc)_([0-9a-f]{32})(?:_\d+)?")
# As what strop itself answers to a command behind it (see `ids.own_digits`), and where more was
# said with that command.
_OWN_ID = re.compile(r"(?:resp|msg)_([0-9a-f]{32})_own[0-9a-f]{16}")
_END_ID = re.compile(r"(?:resp|msg)_([0-9a-f]{32})_end[0-9a-f]{16}")

NOTHING_BEFORE: Final = "0" * 32
"""What strop's own answer to a command follows where it begins a conversation: no answer."""

SEND_ALL: Final = (
    "it is unknown, or was recorded with parts taken out, or nothing is recorded: send the whole"
    " conversation in `input` (in most SDKs: store=False)"
)
"""What to do where an answer can't be found."""

SEND_AGAIN: Final = (
    "it answers a command, and what was said with that is kept nowhere: send it again behind {}, or"
    " the whole conversation in `input` (in most SDKs: store=False)"
)
"""What to do where strop's own answer stands for less than was said; with the answer above it."""

FINISHED: Final = "an answer that was finished"
UNFINISHED: Final = "its answer was cut off, or failed: send the whole conversation in `input`"
"""What to do where an answer has no end."""


def answer_of(identity: object) -> str | None:
    """Return the digits of the answer that a response or one of its items is, by its id."""
    return _digits_in(identity, _OUR_ID)


def answer_before(identity: object) -> str | None:
    """Return the digits of the answer behind which a conversation goes on, by a response's id."""
    return answer_of(identity) or _digits_in(identity, _OWN_ID)


def answer_above(identity: object) -> str | None:
    """Return the digits of the answer above what strop keeps nothing of, by a response's id."""
    return _digits_in(identity, _END_ID)


def is_own(identity: object) -> bool:
    """Whether an item is known by its id to be strop's own, which the model is never told."""
    return (_digits_in(identity, _OWN_ID) or _digits_in(identity, _END_ID)) is not None


def answers_in(fields: Mapping[str, object]) -> Collection[str]:
    """Return the digits of the response before, and of the answers that items refer to."""
    items = fields.get("input")
    named = [answer_before(fields.get("previous_response_id"))]
    named += [
        answer_of(item.get("id"))
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, dict) and item.get("type") == "item_reference"
    ]
    return set(filter(None, named))


def _digits_in(identity: object, form: re.Pattern[str]) -> str | None:
    found = form.fullmatch(identity) if isinstance(identity, str) else None
    return found[1] if found else None
