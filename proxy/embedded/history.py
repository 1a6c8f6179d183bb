"""The messages and tools of a request as chat templates want them.

Pure. Knows no tokens; what a template makes of them is not its affair.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
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
    taken: set[int] = set()
    for at, message in enumerate(rest):
        if at in taken:
            continue
        calls = message.get("tool_calls")
        if not calls:
            result.append(message)
            continue
        for call in calls:
            result.append({**message, "tool_calls": [call]})
            message = {"role": "assistant", "content": ""}
            its = _result_of(call, rest, at + 1, taken)
            if its is not None:
                taken.add(its)
                result.append(rest[its])
    return result


def tools_for_harmony(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `tools` with what the template of gpt-oss adds to texts as text, or it refuses all.

    These are what each is for, and the default of a parameter whose values are listed.
    """
    return [{**tool, "function": _spelled(tool["function"])} for tool in tools]


def _spelled(function: Mapping[str, Any]) -> dict[str, Any]:
    result = {**function, "description": function.get("description") or ""}
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if isinstance(parameters, dict) and isinstance(properties, dict):
        spelled = {name: _with_text_default(schema) for name, schema in properties.items()}
        result["parameters"] = {**parameters, "properties": spelled}
    return result


def _with_text_default(schema: object) -> object:
    if not isinstance(schema, dict) or isinstance(schema.get("default", ""), str):
        return schema
    is_listed = schema.get("enum") or schema.get("oneOf")
    return {**schema, "default": json.dumps(schema["default"])} if is_listed else schema


def _result_of(
    call: Mapping[str, Any], told: Sequence[Mapping[str, Any]], start: int, taken: Collection[int]
) -> int | None:
    """Return where the result of a call stands among the calls and results from `start` on.

    One that names no call is of the first that has none.
    """
    for at in range(start, len(told)):
        each = told[at]
        if each["role"] == "tool":
            if at not in taken and each.get("tool_call_id", call.get("id")) == call.get("id"):
                return at
        elif not each.get("tool_calls"):
            break
    return None


def _thinking(message: dict[str, Any]) -> dict[str, Any]:
    # The second is the template's own name for it, which some clients know.
    thought, content = message.get("reasoning") or message.get("thinking"), message["content"]
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
