"""Answers that nobody reads: what agents ask for by themselves, and what ended before it began.

Pure. Knows their requests by what the agents that were tried say in them.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from strop.proxy import objects
from strop.proxy.conversation import UNCHAINED
from strop.proxy.message import role_of, texts_of
from strop.proxy.store import prompt
from strop.proxy.store.records import Completion
from strop.proxy.wire import body

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
# How aider and gptme begin what they ask for by themselves.
_BEGINNINGS: Final = {
    "You are an expert software engineer that generates concise, one-line Git commit messages": (
        "commit message"
    ),
    "*Briefly* summarize this partial conversation about programming.": "summary",
    "Generate concise conversation titles.": "title",
}


def why(completion: Completion) -> str | None:
    """Return why nobody reads this answer; None where somebody can have."""
    sampling = body.parse(completion.sampling)
    if any(sampling.get(name) == 1 for name in _LIMITS):
        return "asked for one token, as to count tokens"
    if completion.state != "complete" and not any(map(objects.text_of, completion.choices)):
        return f"{completion.state}, without an answer"
    asked = prompt.fields(completion) or {}
    messages = asked.get("messages")
    said = messages if isinstance(messages, list) else []
    if _is_about_a_chat(said):
        return "asked by Open WebUI about the chat"
    if _is_title(asked, said):
        return "asked by an agent for a title"
    if _is_summary(said):
        return "asked by an agent for a summary"
    # With one question behind it. aider puts a prefix of the model's on a line before it.
    is_task = [role_of(one) for one in said] == ["system", "user"]
    begins = "\n" + "".join(texts_of(said[0])) if is_task else ""
    wanted = next((what for mark, what in _BEGINNINGS.items() if f"\n{mark}" in begins), None)
    return wanted and f"asked by an agent for a {wanted}"


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
