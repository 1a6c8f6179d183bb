"""The messages and tools of a request as the template of gpt-oss wants them.

Pure. Knows no tokens; what the template makes of them is not its affair.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


def for_harmony(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `told` as the template of gpt-oss reads them, which passes over some in silence.

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
