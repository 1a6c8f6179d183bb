"""OpenAI's Responses API, said in chat completions.

Pure. Of the request, this has all but its items and tools. What only the vendor's cloud can do is
left out where it is a hint, and refused where the answer would be another. Fields: OpenAI API
reference, "Responses".
"""

from collections.abc import Collection, Mapping
from typing import Final

from strop.proxy.inline import find_command, without_commands
from strop.proxy.wire import body
from strop.proxy.wire.members import (
    list_in,
    name_in,
    object_in,
    optional_string,
    others_in,
    refuse,
)
from strop.proxy.wire.responses.history import History
from strop.proxy.wire.responses.object import Envelope
from strop.proxy.wire.responses.references import (
    FINISHED,
    NOTHING_BEFORE,
    SEND_AGAIN,
    SEND_ALL,
    UNFINISHED,
    answer_above,
    answer_before,
    answers_in,
)
from strop.proxy.wire.responses.stream import ResponseWriter
from strop.proxy.wire.responses.tools import Toolbox
from strop.proxy.wire.translation import (
    NOTHING,
    Earlier,
    Translated,
    Translation,
    stream_members,
)

# What chat completions call otherwise, or mean otherwise by.
_TRANSLATED = frozenset(
    {
        "background",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "parallel_tool_calls",
        "previous_response_id",
        "reasoning",
        "stream",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)
# Hints to the vendor's cloud; with the values that ask for nothing.
_HINTS: Final[Mapping[str, tuple[object, ...]]] = {
    "access_programs": (),
    "client_metadata": (),
    "context_management": ([],),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "truncation": ("disabled",),
}
_REFUSED: Final[Mapping[str, str]] = {
    "conversation": "strop keeps no such objects: send `input`, or `previous_response_id`",
    "prompt": "strop keeps no templates: send the text itself in `instructions` and `input`",
    "n": "a response is one answer: ask several times",
    "messages": "this is the Responses dialect: send `input`, or use /v1/chat/completions",
}
# Chat's names of members, and this dialect's.
_SENT_AS: Final[Mapping[str, str]] = {
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
_LOGPROBS: Final = "message.output_text.logprobs"
_EFFORTS: Final = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})


class _Responses:
    """The dialect."""

    def refers_to(self, fields: Mapping[str, object]) -> Collection[str]:
        """Return the digits of the response before, and of the answers that items refer to."""
        return answers_in(fields)

    def to_chat(
        self, fields: Mapping[str, object], earlier: Mapping[str, Earlier] = NOTHING
    ) -> Translated:
        """Return the chat completion that asks for what a request asks for.

        Raises:
            BadRequest: it is malformed, or asks for what no chat completion can do.
        """
        _refuse_state(fields)
        left_out = [
            name
            for name, nothing in _HINTS.items()
            if (value := fields.get(name)) is not None and value not in nothing
        ]
        # The rest has the same name in chat, such as `metadata`, or is some engine's own.
        read = _TRANSLATED | _HINTS.keys() | _REFUSED.keys()
        said = {
            key: value for key, value in fields.items() if key not in read and value is not None
        }
        history = History(earlier)
        if instructions := fields.get("instructions"):
            _instruct(history, instructions)
        follows = _resume(history, fields, earlier)
        history.read(fields.get("input"))
        said["messages"] = messages = history.messages()
        if not messages:
            refuse("input", "at least one message", fields.get("input"))
        is_command = find_command(messages) is not None
        says_more = is_command and _says_more(fields.get("input"), earlier)
        if is_command and follows is None and not says_more:
            follows = NOTHING_BEFORE
        tools = Toolbox()
        tools.add(fields.get("tools"), "tools")
        for path, more in history.tools:
            tools.add(more, path)
        said |= tools.choice(fields.get("tool_choice"))
        if "tools" in said and fields.get("parallel_tool_calls") is not None:
            said["parallel_tool_calls"] = fields["parallel_tool_calls"]
        if fields.get("max_output_tokens") is not None:
            said["max_tokens"] = fields["max_output_tokens"]
        said |= stream_members(fields)
        left_out += _stream_options(fields)
        said |= _format(fields, left_out)
        said |= _logprobs(fields, left_out)
        said |= _reasoning(fields, left_out)
        envelope = Envelope(fields, tools, has_logprobs=said.get("logprobs") is True)
        return Translated(
            fields=said,
            left_out=(*left_out, *tools.left_out, *history.left_out),
            writer=lambda digits: ResponseWriter(envelope, digits),
            follows=follows,
            last_answer=history.last_answer,
            says_more=says_more,
        )

    def error(self, status: int, error: Mapping[str, object]) -> bytes:  # noqa: ARG002
        """Return the JSON body that says what the OpenAI error object `error` says."""
        named = error.get("param")
        sent = _SENT_AS.get(named) if isinstance(named, str) else None
        return body.dumps({"error": {**error, "param": sent} if sent else error})


