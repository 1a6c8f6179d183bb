"""Earlier answers that a request names instead of repeating them.

Pure. Does not know whether there are such answers.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final

# As an answer and its items are called.
_OUR_ID = re.compile(r"(?:resp|rs|msg|fc|ctc)_([0-9a-f]{32})(?:_\d+)?")

NOTHING_BEFORE: Final = "0" * 32
"""The digits of strop's own answer to a command that begins a conversation: no answer has them."""

SEND_ALL: Final = (
    "it is unknown, or was recorded with parts taken out, or nothing is recorded: send the whole"
    " conversation in `input` (in most SDKs: store=False)"
)
"""What to do where an answer can't be found."""


def answer_of(identity: object) -> str | None:
    """Return the digits of the answer that a response or one of its items is, by its id."""
    ours = _OUR_ID.fullmatch(identity) if isinstance(identity, str) else None
    return ours[1] if ours else None


def answers_in(fields: Mapping[str, object]) -> Collection[str]:
    """Return the digits of the response before, and of the answers that items refer to."""
    items = fields.get("input")
    named = [fields.get("previous_response_id")]
    named += [
        item.get("id")
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, dict) and item.get("type") == "item_reference"
    ]
    return {answer for name in named if (answer := answer_of(name))}
