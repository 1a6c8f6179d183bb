"""A request of the Responses API becomes the chat completion that asks for the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses_client import DIGITS, asked, parsed

from strop.proxy.errors import BadRequest
from strop.proxy.inline import MARK, find_command, without_commands
from strop.proxy.wire.responses.dialect import RESPONSES
from strop.proxy.wire.translation import Translated

Fields = dict[str, Any]

WEATHER: Fields = {
    "type": "function",
    "name": "weather",
    "description": "Current weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
PATCH: Fields = {
    "type": "custom",
    "name": "patch",
    "description": "Change files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
AGENTS: Fields = {
    "type": "namespace",
    "name": "agents",
    "description": "Other agents.",
    "tools": [{"type": "function", "name": "close"}, {"type": "custom", "name": "tell"}],
}
SEARCH: Fields = {"type": "web_search", "external_web_access": True}


def chat(*items: object, **members: object) -> Fields:
    """Return the chat completion that a request becomes."""
    return translated(*items, **members).fields


def translated(*items: object, **members: object) -> Translated:
    """Return a request with these items, translated."""
    return RESPONSES.to_chat(asked(list(items) or "Hello", **members))


def listed(found: Translated, name: str) -> list[Fields]:
    """Return the chat completion's messages or tools."""
    said = found.fields[name]
    assert isinstance(said, list)
    return said


def messages(*items: object, **members: object) -> list[Fields]:
    """Return the chat messages that items become."""
    found: list[Fields] = chat(*items, **members)["messages"]
    return found


def says(role: str, content: object) -> Fields:
    """Return a message item."""
    return {"type": "message", "role": role, "content": content}


def text(said: str) -> list[Fields]:
    """Return content of one text part."""
    return [{"type": "input_text", "text": said}]


def calls(name: str, identity: str = "call_1", arguments: str = "{}") -> Fields:
    """Return a function call item."""
    return {"type": "function_call", "call_id": identity, "name": name, "arguments": arguments}


def gives(output: object, identity: str = "call_1", kind: str = "function_call") -> Fields:
    """Return the item that holds a call's result."""
    return {"type": f"{kind}_output", "call_id": identity, "output": output}


def test_a_string_is_what_the_user_says() -> None:
    """Instructions are the system's."""
    assert [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
    ] == messages(instructions="Be short.")


def test_one_text_is_a_string_and_several_are_parts() -> None:
    """The last part of a message may be a command, so parts are kept apart."""
    context = "<system-reminder>x</system-reminder>"
    (one,) = messages(says("user", text("Hi")))
    (several,) = messages(says("user", text(context) + text("/rl good")))

    assert "Hi" == one["content"]
    assert [context, "/rl good"] == [part["text"] for part in several["content"]]
    assert find_command([several])


def test_what_stands_before_a_command_in_its_message_is_said_by_itself() -> None:
    """So it stays where the command is taken out."""
    typed = says("user", text("So?") + text("Please.") + text("/rl bad"))

    found = messages(says("user", "Hi"), typed)
    later = messages(
        says("user", "Hi"), typed, says("assistant", f"{MARK}Rated."), says("user", "On.")
    )

    said = [{"type": "text", "text": one} for one in ("So?", "Please.")]
    asked = {"role": "user", "content": [{"type": "text", "text": "Hi"}, *said]}
    assert [asked, {"role": "user", "content": "/rl bad"}] == found
    asked["content"] = [*asked["content"], {"type": "text", "text": "On."}]
    assert [asked] == without_commands(later)