RESPONSES: Final[Translation] = _Responses()


def _refuse_state(fields: Mapping[str, object]) -> None:
    for name, advice in _REFUSED.items():
        if (value := fields.get(name)) is not None:
            refuse(name, "absent", value, advice)
    if fields.get("background"):
        advice = "strop answers at once or streams; leave it out"
        refuse("background", "false", fields["background"], advice)


def _instruct(history: History, instructions: object) -> None:
    if not isinstance(instructions, str):
        refuse("instructions", "a string", instructions)
    history.instruct(instructions)


def _resume(
    history: History, fields: Mapping[str, object], earlier: Mapping[str, Earlier]
) -> str | None:
    """Take the conversation that goes on; return the digits of its last answer."""
    name = fields.get("previous_response_id")
    if name is None:
        return None
    if above := answer_above(name):
        advice = SEND_AGAIN.format(f"resp_{above}")
        refuse("previous_response_id", "a response to go on from", name, advice)
    answer = answer_before(name)
    if answer == NOTHING_BEFORE:
        return answer
    before = earlier.get(answer) if answer else None
    if answer is None or before is None:
        refuse("previous_response_id", "a response that strop has", name, SEND_ALL)
    if not before.is_whole:
        refuse("previous_response_id", FINISHED, name, UNFINISHED)
    history.resume(before, answer)
    return answer


def _says_more(items: object, earlier: Mapping[str, Earlier]) -> bool:
    """Whether an `input` says anything beside commands, and strop's answers to them."""
    alone = History(earlier)
    alone.read(items)
    return without_commands(alone.messages()) != []


def _stream_options(fields: Mapping[str, object]) -> list[str]:
    options = fields.get("stream_options")
    if options is None:
        return []
    return others_in(object_in(options, "stream_options"), "stream_options", ())


def _format(fields: Mapping[str, object], left_out: list[str]) -> dict[str, object]:
    if fields.get("text") is None:
        return {}
    text = object_in(fields["text"], "text")
    left_out += others_in(text, "text", ("format",))
    if text.get("format") is None:
        return {}
    wanted = object_in(text["format"], "text.format")
    kind = wanted.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    if kind != "json_schema":
        refuse("text.format.type", "text, json_object or json_schema", kind)
    schema: dict[str, object] = {"name": name_in(wanted, "name", "text.format")}
    schema["schema"] = object_in(wanted.get("schema"), "text.format.schema")
    schema |= {
        name: wanted[name] for name in ("description", "strict") if wanted.get(name) is not None
    }
    return {"response_format": {"type": kind, "json_schema": schema}}


def _logprobs(fields: Mapping[str, object], left_out: list[str]) -> dict[str, object]:
    included = list_in(fields.get("include"), "include")
    left_out += [
        f"include[{position}]" for position, what in enumerate(included) if what != _LOGPROBS
    ]
    top = fields.get("top_logprobs")
    if _LOGPROBS in included:
        return {"logprobs": True} if top is None else {"logprobs": True, "top_logprobs": top}
    if top:
        left_out.append("top_logprobs")
    return {}


def _reasoning(fields: Mapping[str, object], left_out: list[str]) -> dict[str, object]:
    """Return the effort. Who asks for a summary gets the thoughts in its place."""
    if fields.get("reasoning") is None:
        return {}
    reasoning = object_in(fields["reasoning"], "reasoning")
    left_out += others_in(reasoning, "reasoning", ("effort", "summary", "generate_summary"))
    effort = optional_string(reasoning, "effort", "reasoning")
    if effort is None:
        return {}
    if effort not in _EFFORTS:
        left_out.append("reasoning.effort")
        return {}
    return {"reasoning_effort": effort}
