"""How Ollama reads the messages and the effort of a chat, in shape as its source says. Pure."""

import json
from typing import Any

EFFORTS = ("high", "medium", "low", "none")


class UnreadableError(Exception):
    """What Ollama says of a chat that it can't read, with a status of 400."""


def read(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what its templates get of a chat: each part is a message of its own."""
    effort = fields.get("reasoning_effort")
    if effort and effort not in EFFORTS:
        raise UnreadableError(f"invalid reasoning value: '{effort}'")
    return [read for message in fields["messages"] for read in _read(message)]


def _read(message: dict[str, Any]) -> list[dict[str, Any]]:
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    for call in calls or ():
        try:
            json.loads(call["function"]["arguments"])
        except ValueError as error:
            raise UnreadableError("invalid tool call arguments") from error
    if isinstance(content, list):
        return [{"role": role, "content": _text(part)} for part in content]
    if content is None and calls is None:
        raise UnreadableError("invalid message content type: <nil>")
    thought = message.get("reasoning", "")
    return [{"role": role, "content": content or "", "thinking": thought, "tool_calls": calls}]


def _text(part: dict[str, Any]) -> str:
    if part["type"] not in ("text", "image_url"):
        raise UnreadableError("invalid message format")
    return str(part.get("text", "<image>"))
