"""The input of a Responses request, item by item, as the messages of a chat.

Pure. What one chat answer said is several items there: its reasoning, its text, each of its calls.
Here they become one message again, so that it is the message that was recorded. Does not know
which tools there are.
"""

import re
from collections.abc import Mapping
from typing import Final

from strop.proxy.commands import find_command
from strop.proxy.errors import BadRequest
from strop.proxy.wire import body
from strop.proxy.wire.chat_messages import Content, content_of, joined, reminder, result_of
from strop.proxy.wire.members import (
    list_in,
    name_in,
    object_in,
    optional_string,
    refuse,
    string,
)
from strop.proxy.wire.responses.content import parts_in, text_in, texts_in
from strop.proxy.wire.responses.tools import custom_arguments, function_name
from strop.proxy.wire.responses.turns import Asked, Said

# Calls that only the vendor's models know how to make, and the member that says what is called.
_BUILT_IN_CALLS: Final = {
    "local_shell_call": "action",
    "shell_call": "action",
    "apply_patch_call": "operation",
}
_RESULTS: Final = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
    }
)
_OF_THE_CLOUD: Final = frozenset(
    {
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "mcp_call",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "tool_search_call",
        "tool_search_output",
    }
)
# As the items of an answer are called.
_OUR_ID = re.compile(r"(?:rs|msg|fc|ctc)_([0-9a-f]{32})(?:_\d+)?")
# As pydantic-ai writes reasoning back: a message of its own.
_THOUGHT = re.compile(r"<think>\n?(.*?)\n?</think>\s*", re.DOTALL)


