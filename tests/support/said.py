"""What is said in a conversation, and how the dialects write it. Pure.

Knows chat, `/v1/messages` and `/v1/responses` as far as text and one tool go.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Answer = tuple[str, int]
"""A completion's id, and which of its choices."""


@dataclass(frozen=True)
class Said:
    """A message of a history.

    Attributes:
        link: the id of a response that a conversation can go on from.
    """

    role: str
    text: str
    calls: tuple[tuple[str, str], ...] = ()  # ids and arguments
    result_of: str = ""
    link: str = ""
    is_command: bool = False

    @property
    def known_by(self) -> tuple[object, ...]:
        """What makes it the same in two histories: its words, but no ids."""
        return self.role, self.text.strip(), tuple(arguments for _, arguments in self.calls)


def wire(one: Said) -> dict[str, object]:
    """Return a message of a request."""
    calls = {"tool_calls": calls_of(one.calls)} if one.calls else {}
    result = {"tool_call_id": one.result_of} if one.result_of else {}
    return {"role": one.role, "content": one.text, **calls, **result}


def calls_of(calls: Sequence[tuple[str, str]]) -> list[dict[str, object]]:
    """Return tool calls as chat has them."""
    return [
        {"id": id_, "type": "function", "function": {"name": "look", "arguments": arguments}}
        for id_, arguments in calls
    ]


def known(messages: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Return what the messages are known by that an engine got."""
    found = []
    for one in messages:
        content = one.get("content") or ""
        text = content if isinstance(content, str) else "".join(each["text"] for each in content)
        calls = ((each["id"], each["function"]["arguments"]) for each in one.get("tool_calls", ()))
        found.append(Said(one["role"], text, tuple(calls)).known_by)
    return found


def words(dialect: str, is_stream: bool, raw: bytes) -> str:
    """Return the text of an answer, or of what has come of it, in its dialect."""
    if is_stream:
        lines = raw.decode("utf-8", "ignore").split("\n\n")[:-1]
        data = [line.partition("data: ")[2] for line in lines]
        return "".join(_delta(dialect, json.loads(one)) for one in data if one.startswith("{"))
    body = json.loads(raw)
    if dialect == "chat":
        return str(body["choices"][0]["message"]["content"])
    parts = body["content"] if dialect == "messages" else body["output"][0]["content"]
    return "".join(part["text"] for part in parts)


def response_id(raw: bytes) -> str:
    """Return the id of a response, streamed or not."""
    return next(iter(re.findall(r'"id":"(resp_\w+)"', raw.decode("utf-8", "ignore"))), "")


def _delta(dialect: str, event: dict[str, Any]) -> str:
    if dialect == "chat":
        return "".join(each["delta"].get("content") or "" for each in event.get("choices", ()))
    if dialect == "messages":
        return str(event["delta"]["text"]) if event["type"] == "content_block_delta" else ""
    return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""
