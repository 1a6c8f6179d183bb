"""The messages of a Messages request, as the messages of a chat.

Pure. Makes what chat templates take: one system message, at the start; users and assistants in
turn; the results of an answer's tool calls behind it, in the order of the calls. Does not know
what is asked for beside the messages.
"""

import re
from collections.abc import Iterable, Mapping

from strop.proxy.inline import find_command, num_before
from strop.proxy.wire import body
from strop.proxy.wire.chat_messages import (
    Message,
    Part,
    add_notes,
    content_of,
    in_order,
    joined,
    reminder,
    result_of,
    text_part,
)
from strop.proxy.wire.members import name_in, object_in, refuse, string
from strop.proxy.wire.messages.content import blocks_in, parts_in, parts_of, texts_in

# Claude Code's own line for the vendor's accounts. Its number changes from one conversation to the
# next, and with it the beginning of every prompt: an engine would compute each anew.
_BILLING = "x-anthropic-billing-header:"

_REMINDER = re.compile(
    r"<system-reminder>\n((?:(?!</system-reminder>).)*)\n</system-reminder>\s*", re.DOTALL
)

# What a tool of the vendor's cloud did, before the text that came of it.
_CLOUD_BLOCKS = frozenset(
    {
        "redacted_thinking",
        "fallback",
        "advisor_tool_result",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "mcp_tool_use",
        "mcp_tool_result",
        "mcp_tool_listing",
    }
)


class History:
    """A chat, made message by message.

    Args:
        left_out: takes the paths of what chat can't carry.

    Attributes:
        messages: the chat so far, without its system message; whole after `finish`.
    """

    def __init__(self, left_out: list[str]) -> None:
        self.messages: list[Message] = []
        self._left_out = left_out
        self._system: list[str] = []
        self._answer: _Answer | None = None
        self._has_answer = False
        self._called: list[object] = []
        self._results: list[Message] = []
        self._own: list[Part] = []
        self._command: list[Part] = []
        self._notes: list[str] = []

    def add_system(self, content: object) -> None:
        """Take the request's `system`.

        Raises:
            BadRequest: it is malformed, or holds anything but text.
        """
        for position, text in enumerate(texts_in(content, "system")):
            if isinstance(content, list) and text.startswith(_BILLING):
                self._left_out.append(f"system[{position}]")
            else:
                self._system.append(text)

    def add(self, message: Mapping[str, object], path: str) -> None:
        """Take the next message.

        Raises:
            BadRequest: it is malformed, or holds what chat can't.
        """
        role, content, here = message.get("role"), message.get("content"), f"{path}.content"
        if role == "assistant":
            self._end_turn()
            self._has_answer = True
            self._answer = self._answer or _Answer()
            self._answer.add(content, here, self._left_out)
            return
        if role == "user":
            self._end_answer()
            self._add_user(content, here)
        elif role == "system":
            # What Claude Code sends before the first answer joins the first message. What it sends
            # later, such as "Plan mode is active", keeps its place in the history: in the first
            # message it would change the beginning of the prompt, and an engine would compute all
            # of it anew.
            if self._has_answer:
                self._end_answer()
                self._notes += texts_in(content, here)
            else:
                self._system += texts_in(content, here)
        else:
            refuse(f"{path}.role", "user, assistant or system", role)

    def finish(self, *, may_end_in_answer: bool = False) -> list[Message]:
        """Return the whole chat; no more is added.

        Raises:
            BadRequest: it is empty, or ends with the beginning of an answer, which it may not.
        """
        self._end_turn()
        if may_end_in_answer:
            self._end_answer()
        if not self.messages and self._answer is None:
            refuse("messages", "at least one message", [])
        if self._answer is not None:
            refuse(
                "messages",
                "a history that ends with a user's message",
                "one that ends with the assistant's",
                "an answer can't be begun for the model",
            )
        told = joined(self.messages)
        if not self._system:
            return told
        return [{"role": "system", "content": "\n\n".join(self._system)}, *told]

    def _add_user(self, content: object, path: str) -> None:
        if self._command:
            self._end_turn()
        own: list[Part] = []
        has_result = False
        for block, here in blocks_in(content, path):
            if block.get("type") == "tool_result":
                self._results.append(_result(block, here, self._left_out))
                has_result = True
            else:
                own += parts_of(block, here, self._left_out)
        if not own and not has_result:
            # Said nothing, but answers stand before and behind it.
            own.append(text_part(""))
        if has_result and (notes := _reminders_in(own)):
            # Claude Code's hooks: the system's words, as it has them from the next prompt on.
            self._notes += notes
            return
        # A command is taken out of the history with its message, so what is said before it is not
        # part of that.
        is_command = find_command([{"role": "user", "content": own}]) is not None
        num_words = num_before(own) if is_command else len(own)
        self._own += own[:num_words]
        self._command += own[num_words:]

    def _end_turn(self) -> None:
        """Write down what the user's side said since the last answer."""
        results, own = in_order(self._results, self._called), self._own
        if self._notes and (own or results or not self._command):
            # In one, as Claude Code joins later what it says in several messages at first.
            note = reminder("\n\n".join(self._notes))
            self._notes.clear()
            if results and not own:
                # A user's message would end the tool loop, and begin a turn.
                add_notes(results[-1], [note])
            else:
                own.insert(0, text_part(note))
        self.messages += results
        for parts in (own, self._command):
            if parts:
                self.messages.append({"role": "user", "content": content_of(parts)})
        self._results, self._own, self._command = [], [], []

    def _end_answer(self) -> None:
        if self._answer is not None:
            self.messages.append(self._answer.message())
            self._called = [call["id"] for call in self._answer.calls]
            self._answer = None


