"""What one token adds to an answer, and tool calls as they are made of what a model wrote.

Knows no markup: how a model tells calls from text is for `parts` and `channels`.
"""

import json
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What is raised on text that is not a call, by mlx-lm's tool parsers too: a number without end is
# an OverflowError, brackets without end are a RecursionError or, from Python's parser, a
# MemoryError.
CALL_ERRORS = (
    ValueError, LookupError, TypeError, AttributeError, SyntaxError, ArithmeticError,
    RecursionError, MemoryError,
)  # fmt: skip

# Some parsers take the beginning of broken JSON for a name.
_NAME = re.compile(r"[\w.:/-]+")
# Templates of Mistral refuse any other length.
_ID_LENGTH = 9


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; `arguments` is the JSON text of an object."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Delta:
    """What one token adds to an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it adds nothing."""
        return not (self.content or self.reasoning or self.tool_calls)


class Calls:
    """The calls of one answer: numbers them and gives them ids.

    Args:
        is_single: whether the client takes one call only; further ones are dropped.
    """

    def __init__(self, *, is_single: bool) -> None:
        self._is_single = is_single
        self._ids: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._ids)

    def add(self, name: str, arguments: str, model_id: str = "") -> list[ToolCall]:
        """Return the next call, or none where it is one too many.

        Args:
            name: of the function.
            arguments: the JSON text of an object.
            model_id: the model's own id of the call, if it gave one.
        """
        if self._is_single and self._ids:
            return []
        call_id = model_id if model_id and model_id not in self._ids else _new_id()
        call = ToolCall(len(self._ids), call_id, name, arguments)
        self._ids.add(call_id)
        return [call]


def read_call(call: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return name, arguments as JSON text, and the model's own id, if it has one, of a call.

    Raises one of `CALL_ERRORS` where it isn't one.
    """
    name, arguments = call["name"], call.get("arguments", call.get("parameters"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a tool call needs a name, got {name!r}")
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict | None):
        raise TypeError(f"the arguments of a call must be an object, got {arguments!r}")
    # The templates of some models read the ids that those models gave.
    model_id = call.get("id")
    if not isinstance(model_id, str) or not _NAME.fullmatch(model_id):
        model_id = ""
    return name, _dump(arguments or {}), model_id


def _dump(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, as the model escaped it: only an escape can carry it.
        return json.dumps(value, allow_nan=False)
    return text


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_ID_LENGTH))
