"""The newest answer: the one that a person means who names none, having just read it.

Looks; rates nothing, and prints nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from strop.proxy import objects
from strop.proxy.conversation import UNCHAINED
from strop.proxy.message import role_of, texts_of
from strop.proxy.store import prompt
from strop.proxy.store.records import Completion, StoredCompletion
from strop.proxy.wire import body

if TYPE_CHECKING:
    from strop.proxy.store.store import Store

_PAGE: Final = 50
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
# How Open WebUI asks for titles, tags and what to ask next, and where it quotes the chat.
_TASK: Final = "### Task:"
_QUOTED: Final = "<chat_history>"


@dataclass(frozen=True, slots=True)
class Newest:
    """What was found: the answer, if there is one; and how many newer ones are none to rate.

    `passed_over` has their ids by the reason, newest first.
    """

    answer: StoredCompletion | None
    passed_over: Mapping[str, list[str]]


async def newest(store: "Store") -> Newest:
    """Return the newest answer that somebody can have read.

    One that was broken off is: who stops a bad answer has seen what there is of it. One of a single
    token is not: so agents count tokens. Nor is one that ended before it began, or a title.
    """
    passed_over: dict[str, list[str]] = {}
    after: str | None = None
    while True:
        page = await store.list_completions(limit=_PAGE, after=after)
        for one in page.data:
            found = await store.get_completion(one.id)
            # Else it was deleted in that moment.
            if found is not None:
                reason = _unread(found)
                if reason is None:
                    return Newest(found, passed_over)
                passed_over.setdefault(reason, []).append(one.id)
        if not page.has_more:
            return Newest(None, passed_over)
        after = page.data[-1].id


def _unread(found: StoredCompletion) -> str | None:
    """Return why nobody reads this answer; None where somebody can have."""
    c = found.completion
    sampling = body.parse(c.sampling)
    if any(sampling.get(name) == 1 for name in _LIMITS):
        return "asked for one token, as to count tokens"
    if c.state != "complete" and not any(map(objects.text_of, c.choices)):
        return f"{c.state}, without an answer"
    if _is_about_a_chat(c):
        return "asked by Open WebUI about the chat"
    return None


def _is_about_a_chat(completion: Completion) -> bool:
    messages = (prompt.fields(completion) or {}).get("messages")
    asked = messages if isinstance(messages, list) else []
    own = [one for one in asked if role_of(one) not in UNCHAINED]
    text = "".join(texts_of(own[0])) if len(own) == 1 else ""
    return text.startswith(_TASK) and _QUOTED in text