class _Answer:
    """What the model said in one go, in the messages and blocks that a client made of it."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self.calls: list[dict[str, object]] = []

    def add(self, content: object, path: str, left_out: list[str]) -> None:
        for block, here in blocks_in(content, path):
            kind = block.get("type")
            if kind == "text":
                self._texts.append(string(block, "text", here))
            elif kind == "thinking":
                self._thoughts.append(string(block, "thinking", here))
            elif kind == "tool_use":
                self.calls.append(_call(block, here))
            elif isinstance(kind, str) and kind in _CLOUD_BLOCKS:
                left_out.append(here)
            else:
                refuse(f"{here}.type", "text, thinking or tool_use", kind)

    def message(self) -> Message:
        said: Message = {"role": "assistant", "content": "".join(self._texts)}
        if self._thoughts:
            said["reasoning_content"] = "".join(self._thoughts)
        if self.calls:
            said["tool_calls"] = self.calls
        return said


def _reminders_in(parts: Iterable[Part]) -> list[str]:
    """Return what the system says in these parts, or nothing where anything else is said."""
    notes = []
    for part in parts:
        text = part.get("text")
        found = _REMINDER.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            return []
        notes.append(found[1])
    return notes


def _call(block: Mapping[str, object], path: str) -> dict[str, object]:
    given = object_in(block.get("input"), f"{path}.input")
    function = {"name": string(block, "name", path), "arguments": body.dumps(given).decode()}
    return {"id": name_in(block, "id", path), "type": "function", "function": function}


def _result(block: Mapping[str, object], path: str, left_out: list[str]) -> Message:
    parts = parts_in(block.get("content"), f"{path}.content", left_out)
    if block.get("is_error"):
        # Chat has no mark for it, and some tools say only what went wrong.
        parts = _marked(parts)
    identity = name_in(block, "tool_use_id", path)
    return {"role": "tool", "tool_call_id": identity, "content": result_of(parts)}


def _marked(parts: list[Part]) -> list[Part]:
    first = parts[0].get("text") if parts else ""
    if isinstance(first, str):
        return [text_part(f"Error: {first}".rstrip()), *parts[1:]]
    return [text_part("Error:"), *parts]
