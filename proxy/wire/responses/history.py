"""The input of a Responses request, item by item, as the messages of a chat.

Pure. What one chat answer said is several items there: its reasoning, its text, each of its calls.
Here they become one message again, so that it is the message that was recorded. Does not know
which tools there are.
"""

import re
from collections.abc import Mapping

from strop.proxy.inline import find_command, num_before
from strop.proxy.message import texts_of
from strop.proxy.wire import body
from strop.proxy.wire.chat_messages import Content, content_of, joined, reminder, result_of
from strop.proxy.wire.members import (
    list_in,
    name_in,
    object_in,
    objects_in,
    optional_string,
    refuse,
    string,
)
from strop.proxy.wire.responses.content import parts_in, text_in, texts_in
from strop.proxy.wire.responses.items import (
    BUILT_IN_CALLS,
    OF_THE_CLOUD,
    RESULTS,
    call_id,
    is_content,
)
from strop.proxy.wire.responses.references import (
    FINISHED,
    SEND_ALL,
    UNFINISHED,
    answer_of,
    is_own,
)
from strop.proxy.wire.responses.tools import custom_arguments, function_name
from strop.proxy.wire.responses.turns import Asked, Said
from strop.proxy.wire.translation import Earlier

# As pydantic-ai writes reasoning back: a message of its own.
_THOUGHT = re.compile(r"<think>\n?(.*?)\n?</think>\s*", re.DOTALL)


class History:
    """What the items read so far say.

    Args:
        earlier: the completions that items refer to, by their answers' digits.

    Attributes:
        tools: where in the request stand further tools, and they themselves.
        left_out: where in the request stands what chat can't say.
    """

    def __init__(self, earlier: Mapping[str, Earlier]) -> None:
        self._earlier = earlier
        self.tools: list[tuple[str, object]] = []
        self.left_out: list[str] = []
        self._instructions: list[str] = []
        self._entries: list[Said | Asked | dict[str, object]] = []
        self._callers: dict[str, Said] = {}

    @property
    def last_answer(self) -> str | None:
        """The digits of the last answer, where its items have ids of ours."""
        said = (entry.answer for entry in reversed(self._entries) if isinstance(entry, Said))
        return next(said, None)

    def instruct(self, text: str) -> None:
        """Take what the model is told before the conversation."""
        self._instructions.append(text)

    def resume(self, before: Earlier, answer: str) -> None:
        """Take a conversation with its answer, of which these are the digits.

        What the model was told before it counts where nothing was said in its place. Where the same
        instructions are, what stood behind them still counts: they and the messages of the system
        are one text in what was recorded.
        """
        told: list[str] = []
        for message in list_in(body.parse(before.request).get("messages"), "messages"):
            if not isinstance(message, dict):
                continue
            content, role = message.get("content"), message.get("role")
            if role == "assistant":
                self._add(Said.of(message, None))
            elif role == "tool":
                self._add_result(dict(message))
            elif role == "user":
                self._entries.append(
                    Asked([content if isinstance(content, list) else str(content)])
                )
            else:
                told += texts_of(message)
        self._tell_again("\n\n".join(told))
        self._add(Said.of(before.answer, answer))

    def _tell_again(self, told: str) -> None:
        instructions = "\n\n".join(self._instructions)
        if not instructions:
            self._instructions += [told] if told else []
        elif told.startswith(f"{instructions}\n\n"):
            self._instructions.append(told[len(instructions) + 2 :])
        elif told not in ("", instructions):
            self.left_out.append("previous_response_id.instructions")

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
        elif kind in BUILT_IN_CALLS:
            given = body.dumps(item.get(BUILT_IN_CALLS[kind])).decode()
            self._read_call(item, path, kind.removesuffix("_call"), given)
        elif kind in RESULTS:
            self._read_result(item, path)
        elif kind == "reasoning":
            self._read_reasoning(item, path)
        elif kind == "additional_tools":
            self.tools.append((f"{path}.tools", item.get("tools")))
        elif kind in OF_THE_CLOUD:
            self.left_out.append(path)
        elif kind == "item_reference":
            self._read_reference(item, path)
        else:
            refuse(f"{path}.type", "an item that a chat can hold", kind, "leave the item out")

    def _read_reference(self, item: Mapping[str, object], path: str) -> None:
        """Take an item of an earlier answer: with it come the others, since all are one message."""
        answer = answer_of(name_in(item, "id", path))
        before = self._earlier.get(answer) if answer else None
        last = self._entries[-1] if self._entries else None
        if before is None:
            if is_own(item["id"]) or (isinstance(last, Asked) and last.is_command):
                return
            refuse(f"{path}.id", "an item of an answer that strop has", item["id"], SEND_ALL)
        if not before.is_whole:
            refuse(f"{path}.id", FINISHED, item["id"], UNFINISHED)
        if not (isinstance(last, Said) and last.answer == answer):
            self._add(Said.of(before.answer, answer))

    def _add(self, said: Said) -> None:
        self._entries.append(said)
        for call in said.calls:
            self._callers[str(call.get("id"))] = said

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
            if not is_own(item.get("id")):
                self._read_answer(item, content, here)
        else:
            refuse(f"{path}.role", "user, assistant, system or developer", role)

    def _ask(self, content: Content) -> None:
        """Take what a user says. Some templates refuse two user messages in a row.

        A command is taken out of the history with its message, so what is said before it is not
        part of that.
        """
        is_command = find_command([{"role": "user", "content": content}]) is not None
        if is_command and isinstance(content, list) and (num_words := num_before(content)):
            self._ask(content_of(content[:num_words]))
            content = content_of(content[num_words:])
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
                string(part, "text", part_path)
                for part, part_path in objects_in(item.get(name), here)
            ]
            if texts:
                self._saying(item).thoughts.append("\n\n".join(texts))
                return
        if item.get("encrypted_content"):
            # Another vendor's, who alone can read it.
            self.left_out.append(f"{path}.encrypted_content")

    def _read_call(self, item: Mapping[str, object], path: str, name: str, arguments: str) -> None:
        identity = call_id(item, path)
        function = {"name": name, "arguments": arguments}
        said = self._saying(item, is_call=True)
        said.calls.append({"id": identity, "type": "function", "function": function})
        self._callers[identity] = said

    def _read_result(self, item: Mapping[str, object], path: str) -> None:
        identity, output = call_id(item, path), item.get("output")
        if output is None:
            output = optional_string(item, "status", path) or ""
        if not is_content(output):
            output = body.dumps(output).decode()
        message: dict[str, object] = {
            "role": "tool",
            "tool_call_id": identity,
            "content": result_of(parts_in(output, f"{path}.output", self.left_out)),
        }
        self._add_result(message)

    def _add_result(self, message: dict[str, object]) -> None:
        if caller := self._callers.get(str(message.get("tool_call_id"))):
            caller.results.append(message)
        else:
            self._entries.append(message)

    def _saying(self, item: Mapping[str, object], *, is_call: bool = False) -> Said:
        """Return the assistant message that `item` is part of."""
        answer = answer_of(item.get("id"))
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
