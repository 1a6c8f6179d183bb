"""The tools of a Messages request, as a chat completion has them.

Pure. A tool that has a `type` is the vendor's: its schema is known to the vendor's models alone.
"""

from collections.abc import Mapping

from strop.proxy.wire.members import (
    name_in,
    object_in,
    objects_in,
    optional_string,
    others_in,
    refuse,
)

Fields = Mapping[str, object]

# What says how the vendor's cloud offers a tool, not what it is, is left out.
_MEMBERS = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})


def tools_in(fields: Fields, left_out: list[str]) -> dict[str, object]:
    """Return the members of a chat completion that say which tools there are, and their choice.

    Args:
        fields: the request.
        left_out: takes the paths of tools that no other model can use, and of hints.

    Raises:
        BadRequest: they are malformed, or one that can't be offered must be used.
    """
    functions: dict[str, dict[str, object]] = {}
    for tool, path in objects_in(fields.get("tools"), "tools"):
        if tool.get("type") not in (None, "custom"):
            left_out.append(path)
            continue
        left_out += others_in(tool, path, _MEMBERS)
        name = name_in(tool, "name", path)
        if name in functions:
            refuse(f"{path}.name", "a name that no other tool has", name)
        functions[name] = _function(name, tool, path)
    chosen = fields.get("tool_choice")
    choice = {} if chosen is None else _choice(object_in(chosen, "tool_choice"), functions)
    if not functions:
        return {}
    return {"tools": [{"type": "function", "function": f} for f in functions.values()], **choice}


def _function(name: str, tool: Fields, path: str) -> dict[str, object]:
    function: dict[str, object] = {"name": name}
    if (description := optional_string(tool, "description", path)) is not None:
        function["description"] = description
    function["parameters"] = object_in(tool.get("input_schema"), f"{path}.input_schema")
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return function


def _choice(choice: Fields, functions: Mapping[str, object]) -> dict[str, object]:
    kind = choice.get("type")
    said: dict[str, object] = {}
    if kind == "tool":
        name = name_in(choice, "name", "tool_choice")
        if name not in functions:
            there = f"one of the tools that a model can call here, {sorted(functions)}"
            refuse("tool_choice.name", there, name)
        said["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind == "any":
        if not functions:
            refuse("tools", "at least one that a model can call here", None, "tool_choice is any")
        said["tool_choice"] = "required"
    elif kind in ("auto", "none"):
        said["tool_choice"] = kind
    else:
        refuse("tool_choice.type", "auto, any, tool or none", kind)
    if choice.get("disable_parallel_tool_use") is True:
        said["parallel_tool_calls"] = False
    return said