class History:
    """What the items read so far say.

    Attributes:
        tools: where in the request stand further tools, and they themselves.
        left_out: where in the request stands what chat can't say.
    """

    def __init__(self) -> None:
        self.tools: list[tuple[str, object]] = []
        self.left_out: list[str] = []
        self._instructions: list[str] = []
        self._entries: list[Said | Asked | dict[str, object]] = []
        self._callers: dict[str, Said] = {}

    def instruct(self, text: str) -> None:
        """Take what the model is told before the conversation."""
        self._instructions.append(text)

    def read(self, items: object) -> None:
        """Take a request's `input`.

        Raises:
            BadRequest: it is malformed, or holds what no chat can.
        """
        if isinstance(items, str):
            self._ask(items)
            return
        if not isinstance(items, list):
            refuse("input", "a string or an array of items", items)
        for position, value in enumerate(items):
            path = f"input[{position}]"
            self._read(object_in(value, path), path)

    def messages(self) -> list[dict[str, object]]:
        """Return the chat's messages."""
        messages: list[dict[str, object]] = []
        if self._instructions:
            told = "\n\n".join(self._instructions)
            messages.append({"role": "system", "content": told})
        for entry in self._entries:
            if isinstance(entry, Said):
                # Right behind the calls, where templates want them.
                messages += [entry.message(), *entry.told()]
            else:
                messages.append(entry.message() if isinstance(entry, Asked) else entry)
        return joined(messages)

    def _read(self, item: Mapping[str, object], path: str) -> None:
        kind = item.get("type")
        if kind == "message" or (kind is None and "role" in item):
            self._read_message(item, path)
        elif not isinstance(kind, str):
            refuse(f"{path}.type", "a string such as `message`", kind)
        elif kind == "function_call":
            name = function_name(
                string(item, "name", path), optional_string(item, "namespace", path)
            )
            self._read_call(item, path, name, string(item, "arguments", path))
        elif kind == "custom_tool_call":
            name = function_name(
                string(item, "name", path), optional_string(item, "namespace", path)
            )
            self._read_call(item, path, name, custom_arguments(string(item, "input", path)))
        elif kind in _BUILT_IN_CALLS:
            given = body.dumps(item.get(_BUILT_IN_CALLS[kind])).decode()
            self._read_call(item, path, kind.removesuffix("_call"), given)
        elif kind in _RESULTS:
            self._read_result(item, path)
        elif kind == "reasoning":
            self._read_reasoning(item, path)
        elif kind == "additional_tools":
            self.tools.append((f"{path}.tools", item.get("tools")))
        elif kind in _OF_THE_CLOUD:
            self.left_out.append(path)
        elif kind == "item_reference":
            raise BadRequest(
                f"expected the item itself at `{path}`, got a reference to it; strop keeps no items"
                " for clients: send the whole conversation in `input` (in most SDKs: store=False)",
                param=path,
            )
        else:
            refuse(f"{path}.type", "an item that a chat can hold", kind, "leave the item out")

    def _read_message(self, item: Mapping[str, object], path: str) -> None:
        role, content, here = item.get("role"), item.get("content"), f"{path}.content"
        if not isinstance(content, str | list):
            refuse(here, "a string or an array of parts", content)
        if role == "user":
            self._ask(content_of(parts_in(content, here, self.left_out)))
        elif role in ("system", "developer"):
            for text in texts_in(content, here):
                self._note(text)
        elif role == "assistant":
            self._read_answer(item, content, here)
        else:
            refuse(f"{path}.role", "user, assistant, system or developer", role)

    def _ask(self, content: Content) -> None:
        """Take what a user says. Some templates refuse two user messages in a row."""
        is_command = find_command([{"role": "user", "content": content}]) is not None
        last = self._entries[-1] if self._entries else None
        if isinstance(last, Asked) and not is_command and not last.is_command:
            last.contents.append(content)
        else:
            self._entries.append(Asked([content], is_command))

    def _note(self, text: str) -> None:
        """Take what the system or a developer says.

        Codex begins with some; later ones, on a change of mode or permissions, stay where they
        stand: in the first message they would change where every prompt begins, and an engine
        would compute all of it anew. They are told as a user would, but begin no turn in a tool
        loop, and never stand behind a command such as `/rl good`, which is only one at the end.
        """
        if not any(isinstance(entry, Said) for entry in self._entries):
            self._instructions.append(text)
            return
        note = reminder(text)
        last = self._entries[-1]
        if isinstance(last, Said) and last.results:
            last.notes.append(note)
            return
        held = self._entries.pop() if isinstance(last, Asked) and last.is_command else None
        self._ask(note)
        if held is not None:
            self._entries.append(held)

    def _read_answer(
        self, item: Mapping[str, object], content: str | list[object], path: str
    ) -> None:
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        refusals: list[str] = []
        texts: list[str] = []
        for position, value in enumerate(parts):
            here = f"{path}[{position}]"
            part = object_in(value, here)
            if part.get("type") == "refusal":
                refusals.append(string(part, "refusal", here))
            else:
                texts.append(text_in(part, here))
        said = self._saying(item)
        said.refusals += refusals
        thought = _THOUGHT.fullmatch("".join(texts)) if item.get("id") is None else None
        if thought is not None:
            said.thoughts.append(thought[1])
        else:
            said.texts += texts

    def _read_reasoning(self, item: Mapping[str, object], path: str) -> None:
        for name in ("content", "summary"):
            here = f"{path}.{name}"
            texts = [
                string(object_in(part, f"{here}[{position}]"), "text", f"{here}[{position}]")
                for position, part in enumerate(list_in(item.get(name), here))
            ]
            if texts:
                self._saying(item).thoughts.append("\n\n".join(texts))
                return
        if item.get("encrypted_content"):
            # Another vendor's, who alone can read it.
            self.left_out.append(f"{path}.encrypted_content")

    def _read_call(self, item: Mapping[str, object], path: str, name: str, arguments: str) -> None:
        identity = _call_id(item, path)
        function = {"name": name, "arguments": arguments}
        said = self._saying(item, is_call=True)
        said.calls.append({"id": identity, "type": "function", "function": function})
        self._callers[identity] = said

    def _read_result(self, item: Mapping[str, object], path: str) -> None:
        identity, output = _call_id(item, path), item.get("output")
        if output is None:
            output = optional_string(item, "status", path) or ""
        if not _is_content(output):
            output = body.dumps(output).decode()
        message: dict[str, object] = {
            "role": "tool",
            "tool_call_id": identity,
            "content": result_of(parts_in(output, f"{path}.output", self.left_out)),
        }
        if caller := self._callers.get(identity):
            caller.results.append(message)
        else:
            self._entries.append(message)

    def _saying(self, item: Mapping[str, object], *, is_call: bool = False) -> Said:
        """Return the assistant message that `item` is part of."""
        identity = item.get("id")
        ours = _OUR_ID.fullmatch(identity) if isinstance(identity, str) else None
        answer = ours[1] if ours else None
        last = self._entries[-1] if self._entries else None
        if isinstance(last, Said):
            if answer and last.answer:
                goes_on = answer == last.answer
            else:
                # A call follows a text, and a text follows only reasoning; but nothing may stand
                # between a call and its result.
                goes_on = not last.results and (is_call or not last.texts or bool(last.calls))
            if goes_on:
                last.answer = last.answer or answer
                return last
        said = Said(answer)
        self._entries.append(said)
        return said


def _call_id(item: Mapping[str, object], path: str) -> str:
    """Return the id that a call and its result share."""
    return name_in(item, "id" if item.get("call_id") is None else "call_id", path)


def _is_content(output: object) -> bool:
    """Whether `output` is a text or content parts, and not the record of what a shell did."""
    if isinstance(output, list):
        return all(isinstance(part, dict) and "type" in part for part in output)
    return isinstance(output, str)