def test_images_files_and_audio_are_carried() -> None:
    """As data: URLs, and with what chat knows of their detail."""
    found = translated(
        says(
            "user",
            [
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
                {"type": "input_image", "image_url": "data:image/png;base64,BB", "detail": "huge"},
                {"type": "input_file", "file_data": "data:text/plain,x", "filename": "a.txt"},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            ],
        )
    )

    assert [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,BB"}},
        {"type": "file", "file": {"file_data": "data:text/plain,x", "filename": "a.txt"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ] == listed(found, "messages")[0]["content"]
    assert ("input[0].content[1].detail",) == found.left_out


def test_all_that_stands_before_the_first_answer_is_one_system_message() -> None:
    """Templates such as Qwen's take one, as the first, and know no developer."""
    found = messages(
        says("developer", text("You are Codex.")),
        says("user", text("<environment_context>")),
        says("developer", text("<skills>") + text("<permissions>")),
        says("user", text("Hi")),
        instructions="Be short.",
    )

    told = "Be short.\n\nYou are Codex.\n\n<skills>\n\n<permissions>"
    assert [("system", told), ("user", "<environment_context>\n\nHi")] == [
        (one["role"], one["content"]) for one in found
    ]


def test_a_later_developer_message_stays_where_it_stands() -> None:
    """The beginning of the prompt is that of the request before, which an engine has computed."""
    before = [says("developer", "Be short."), says("user", "Hi"), says("assistant", "Hello.")]
    later = [says("developer", "Read only."), says("user", "Go on.")]

    found = messages(*before, *later)

    assert messages(*before) == found[:3]
    assert [
        {
            "role": "user",
            "content": "<system-reminder>\nRead only.\n</system-reminder>\n\nGo on.",
        }
    ] == found[3:]


def test_a_developer_message_in_a_tool_loop_begins_no_turn() -> None:
    """It stands behind the last result."""
    loop = [says("user", "Hi"), calls("weather"), gives("21 degrees")]

    found = messages(*loop, says("developer", "Hurry."))
    image = {"type": "input_image", "image_url": "data:,"}
    parts = messages(*loop[:2], gives([image]), says("developer", "Hurry."))

    assert ["user", "assistant", "tool"] == [one["role"] for one in found]
    note = "<system-reminder>\nHurry.\n</system-reminder>"
    assert f"21 degrees\n\n{note}" == found[2]["content"]
    assert ["image_url", "text"] == [part["type"] for part in parts[2]["content"]]


def test_a_command_is_a_message_of_its_own_and_stays_the_last() -> None:
    """What clients add before and behind it does not hide it."""
    found = messages(
        says("user", "Hi"),
        says("assistant", "Hello."),
        says("user", "<environment_context>"),
        says("user", text("/rl good short")),
        says("developer", "From a hook."),
    )

    assert find_command(found)
    assert ["user", "assistant", "user", "user"] == [one["role"] for one in found]


def test_what_stood_before_a_command_is_said_with_what_comes_after_it() -> None:
    """Where the command was, two messages of the user's would stand in a row."""
    found = messages(
        says("user", "<turn_aborted>"),
        says("user", "/rl bad"),
        says("assistant", f"{MARK}Rated."),
        says("user", "/rl undo"),
        says("assistant", f"{MARK}Undone."),
        says("user", "And now?"),
    )

    assert ["user", "assistant", "user", "assistant", "user"] == [one["role"] for one in found]
    told = [{"type": "text", "text": said} for said in ("<turn_aborted>", "And now?")]
    assert [{"role": "user", "content": told}] == without_commands(found)


@pytest.mark.parametrize("kind", ["own", "end"])
@pytest.mark.parametrize("before", [[], ["/rl good"]])
def test_what_strop_has_said_itself_never_reaches_the_model(before: list[str], kind: str) -> None:
    """It is known by its id, also where its client keeps it without the command, behind a call."""
    called: Fields = {
        "type": "function_call",
        "call_id": "c1",
        "name": "weather",
        "arguments": "{}",
    }
    own = {**says("assistant", "Rated."), "id": f"msg_{DIGITS}_{kind}{'0' * 16}"}

    found = messages(
        says("user", "Hi"),
        called,
        *(says("user", command) for command in before),
        own,
        says("user", "And now?"),
    )

    kept: list[Any] = without_commands(found) or found
    assert ["user", "assistant", "user"] == [one["role"] for one in kept]
    assert kept[1]["content"] is None
    assert "And now?" == kept[2]["content"]


def test_users_in_a_row_are_one_message() -> None:
    """Some templates want users and assistants in turn."""
    image = {"type": "input_image", "image_url": "data:,"}

    (texts,) = messages(says("user", "One."), says("user", text("Two.")))
    (mixed,) = messages(says("user", "One."), says("user", [image]))

    assert "One.\n\nTwo." == texts["content"]
    assert ["text", "image_url"] == [part["type"] for part in mixed["content"]]


def test_results_stand_behind_the_calls_that_they_are_of() -> None:
    """In the order of the calls, also where a client put something between.

    Some templates show no ids. A result of no known call stays in its place.
    """
    found = messages(
        calls("weather", "call_1"),
        calls("weather", "call_2"),
        says("user", "And?"),
        gives("warm", "call_2"),
        gives("cold", "call_1"),
        gives("lost", "call_9"),
    )

    assert ["assistant", "tool", "tool", "user", "tool"] == [one["role"] for one in found]
    assert ["call_1", "call_2"] == [one["tool_call_id"] for one in found[1:3]]
    assert {"role": "tool", "tool_call_id": "call_9", "content": "lost"} == found[4]


def test_calls_and_results_of_every_kind_are_functions() -> None:
    """A custom tool's input is the one argument; a built-in tool's action is its arguments."""
    found = messages(
        {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": 'say "é"'},
        {**calls("close", "b"), "namespace": "agents"},
        {"type": "local_shell_call", "id": "c", "action": {"command": ["ls"]}},
        gives("ok", "a", "custom_tool_call"),
        gives([{"type": "input_image", "image_url": "data:,"}], "b"),
        {"type": "local_shell_call_output", "id": "c", "output": "file"},
    )

    assert [
        ("a", "patch", '{"input":"say \\"é\\""}'),
        ("b", "agents__close", "{}"),
        ("c", "local_shell", '{"command":["ls"]}'),
    ] == [
        (one["id"], one["function"]["name"], one["function"]["arguments"])
        for one in found[0]["tool_calls"]
    ]
    assert [
        ("a", "ok"),
        ("b", [{"type": "image_url", "image_url": {"url": "data:,"}}]),
        ("c", "file"),
    ] == [(one["tool_call_id"], one["content"]) for one in found[1:]]


def test_a_result_of_several_texts_is_one() -> None:
    """Codex gives what a tool of an MCP server says so; some templates print a list as it is."""
    (found,) = messages(gives(text("Wall time: 1 s\nOutput:") + text("21 degrees")))

    assert "Wall time: 1 s\nOutput:\n21 degrees" == found["content"]


def test_what_a_shell_did_is_told_as_json() -> None:
    """And a result without any output by its status."""
    found = messages(
        gives([{"stdout": "x", "stderr": ""}], "a", "shell_call"),
        {"type": "apply_patch_call_output", "call_id": "b", "status": "failed"},
    )

    assert ['[{"stdout":"x","stderr":""}]', "failed"] == [one["content"] for one in found]


def test_what_the_cloud_did_is_left_out() -> None:
    """With its place in the request; another vendor's sealed reasoning, too."""
    found = translated(
        says("user", "Hi"),
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
        says("assistant", [{"type": "output_text", "text": "Hello."}]),
    )

    assert ["Hi", "Hello."] == [one["content"] for one in listed(found, "messages")]
    assert ("input[1]", "input[2].encrypted_content") == found.left_out


def test_functions_custom_tools_and_namespaces_are_functions() -> None:
    """A custom tool takes one string, and its grammar is told; what the cloud runs is left out."""
    found = translated(tools=[WEATHER, PATCH, AGENTS, SEARCH])

    functions = [tool["function"] for tool in listed(found, "tools")]
    assert ["weather", "patch", "agents__close", "agents__tell"] == [
        function["name"] for function in functions
    ]
    assert {key: WEATHER[key] for key in WEATHER if key != "type"} == functions[0]
    assert ["input"] == functions[1]["parameters"]["required"]
    assert functions[1]["description"] == (
        "Change files.\n\nThe input follows this lark grammar:\n\nstart: /.+/"
    )
    assert ("tools[2].description", "tools[3]") == found.left_out


def test_tools_given_in_the_middle_are_tools() -> None:
    """An item may add some."""
    found = chat(
        says("user", "Hi"),
        {"type": "additional_tools", "role": "developer", "tools": [WEATHER]},
        tools=[PATCH],
    )

    assert ["patch", "weather"] == [tool["function"]["name"] for tool in found["tools"]]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ("required", "required"),
        ("none", "none"),
        ({"type": "function", "name": "weather"}, "weather"),
        ({"type": "custom", "name": "patch"}, "patch"),
        ({"type": "function", "name": "close", "namespace": "agents"}, "agents__close"),
    ],
)
def test_a_choice_of_tools_is_carried(choice: object, expected: str) -> None:
    """By the name that the engine knows."""
    found = chat(tools=[WEATHER, PATCH, AGENTS], tool_choice=choice)["tool_choice"]

    named = found if isinstance(found, str) else found["function"]["name"]
    assert expected == named


def test_allowed_tools_are_the_only_ones_there() -> None:
    """With the mode that is asked for."""
    allowed = [{"type": "function", "name": "weather"}, {"type": "web_search"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}

    found = translated(tools=[WEATHER, PATCH], tool_choice=choice)

    assert ["weather"] == [tool["function"]["name"] for tool in listed(found, "tools")]
    assert "required" == found.fields["tool_choice"]
    assert ("tool_choice.tools[1]",) == found.left_out


def test_without_tools_there_is_nothing_to_choose() -> None:
    """Engines refuse a choice among none."""
    found = chat(tools=[SEARCH], tool_choice="auto", parallel_tool_calls=True)

    assert not found.keys() & {"tools", "tool_choice", "parallel_tool_calls"}


def test_what_chat_has_is_carried() -> None:
    """Under chat's names, and what no dialect declares as it is, for engines that know it."""
    found = translated(
        tools=[WEATHER],
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        metadata={"session_id": "s"},
        user="u",
        prompt_cache_key="k",
        store=False,
        top_k=3,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        stream=True,
    )

    expected = {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "metadata": {"session_id": "s"},
        "user": "u",
        "prompt_cache_key": "k",
        "store": False,
        "top_k": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert {"model", "messages", "tools", "tool_choice", *expected} == found.fields.keys()
    assert expected == {key: found.fields[key] for key in expected}
    assert () == found.left_out


def test_a_format_is_carried() -> None:
    """A schema with its name, or any JSON."""
    schema = {"type": "object"}
    form = {"type": "json_schema", "name": "report", "schema": schema, "strict": True}

    assert {
        "type": "json_schema",
        "json_schema": {"name": "report", "schema": schema, "strict": True},
    } == chat(text={"format": form})["response_format"]
    assert {"type": "json_object"} == chat(text={"format": {"type": "json_object"}})[
        "response_format"
    ]
    assert "response_format" not in chat(text={"format": {"type": "text"}})


def test_the_last_answer_is_known_by_its_items_name() -> None:
    """It alone: an earlier one says nothing of what a history ends in."""
    first, last = (
        {
            "type": "message",
            "role": "assistant",
            "id": f"msg_{letter * 32}",
            "content": [{"type": "output_text", "text": letter}],
        }
        for letter in "ab"
    )
    unnamed = {name: value for name, value in last.items() if name != "id"}
    again = {"role": "user", "content": "again"}

    assert "b" * 32 == translated(first, again, last, again).last_answer
    assert translated(first, again, unnamed, again).last_answer is None


def test_hints_to_the_cloud_are_left_out() -> None:
    """Named by their place; what asks for nothing is not named."""
    found = translated(
        include=["reasoning.encrypted_content"],
        client_metadata={"x": "y"},
        truncation="auto",
        text={"verbosity": "low"},
        reasoning={"effort": "extreme", "context": "all_turns"},
        stream_options={"include_obfuscation": False},
        top_logprobs=3,
        background=False,
        previous_response_id=None,
    )

    assert {
        "include[0]",
        "client_metadata",
        "truncation",
        "text.verbosity",
        "reasoning.effort",
        "reasoning.context",
        "top_logprobs",
    } == set(found.left_out)
    assert {"model", "messages"} == found.fields.keys()


REFUSED: list[tuple[Fields, str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [3]}, "input[0]"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
    ({"input": [{"type": "item_reference"}]}, "input[0].id"),
    ({"input": [{"id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0].type"),
    ({"input": [says("robot", "Hi")]}, "input[0].role"),
    ({"input": [says("user", 3)]}, "input[0].content"),
    ({"input": [says("user", [{"type": "video"}])]}, "input[0].content[0].type"),
    (
        {"input": [says("user", [{"type": "input_image", "file_id": "f"}])]},
        "input[0].content[0].image_url",
    ),
    (
        {"input": [says("user", [{"type": "input_file", "file_url": "u"}])]},
        "input[0].content[0].file_data",
    ),
    (
        {"input": [says("developer", [{"type": "input_image", "image_url": "u"}])]},
        "input[0].content[0].type",
    ),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "x"}]}, "input[0].arguments"),
    ({"input": [{**calls("x"), "call_id": None}]}, "input[0].id"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"messages": []}, "messages"),
    ({"background": True}, "background"),
    ({"n": 2}, "n"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": 5}, "stream_options"),
    ({"instructions": ["x"]}, "instructions"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [{"name": "x"}]}, "tools[0].type"),
    ({"tools": [{**WEATHER, "name": "agents__close"}, AGENTS]}, "tools[1].tools[0].name"),
    ({"tools": [SEARCH], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [SEARCH], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}},
        "tool_choice.name",
    ),
    ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"reasoning": "high"}, "reasoning"),
]


