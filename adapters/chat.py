"""A chat as a base's chat template takes it: its messages, and what else is given.

Pure. Knows no template and no tokens. The embedded engine and the trainer both render with it, so
that their ids are the same.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

RESERVED: Final = frozenset(
    ("conversation", "messages", "tools", "documents", "chat_template", "tokenize", "return_dict",
     "return_tensors", "padding", "truncation", "max_length", "tokenizer_kwargs",
     "return_assistant_tokens_mask")
)  # fmt: skip
"""These choose what comes back or where the template comes from, not what it says."""


def arguments(given: Mapping[str, Any], *, must_call: bool) -> dict[str, Any]:
    """Return what the template is given beside messages and tools.

    Args:
        given: what the request has for it.
        must_call: whether the answer must be a tool call.
    """
    result = {"add_generation_prompt": True, **given}
    if result.get("continue_final_message"):
        result["add_generation_prompt"] = False
    if must_call:
        # The call comes first, so there is no place for thoughts.
        result.setdefault("enable_thinking", False)
    return result


def messages(given: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with text content, arguments as objects, and thoughts by both their names.

    Raises:
        ValueError: a message is not as chat completions have it, or has what is no text.
    """
    return [_message(message) for message in given]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in message.items() if value is not None}
    result["content"] = _text(message.get("content"))
    if message.get("role") == "developer":
        # OpenAI's newer name for it, which most templates would pass over in silence.
        result["role"] = "system"
    thought = message.get("reasoning") or message.get("reasoning_content")
    if isinstance(thought, str):
        result["reasoning"] = result["reasoning_content"] = thought
    calls = result.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise ValueError("`tool_calls` must be a list")
        result["tool_calls"] = [_call(call) for call in calls]
    else:
        result.pop("tool_calls", None)
    return result


def _text(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"message content must be text, got type {kind!r}")
        texts.append(text)
    return "\n".join(texts)


def _call(call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise ValueError("each of `tool_calls` must have a `function`")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            arguments = parsed
    return {**call, "function": {**function, "arguments": arguments}}
