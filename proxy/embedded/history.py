"""The messages of a request as chat templates want them.

Pure. Knows no tokens; what a template makes of the messages is not its affair.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from strop.proxy.embedded.errors import BadRequest


def messages(given: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with text content, arguments as objects, and thoughts by both their names.

    Raises:
        BadRequest: a message is not as chat completions have it, or has what is no text.
    """
    return [_message(message) for message in given]


def for_harmony(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `messages` as the template of gpt-oss reads them, which passes over some in silence.

    It takes system messages in the first place only, thoughts as `thinking`, one call a message,
    whose results it gives the name of that call, and no text beside thought and call.
    """
    system = [each["content"] for each in told if each["role"] == "system" and each["content"]]
    rest = [_thinking(each) for each in told if each["role"] != "system"]
    result: list[dict[str, Any]] = []
    if system:
        result.append({"role": "system", "content": "\n\n".join(system)})
    while rest:
        message = rest.pop(0)
        first, *others = message.get("tool_calls") or [None]
        if not others:
            result.append(message)
            continue
        num_results = next((n for n, each in enumerate(rest) if each["role"] != "tool"), len(rest))
        results, rest = rest[:num_results], rest[num_results:]
        for call in (first, *others):
            result.append({**message, "tool_calls": [call]})
            message = {"role": "assistant", "content": ""}
            its = next((r for r in results if r.get("tool_call_id") == call.get("id")), None)
            if its is not None:
                results.remove(its)
                result.append(its)
        result += results
    return result


def _thinking(message: dict[str, Any]) -> dict[str, Any]:
    thought, content = message.get("reasoning"), message["content"]
    if message["role"] != "assistant" or not thought or not isinstance(thought, str):
        return {key: value for key, value in message.items() if key != "thinking"}
    if message.get("tool_calls") and content:
        # Where there is no thought, the template takes the text beside a call for one.
        return {**message, "thinking": f"{thought}\n{content}", "content": ""}
    return {**message, "thinking": thought}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as chat templates want it: text content, arguments as objects."""
    result = {key: value for key, value in message.items() if value is not None}
    result["content"] = _text(message.get("content"))
    if message["role"] == "developer":
        # OpenAI's newer name for it, which most templates would pass over in silence.
        result["role"] = "system"
    thought = message.get("reasoning") or message.get("reasoning_content")
    if isinstance(thought, str):
        result["reasoning"] = result["reasoning_content"] = thought
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise BadRequest("`tool_calls` must be a list", param="messages")
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
            raise BadRequest(
                f"message content must be text for the embedded engine, got type {kind!r}",
                param="messages",
            )
        texts.append(text)
    return "\n".join(texts)


def _call(call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise BadRequest("each of `tool_calls` must have a `function`", param="messages")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            arguments = parsed
    return {**call, "function": {**function, "arguments": arguments}}
