"""The tools of a Responses request, as the functions of a chat completion.

Pure. Chat knows functions alone, in one list. A custom tool, which takes free text, becomes a
function of one string; a namespace's tools get its name before their own. What the vendor's cloud
runs, or only its models know how to call, is left out. Does not know what is called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from strop.proxy.errors import BadRequest
from strop.proxy.wire import body
from strop.proxy.wire.members import (
    name_in,
    object_in,
    objects_in,
    optional_string,
    others_in,
    refuse,
)

INPUT: Final = "input"
"""What the one parameter of a function is called that stands for a custom tool."""

_FUNCTION_MEMBERS = frozenset({"type", "name", "description", "parameters", "strict"})
_NAMESPACE_MEMBERS = frozenset({"type", "name", "tools"})
_CUSTOM_MEMBERS = frozenset({"type", "name", "description", "format"})
_MODES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the client names it."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


def function_name(name: str, namespace: str | None) -> str:
    """Return what the engine knows a tool by."""
    return f"{namespace}__{name}" if namespace else name


def custom_arguments(text: str) -> str:
    """Return the arguments with which a function is called that stands for a custom tool."""
    return body.dumps({INPUT: text}).decode()


def custom_input(arguments: str) -> str:
    """Return what a custom tool is called with; arguments of another form as they are."""
    try:
        given = body.loads(arguments.encode("utf-8", "surrogatepass"))
    except BadRequest:
        return arguments
    text = given.get(INPUT) if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments


class Toolbox:
    """The tools that a model may call.

    Attributes:
        functions: what a chat completion says of them.
        left_out: where in the request stands what it can't say.
    """

    def __init__(self) -> None:
        self.functions: list[dict[str, object]] = []
        self.left_out: list[str] = []
        self._tools: dict[str, Tool] = {}

    def called(self, function: str) -> Tool:
        """Return the tool that the engine knows as `function`; one that nobody gave is itself."""
        return self._tools.get(function) or Tool(function)

    def add(self, tools: object, path: str, namespace: str | None = None) -> None:
        """Take what the request has at `path`.

        Raises:
            BadRequest: it is malformed, or two tools are called the same.
        """
        for tool, here in objects_in(tools, path):
            kind = tool.get("type")
            if kind == "function":
                self._add_function(tool, here, namespace)
            elif kind == "custom":
                self._add_custom(tool, here, namespace)
            elif kind == "namespace" and namespace is None:
                self.left_out += others_in(tool, here, _NAMESPACE_MEMBERS)
                self.add(tool.get("tools"), f"{here}.tools", name_in(tool, "name", here))
            elif isinstance(kind, str):
                self.left_out.append(here)
            else:
                refuse(f"{here}.type", "a string such as `function`", kind)

    def choice(self, choice: object) -> dict[str, object]:
        """Return the chat members that say which tools there are, and which to call.

        Raises:
            BadRequest: `choice`, the request's `tool_choice`, forces a tool that is none of these.
        """
        said, functions = "auto" if choice is None else choice, self.functions
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            functions, said = self._allowed(choice)
        if isinstance(said, str):
            if said not in _MODES:
                refuse("tool_choice", f"one of {', '.join(_MODES)}, or an object", said)
            if not functions:
                if said == "required":
                    self._refuse_choice("tool_choice", choice)
                # Engines refuse a choice among no tools.
                return {}
            return {"tools": functions, "tool_choice": said}
        name = self._function_of(object_in(said, "tool_choice"), "tool_choice")
        if name is None:
            self._refuse_choice("tool_choice.type", said)
        return {
            "tools": functions,
            "tool_choice": {"type": "function", "function": {"name": name}},
        }

    def _add_function(self, tool: Mapping[str, object], path: str, namespace: str | None) -> None:
        self.left_out += others_in(tool, path, _FUNCTION_MEMBERS)
        name = self._named(tool, path, namespace)
        members = ("description", "parameters", "strict")
        said = {key: tool[key] for key in members if tool.get(key) is not None}
        self.functions.append({"type": "function", "function": {"name": name, **said}})

    def _add_custom(self, tool: Mapping[str, object], path: str, namespace: str | None) -> None:
        self.left_out += others_in(tool, path, _CUSTOM_MEMBERS)
        name = self._named(tool, path, namespace)
        texts = [optional_string(tool, "description", path) or ""]
        form = tool.get("format")
        if isinstance(form, dict) and form.get("type") == "grammar":
            # No engine binds a string inside a call to a grammar: the model is told of it.
            texts.append(f"The input follows this {form.get('syntax')} grammar:")
            texts.append(str(form.get("definition")))
        text = {"type": "string", "description": "The whole input, as plain text."}
        parameters = {
            "type": "object",
            "properties": {INPUT: text},
            "required": [INPUT],
            "additionalProperties": False,
        }
        function = {
            "name": name,
            "description": "\n\n".join(filter(None, texts)),
            "parameters": parameters,
        }
        self.functions.append({"type": "function", "function": function})

    def _named(self, tool: Mapping[str, object], path: str, namespace: str | None) -> str:
        own = name_in(tool, "name", path)
        name = function_name(own, namespace)
        known = Tool(own, namespace, is_custom=tool["type"] == "custom")
        if self._tools.setdefault(name, known) != known:
            advice = f"the model would know another tool as `{name}`, too; rename one of them"
            refuse(f"{path}.name", "a name of its own", own, advice)
        return name

    def _allowed(self, choice: Mapping[str, object]) -> tuple[list[dict[str, object]], object]:
        names: set[str | None] = set()
        for tool, path in objects_in(choice.get("tools"), "tool_choice.tools"):
            name = self._function_of(tool, path)
            if name is None:
                self.left_out.append(path)
            names.add(name)
        functions = [one for one in self.functions if _name_of(one) in names]
        return functions, choice.get("mode") or "auto"

    def _function_of(self, choice: Mapping[str, object], path: str) -> str | None:
        """Return the name of the function that `choice` means; None for no function at all."""
        if choice.get("type") not in ("function", "custom"):
            return None
        namespace = optional_string(choice, "namespace", path)
        name = function_name(name_in(choice, "name", path), namespace)
        if name not in self._tools:
            refuse(f"{path}.name", f"one of `tools` ({_listed(self._tools)})", name)
        return name

    def _refuse_choice(self, path: str, choice: object) -> None:
        said = choice.get("type", choice) if isinstance(choice, dict) else choice
        advice = "strop runs no tools of its own, and leaves such tools out"
        refuse(path, "a choice that a function or custom tool fulfils", said, advice)


def _name_of(function: Mapping[str, object]) -> object:
    named = function["function"]
    return named.get("name") if isinstance(named, dict) else None


def _listed(names: Mapping[str, object]) -> str:
    known: Sequence[str] = list(names)[:20]
    return ", ".join(known) or "there are none"
