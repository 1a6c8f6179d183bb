"""The kinds of items beside messages, reasoning and calls, and what calls and results have alike.

Pure. Does not know in which order they come.
"""

from collections.abc import Mapping
from typing import Final

from strop.proxy.wire.members import name_in

# Calls that only the vendor's models know how to make, and the member that says what is called.
BUILT_IN_CALLS: Final = {
    "local_shell_call": "action",
    "shell_call": "action",
    "apply_patch_call": "operation",
}
RESULTS: Final = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
    }
)
OF_THE_CLOUD: Final = frozenset(
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


def call_id(item: Mapping[str, object], path: str) -> str:
    """Return the id that a call and its result share."""
    return name_in(item, "id" if item.get("call_id") is None else "call_id", path)


def is_content(output: object) -> bool:
    """Whether `output` is a text or content parts, and not the record of what a shell did."""
    if isinstance(output, list):
        return all(isinstance(part, dict) and "type" in part for part in output)
    return isinstance(output, str)