@pytest.mark.parametrize(("members", "param"), REFUSED, ids=[param for _, param in REFUSED])
def test_what_is_malformed_or_beyond_chat_is_refused(members: Fields, param: str) -> None:
    """The error names the place in the client's own request."""
    with pytest.raises(BadRequest) as refused:
        RESPONSES.to_chat({**asked(), **members})

    assert param == refused.value.param
    assert f"`{param}`" in refused.value.message


names = st.sampled_from(
    [
        *("type", "role", "content", "text", "name", "id", "call_id", "output", "tools", "input"),
        *("arguments", "summary", "format", "namespace", "image_url", "status", "schema", "mode"),
    ]
)
words = st.sampled_from(
    [
        *("message", "user", "assistant", "developer", "function_call", "function_call_output"),
        *("custom_tool_call", "reasoning", "input_text", "input_image", "function", "custom"),
        *("namespace", "allowed_tools", "json_schema", "local_shell_call", "additional_tools"),
        *("input_file", "shell_call_output", "auto", "grammar", "item_reference"),
    ]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=3)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
    max_leaves=20,
)
members = st.sampled_from(
    [
        *("model", "input", "instructions", "tools", "tool_choice", "text", "reasoning", "stream"),
        *("include", "stream_options", "top_logprobs", "metadata", "parallel_tool_calls", "n"),
    ]
)


@given(st.dictionaries(members | st.text(max_size=3), values, max_size=5))
def test_any_object_is_translated_or_refused(fields: Fields) -> None:
    """With no other error; and what answers it can be written."""
    try:
        found = RESPONSES.to_chat({"input": "Hello", **fields})
    except BadRequest:
        return

    assert found.fields["messages"]
    assert parsed(found.writer(DIGITS).begin(), is_declared=False)
