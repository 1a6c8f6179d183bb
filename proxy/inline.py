"""Inline commands: ratings that a person types where they talk to the model.

Pure. Finds commands and takes them out of histories; does not carry them out, and does not know
what is answered.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from strop.proxy.conversation import UNCHAINED
from strop.proxy.message import OUTER, is_context, role_of, texts_of

MARK: Final = "[strop] "
"""How each answer of ours to a command begins."""

Verb = Literal["good", "bad", "undo", "status", "help"]

# OpenClaw writes the time before what its user says: "[Sat 2026-11-21 17:15 UTC] ".
_COMMAND = re.compile(
    r"(?:\[[A-Z][a-z]{2} \d{4}-\d{2}-\d{2} \d{2}:\d{2} [^\]\s]+\]\s+)?"
    r"/rl(?:\s+(?P<verb>\S+)(?:\s+(?P<comment>.+))?)?"
)
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


def find_command(messages: Sequence[object]) -> Command | None:
    """Return the command that the last message is, or None.

    It is one where its role is `user` and its last text part, trimmed, is one line
    `/rl <verb> [comment]`. `/rl` alone, or with an unknown verb, asks for help. What an agent puts
    behind its user's words for one request is passed over: aider reminds as the system.
    """
    for message in reversed(messages):
        if role_of(message) not in UNCHAINED and not is_context(message):
            return _command_in(message)
    return None


def without_commands(messages: Sequence[object]) -> list[object] | None:
    """Return the messages without commands and our answers to them; None if there are none.

    An answer of ours is an assistant message that follows a command and begins with `MARK`. A
    command that the model has answered, since some client had put words of its own before it, stays
    with that answer, unless it stands behind other words of the user's.
    """
    kept: list[object] = []
    said_by = ""
    # The last command, and where it would stand among those kept.
    unanswered: tuple[int, object] | None = None
    for message in messages:
        if _command_in(message) is not None:
            unanswered = len(kept), message
            continue
        role = role_of(message)
        if role not in UNCHAINED:
            place, command = unanswered or (None, None)
            unanswered = None
            if place is not None and role == "assistant":
                if "".join(texts_of(message)).lstrip(OUTER).startswith(MARK):
                    continue
                if said_by != "user":
                    kept.insert(place, command)
            said_by = role
        kept.append(message)
    return kept if len(kept) < len(messages) else None


def _command_in(message: object) -> Command | None:
    texts = texts_of(message) if role_of(message) == "user" else None
    line = texts[-1].strip(OUTER) if texts else ""
    if not line.startswith(("/rl", "[")) or len(line.splitlines()) != 1:
        return None
    found = _COMMAND.fullmatch(line)
    if found is None:
        return None
    comment = found["comment"]
    # A lone surrogate is JSON, but not text that can be stored.
    said = comment and comment.encode("utf-8", "replace").decode()
    return Command(_VERBS.get((found["verb"] or "").lower(), "help"), said)
