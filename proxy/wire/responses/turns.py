"""What one side of a conversation says before the other does, gathered from several items.

Pure. Does not know what an item is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from strop.proxy.message import texts_of
from strop.proxy.wire.chat_messages import Content, add_notes, in_order, parts_of
from strop.proxy.wire.translation import reasoning_in


@dataclass(slots=True)
class Said:
    """What the assistant says in one answer, and the results of its calls.

    Attributes:
        answer: the digits of the answer that it was, where its items have ids of ours.
        notes: what the system says behind the results.
    """

    answer: str | None
    thoughts: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    calls: list[dict[str, object]] = field(default_factory=list)
    results: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, message: Mapping[str, object], answer: str | None) -> "Said":
        """Return what a chat's assistant message says."""
        thought, refusal, calls = (
            reasoning_in(message),
            message.get("refusal"),
            message.get("tool_calls"),
        )
        return cls(
            answer,
            thoughts=[thought] if thought else [],
            texts=texts_of(message),
            refusals=[refusal] if isinstance(refusal, str) else [],
            calls=[call for call in calls if isinstance(call, dict)]
            if isinstance(calls, list)
            else [],
        )

    def message(self) -> dict[str, object]:
        """Return it as chat has it."""
        text = "".join(self.texts)
        is_call_alone = self.calls and not self.texts
        message: dict[str, object] = {
            "role": "assistant",
            "content": None if is_call_alone else text,
        }
        if self.thoughts:
            message["reasoning_content"] = "".join(self.thoughts)
        if self.refusals:
            message["refusal"] = "".join(self.refusals)
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def told(self) -> list[dict[str, object]]:
        """Return the results as chat has them; no more is added."""
        results = in_order(self.results, (call.get("id") for call in self.calls))
        if self.notes:
            add_notes(results[-1], self.notes)
        return results


@dataclass(slots=True)
class Asked:
    """What a user says between two answers, message by message; a command is one of its own."""

    contents: list[Content]
    is_command: bool = False

    def message(self) -> dict[str, object]:
        """Return it as chat has it."""
        content: Content = self.contents[0]
        if len(self.contents) > 1:
            texts = [one for one in self.contents if isinstance(one, str)]
            if len(texts) == len(self.contents):
                content = "\n\n".join(texts)
            else:
                content = [part for one in self.contents for part in parts_of(one)]
        return {"role": "user", "content": content}
