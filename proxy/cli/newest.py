"""The newest answer: the one that a person means who names none, having just read it.

Looks; rates nothing, and prints nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from strop.proxy import objects
from strop.proxy.conversation import UNCHAINED
from strop.proxy.message import role_of, texts_of
from strop.proxy.store import prompt
from strop.proxy.store.records import StoredCompletion
from strop.proxy.wire import body

if TYPE_CHECKING:
    from strop.proxy.store.store import Store

_PAGE: Final = 50
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
# How Open WebUI asks for titles, tags and what to ask next, and where it quotes the chat.
_TASK: Final = "### Task:"
_QUOTED: Final = "<chat_history>"
# How Claude Code and Codex ask for titles, in JSON; and how both ask for what to go on from.
_TITLE: Final = "Generate a concise, "
_SUMMARIES: Final = (
    "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools.",
    "You are performing a CONTEXT CHECKPOINT COMPACTION.",
)


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
    token is not: so agents count tokens. Nor is one that ended before it began, a title, or a
    summary that an agent goes on from.
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
    asked = prompt.fields(c) or {}
    messages = asked.get("messages")
    said = messages if isinstance(messages, list) else []
    if _is_about_a_chat(said):
        return "asked by Open WebUI about the chat"
    if _is_title(asked, said):
        return "asked by an agent for a title"
    if _is_summary(said):
        return "asked by an agent for a summary"
    return None


def _is_about_a_chat(messages: Sequence[object]) -> bool:
    own = [one for one in messages if role_of(one) not in UNCHAINED]
    text = "".join(texts_of(own[0])) if len(own) == 1 else ""
    return text.startswith(_TASK) and _QUOTED in text


def _is_title(asked: Mapping[str, object], messages: Sequence[object]) -> bool:
    # The system's last words, or Codex's behind where and when it was asked.
    texts = [text for one in messages for text in texts_of(one)]
    return (
        bool(asked.get("response_format"))
        and not asked.get("tools")
        and any(_has_paragraph(text, _TITLE) for text in texts)
    )


def _is_summary(messages: Sequence[object]) -> bool:
    # Behind what was said before and has no answer, if there is any.
    texts = texts_of(messages[-1]) if messages and role_of(messages[-1]) == "user" else []
    return bool(texts) and any(_has_paragraph(texts[-1], mark) for mark in _SUMMARIES)


def _has_paragraph(text: str, beginning: str) -> bool:
    return f"\n\n{beginning}" in f"\n\n{text}"
