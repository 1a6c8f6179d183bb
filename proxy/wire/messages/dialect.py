"""Anthropic's Messages API, said in chat completions.

Pure. Of the request, this has all but its messages and tools. Fields: Anthropic API reference,
"Messages", of the versions 2023-06-01 to 2026-10-21.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Final

from strop.proxy.wire import chat
from strop.proxy.wire.members import list_in, object_in, others_in, refuse
from strop.proxy.wire.messages.answer import MessageWriter, error_body
from strop.proxy.wire.messages.history import History
from strop.proxy.wire.messages.tools import tools_in
from strop.proxy.wire.translation import NOTHING, Earlier, Translated, stream_members

Fields = Mapping[str, object]

_READ = frozenset(
    {
        *("messages", "system", "max_tokens", "stop_sequences", "stream"),
        *("tools", "tool_choice", "output_config", "output_format"),
    }
)
# Hints, and services of the vendor's cloud, that change nothing of what is asked. Thinking is left
# to the engine, as is effort: Claude Code sends both in each request, and Ollama refuses
# `reasoning_effort` for a model that does not think.
_LEFT_OUT = frozenset(
    {
        *("thinking", "context_management", "service_tier", "speed", "inference_geo"),
        *("diagnostics", "betas", "user_profile_id", "workspace_id", "billing_policy"),
        *("fallbacks", "fallback_credit_token"),
    }
)
# Chat's own, which this dialect says in another way, or has no answer to.
_CHATS_OWN = frozenset(
    {
        *("n", "stop", "stream_options", "response_format", "parallel_tool_calls", "functions"),
        *("function_call", "max_completion_tokens", "logprobs", "top_logprobs"),
        *("modalities", "audio", "prediction", "web_search_options", "prompt"),
    }
)
# What happens in the vendor's cloud before the model answers.
_REFUSED = {
    "container": "strop runs no code: leave it out",
    "mcp_servers": "strop connects to no MCP servers: let your client do so",
    "compaction": "strop keeps no messages: let your client shorten them",
    "thread": "strop keeps no messages: send them all",
}
# The SDK's tool runner asks for a thread first, and sends all messages where it is told this.
_UNSUPPORTED: Final[Mapping[str, Mapping[str, object]]] = {
    "thread": {"details": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}},
}


class _Messages:
    """The dialect."""

    def refers_to(self, fields: Fields) -> Collection[str]:  # noqa: ARG002
        """Return nothing: a request repeats all that was said."""
        return ()

    def to_chat(
        self,
        fields: Fields,
        earlier: Mapping[str, Earlier] = NOTHING,  # noqa: ARG002
    ) -> Translated:
        """Return the chat completion that asks for what a request asks for.

        Raises:
            BadRequest: it is malformed, or asks for what no chat completion can do.
        """
        return _to_chat(fields)

    def to_count(self, fields: Fields) -> dict[str, object]:
        """Return the chat whose prompt is to be counted; it may end in an answer.

        Raises:
            BadRequest: it is malformed, or holds what no chat completion can.
        """
        # What is only counted says nothing of how long its answer may be.
        return _to_chat({"max_tokens": 1, **fields}, may_end_in_answer=True).fields

    def error(self, status: int, error: Fields) -> bytes:
        """Return the JSON body that says what the OpenAI error object `error` says."""
        return error_body(status, error)


MESSAGES: Final = _Messages()


def _to_chat(fields: Fields, *, may_end_in_answer: bool = False) -> Translated:
    left_out: list[str] = []
    history = History(left_out)
    history.add_system(fields.get("system"))
    for position, value in enumerate(chat.messages_of(fields)):
        path = f"messages[{position}]"
        history.add(object_in(value, path), path)
    said = _carried(fields, left_out)
    said["messages"] = history.finish(may_end_in_answer=may_end_in_answer)
    said["max_tokens"] = _max_tokens(fields.get("max_tokens"))
    said |= tools_in(fields, left_out)
    if stop := _strings(fields.get("stop_sequences"), "stop_sequences"):
        said["stop"] = stop
    if (wanted := _output_format(fields, left_out)) is not None:
        said["response_format"] = wanted
    said |= stream_members(fields)
    model = fields.get("model")
    return Translated(
        said, tuple(left_out), partial(MessageWriter, model if isinstance(model, str) else "")
    )


def _carried(fields: Fields, left_out: list[str]) -> dict[str, object]:
    """Return the members that chat completions, or engines, call by the same name."""
    said: dict[str, object] = {}
    for name, value in fields.items():
        if name in _READ or name == "cache_control" or value is None:
            continue
        if name in _LEFT_OUT or name in _CHATS_OWN:
            left_out.append(name)
        elif name in _REFUSED:
            if value:
                refuse(name, "left out", value, _REFUSED[name], _UNSUPPORTED.get(name))
        else:
            said[name] = value
    return said


def _max_tokens(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        refuse("max_tokens", "an integer from 1 on", value)
    return value


def _strings(value: object, path: str) -> list[object]:
    texts = list_in(value, path)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            refuse(f"{path}[{position}]", "a string", text)
    return texts


def _output_format(fields: Fields, left_out: list[str]) -> dict[str, object] | None:
    """Return what the answer has to look like; `output_format` is what it was called before."""
    config = fields.get("output_config")
    settings = {} if config is None else object_in(config, "output_config")
    left_out += others_in(settings, "output_config", ("format",))
    for path, value in (
        ("output_config.format", settings.get("format")),
        ("output_format", fields.get("output_format")),
    ):
        if value is not None:
            wanted = object_in(value, path)
            if wanted.get("type") != "json_schema":
                refuse(f"{path}.type", "json_schema", wanted.get("type"))
            schema = object_in(wanted.get("schema"), f"{path}.schema")
            named = {"name": "answer", "schema": schema, "strict": True}
            return {"type": "json_schema", "json_schema": named}
    return None
