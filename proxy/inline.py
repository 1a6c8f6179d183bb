"""Inline commands: ratings that a person types where they talk to the model.

Pure. Finds commands and takes them out of histories; does not carry them out, and does not know
what is answered.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from strop.proxy.conversation import UNCHAINED
from strop.proxy.message import NOTES, OUTER, is_all_notes, is_context, role_of, text_in, texts_of

MARK: Final = "[strop] "
"""How each answer of ours to a command begins."""

# How each begins, beyond the mark; it is one line. Agents that shorten a history keep one without
# its command.
_ANSWER = re.compile(
    re.escape(MARK) + r"(?:"
    r"Rated the answer above (?:good|bad)(?:, because \"| \(cmp_)"
    r"|Took back the rating \S+ \(fb_"
    r"|In this conversation: \d+ good, \d+ bad\."
    r"|There is no answer above that strop has recorded"
    r"|What was asked last got no answer, "
    r"|There is no rating in this conversation to undo\."
    r"|Nothing is known of this conversation\."
    r"|Could not do that: "
    r"|Rate the answer above: /rl "
    r")"
)

# What Claude Code makes of a command of its user's, before what the command's file says.
_TYPED: Final = frozenset({"<command-message>", "<command-name>", "<command-args>"})
# What agents put beside what is typed.
_BESIDE: Final = NOTES | _TYPED | {
    *("<system-reminder>", "<ide_opened_file>", "<ide_selection>"),
    *("<local-command-caveat>", "<local-command-stdout>", "<local-command-stderr>"),
}  # fmt: skip

Verb = Literal["good", "bad", "undo", "status", "help"]

# OpenClaw writes the time before what its user says: "[Sat 2026-11-21 17:15 UTC] ".
_COMMAND = re.compile(
    r"(?:\[[A-Z][a-z]{2} \d{4}-\d{2}-\d{2} \d{2}:\d{2} [^\]\s]+\]\s+)?"
    r"/rl(?:\s+(?P<verb>\S+)(?:\s+(?P<comment>.+))?)?"
)
# What `opencode run` makes of an argument with spaces.
_QUOTED = re.compile(r'"(/rl (?:[^"]|(?<=\\)")*)"')
_VERBS: Mapping[str, Verb] = {
    "good": "good",
    "up": "good",
    "bad": "bad",
    "down": "bad",
    "undo": "undo",
    "status": "status",
    "help": "help",
}


@dataclass(frozen=True, slots=True)
class Command:
    """What to do, and what the person wrote behind it."""

    verb: Verb
    comment: str | None = None


def may_be_in(raw: bytes) -> bool:
    """Whether a request's body may hold what `without_commands` takes out."""
    return b"/rl" in raw or MARK.encode() in raw


def find_command(messages: Sequence[object]) -> Command | None:
    """Return the command that the last message is, or None.

    It is one where its role is `user` and its last text part, trimmed, is one line
    `/rl <verb> [comment]`, or that in double quotes. `/rl` alone, or with an unknown verb, asks for
    help. What an agent puts behind its user's words for one request is passed over: aider reminds
    as the system.
    """
    for message in reversed(messages):
        if role_of(message) not in UNCHAINED and not is_context(message):
            return _command_in(message)
    return None


def without_commands(messages: Sequence[object]) -> list[object] | None:
    """Return the messages without commands and our answers to them; None if there are none.

    What its user says before a command in the same message stays. An answer of ours is an assistant
    message that follows a command and begins with `MARK`, or says what only strop does. A command
    that the model has answered, since some client had put words of its own before it, stays with
    that answer, unless it stands behind other words of the user's.
    """
    kept: list[object] = []
    has_split = False
    said_by = ""
    # The last command, and where it would stand among those kept.
    unanswered: tuple[int, object] | None = None
    for message in messages:
        if _command_in(message) is not None:
            if (words := _words_before(message)) is not None:
                kept.append(words)
                has_split, said_by = True, "user"
            unanswered = len(kept), message
            continue
        role = role_of(message)
        if role not in UNCHAINED:
            place, command = unanswered or (None, None)
            unanswered = None
            if role == "assistant" and _is_answer(message, follows_command=place is not None):
                continue
            if place is not None and role == "assistant" and said_by != "user":
                kept.insert(place, command)
            said_by = role
        kept.append(message)
    return kept if has_split or len(kept) < len(messages) else None


def num_before(content: object) -> int:
    """Return how many parts of a command's message are its user's words, and stand before it.

    Claude Code makes one message of what is said between two answers: of a question that got none,
    and the command behind it. Where there is nothing beside the command but what an agent says by
    itself, there are none.
    """
    texts = [text_in(part) for part in content] if isinstance(content, list) else []
    begin = max((place for place, text in enumerate(texts) if text is not None), default=0)
    while begin and _belongs_to_command(texts[begin - 1]):
        begin -= 1
    has_words = any(text is None or not is_all_notes(text, _BESIDE) for text in texts[:begin])
    return begin if has_words else 0


def _words_before(message: object) -> dict[str, object] | None:
    """Return a command's message with its user's words alone, or None if there are none."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(content, list):
        return None
    num_words = num_before(content)
    return {**message, "content": content[:num_words]} if num_words else None


def _belongs_to_command(text: str | None) -> bool:
    if text is None:
        return False
    return is_all_notes(text, _TYPED) or _command_in({"role": "user", "content": text}) is not None


def _is_answer(message: object, *, follows_command: bool) -> bool:
    """Whether it is an answer of ours; without a command before it only if it is nothing else."""
    text = "".join(texts_of(message)).strip(OUTER)
    if follows_command:
        return text.startswith(MARK)
    if not isinstance(message, dict) or message.get("tool_calls"):
        return False
    content = message.get("content")
    is_text = not isinstance(content, list) or all(text_in(part) is not None for part in content)
    return is_text and "\n" not in text and _ANSWER.match(text) is not None


def _command_in(message: object) -> Command | None:
    content = message.get("content") if isinstance(message, dict) else None
    parts = reversed(content) if isinstance(content, list) else (content,)
    texts = (text for part in parts if (text := text_in(part)) is not None)
    line = next(texts, "").strip(OUTER) if role_of(message) == "user" else ""
    if not line.startswith(("/rl", "[", '"/rl ')) or len(line.splitlines()) != 1:
        return None
    if quoted := _QUOTED.fullmatch(line):
        line = quoted[1].replace('\\"', '"').strip(OUTER)
    found = _COMMAND.fullmatch(line)
    if found is None:
        return None
    comment = found["comment"]
    # A lone surrogate is JSON, but not text that can be stored.
    said = comment and comment.encode("utf-8", "replace").decode()
    return Command(_VERBS.get((found["verb"] or "").lower(), "help"), said)
