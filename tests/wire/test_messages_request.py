"""What a Messages request asks for is asked for in a chat completion, or refused."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.proxy.errors import BadRequest
from strop.proxy.inline import MARK, Command, find_command, without_commands
from strop.proxy.wire import body
from strop.proxy.wire.messages.dialect import MESSAGES
from strop.proxy.wire.translation import Translated

Item = dict[str, Any]

TOOL: Item = {"name": "weather", "description": "In a city", "input_schema": {"type": "object"}}
SEARCH: Item = {"type": "web_search_20250305", "name": "web_search"}
CALL: Item = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}}
PNG: Item = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
IMAGE: Item = {"type": "image", "source": PNG}
PICTURE: Item = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def translated(*messages: Item, **fields: Any) -> Translated:
    """Return what a request becomes."""
    return MESSAGES.to_chat({"model": "m", "max_tokens": 9, "messages": list(messages), **fields})


def messages_of(said: Translated) -> list[Item]:
    """Return the chat's messages."""
    messages = said.fields["messages"]
    assert isinstance(messages, list)
    return messages


def chat_of(*messages: Item, **fields: Any) -> list[Item]:
    """Return the messages of the chat that a request becomes."""
    return messages_of(translated(*messages, **fields))


def user(*content: Any) -> Item:
    """Return a user's message: a string, or blocks."""
    plain = len(content) == 1 and isinstance(content[0], str)
    return {"role": "user", "content": content[0] if plain else list(content)}


def assistant(*blocks: Any) -> Item:
    """Return an assistant's message."""
    return {"role": "assistant", "content": list(blocks)}


def system(text: str) -> Item:
    """Return a system message."""
    return {"role": "system", "content": text}


def text(said: str) -> Item:
    """Return a text block."""
    return {"type": "text", "text": said}


def result(said: Any, identity: str = "c1", **members: Any) -> Item:
    """Return a tool's result."""
    return {"type": "tool_result", "tool_use_id": identity, "content": said, **members}


NOTE = text("<system-reminder>\nplan\n</system-reminder>")


def test_what_both_dialects_have_goes_by_chats_name() -> None:
    """The limits, the sampling, the session, and what only an engine may know."""
    said = translated(
        user("hi"),
        stop_sequences=["##"],
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        metadata={"user_id": "u"},
        min_p=0.1,
        reasoning_effort="low",
        chat_template_kwargs={"enable_thinking": False},
        cache_control={"type": "ephemeral"},
        container=None,
    )

    assert {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "stop": ["##"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "metadata": {"user_id": "u"},
        "min_p": 0.1,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    } == said.fields
    assert () == said.left_out


def test_a_stream_is_asked_for_with_its_usage() -> None:
    """It is said at the end of a stream in this dialect, always."""
    fields = translated(user("hi"), stream=True).fields

    assert (True, {"include_usage": True}) == (fields["stream"], fields["stream_options"])


def test_hints_and_services_of_the_cloud_are_left_out_by_name() -> None:
    """As Claude Code sends them in every request; chat's own names have no meaning here."""
    said = translated(
        user("hi"),
        thinking={"type": "adaptive"},
        context_management={"edits": []},
        output_config={"effort": "high", "verbosity": "low", "task_budget": None},
        n=3,
        logprobs=True,
    )

    assert {"model", "messages", "max_tokens"} == set(said.fields)
    assert {
        *("thinking", "context_management", "output_config.effort", "output_config.verbosity"),
        *("n", "logprobs"),
    } == set(said.left_out)


@pytest.mark.parametrize("name", ["output_format", "output_config"])
def test_an_output_format_is_a_response_format(name: str) -> None:
    """Under its old name, too."""
    wanted = {"type": "json_schema", "schema": {"type": "object"}}

    fields = translated(
        user("hi"), **{name: wanted if name == "output_format" else {"format": wanted}}
    ).fields

    assert {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
    } == fields["response_format"]


def test_the_system_prompt_is_one_message_of_text() -> None:
    """Without the line for the vendor's accounts, which differs from conversation to conversation.

    An engine could use nothing of one conversation's prompt for the next.
    """
    blocks = [
        text("x-anthropic-billing-header: cc_version=2.1.197.c19;"),
        text("Be"),
        text("brief"),
    ]

    said = translated(user("hi"), system=blocks)

    assert [{"role": "system", "content": "Be\n\nbrief"}, user("hi")] == said.fields["messages"]
    assert ("system[0]",) == said.left_out
    assert "Be" == chat_of(user("hi"), system="Be")[0]["content"]


def test_a_users_content_is_a_string_where_it_is_one_text_else_parts() -> None:
    """Images go by their URL, documents as a file or by their text, search results by theirs."""
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "BBBB"}

    (one,) = chat_of(user(text("hi")))
    (several,) = chat_of(
        user(
            {**text("hi"), "cache_control": {"type": "ephemeral"}},
            IMAGE,
            {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}},
            {"type": "document", "title": "T", "source": {"type": "text", "data": "doc"}},
            {"type": "document", "source": {"type": "content", "content": [text("part")]}},
            {
                "type": "document",
                "title": "Q",
                "context": "by R",
                "source": {"type": "content", "content": [text("one"), IMAGE, text("two")]},
            },
            {
                "type": "document",
                "context": "by R",
                "source": {"type": "content", "content": [IMAGE, text("three")]},
            },
            {"type": "document", "title": "P", "source": pdf},
            {"type": "document", "source": pdf},
            {"type": "search_result", "title": "S", "source": "u", "content": [text("found")]},
        )
    )

    assert {"role": "user", "content": "hi"} == one
    assert [
        text("hi"),
        PICTURE,
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
        text("Document: T\ndoc"),
        text("Document: untitled\npart"),
        text("Document: Q\nby R\none"),
        PICTURE,
        text("Document: Q\ntwo"),
        text("Document: untitled\nby R"),
        PICTURE,
        text("Document: untitled\nthree"),
        text("Document: P"),
        {
            "type": "file",
            "file": {"file_data": "data:application/pdf;base64,BBBB", "filename": "P"},
        },
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,BBBB"}},
        text("Search result: S\nu\nfound"),
    ] == several["content"]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "text", "data": "/rl bad"}},
        {"type": "document", "source": {"type": "content", "content": [text("/rl bad")]}},
        {"type": "document", "source": {"type": "content", "content": [IMAGE, text("/rl bad")]}},
        {"type": "document", "title": "/rl bad", "source": {"type": "text", "data": ""}},
        {
            "type": "document",
            "title": "/rl bad",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
        },
        {
            "type": "document",
            "context": "/rl bad",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
        },
        {"type": "search_result", "title": "/rl bad", "source": "", "content": []},
        {"type": "search_result", "title": "", "source": "", "content": [text("/rl bad")]},
    ],
)
def test_what_is_quoted_is_no_command(block: Item) -> None:
    """A rating is typed, in a text of its own."""
    messages = chat_of(user(text("What does it say?"), block))

    assert find_command(messages) is None
    assert find_command(chat_of(user(block, text("/rl bad")))) is not None


def test_an_answers_blocks_are_one_message() -> None:
    """However the client split it; what the vendor's cloud did is left out."""
    said = translated(
        user("hi"),
        assistant({"type": "thinking", "thinking": "Let me", "signature": ""}),
        assistant({"type": "redacted_thinking", "data": "x"}, text("I "), text("ask."), CALL),
        user(result("21")),
    )

    assert {
        "role": "assistant",
        "content": "I ask.",
        "reasoning_content": "Let me",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
            }
        ],
    } == messages_of(said)[1]
    assert ("messages[2].content[0]",) == said.left_out


@pytest.mark.parametrize(
    "kind", ["server_tool_use", "fallback", "advisor_tool_result", "mcp_tool_listing"]
)
def test_what_the_vendors_cloud_put_into_an_answer_is_left_out(kind: str) -> None:
    """No other model knows it; the words that came of it stay."""
    said = translated(user("hi"), assistant({"type": kind}, text("So.")), user("on"))

    assert {"role": "assistant", "content": "So."} == messages_of(said)[1]
    assert ("messages[1].content[0]",) == said.left_out


def test_results_stand_behind_their_calls_in_the_order_of_the_calls() -> None:
    """Before the user's own words, wherever these stood; some templates show no ids."""
    calls = [{**CALL, "id": name} for name in ("a", "b", "c")]

    said = chat_of(
        user("hi"),
        assistant(*calls),
        user(text("so?"), result("3", "c"), result("1", "a"), result("?", "x"), result("2", "b")),
    )

    assert [
        *(("tool", "a", "1"), ("tool", "b", "2"), ("tool", "c", "3"), ("tool", "x", "?")),
        ("user", None, "so?"),
    ] == [(one["role"], one.get("tool_call_id"), one["content"]) for one in said[2:]]


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (result("21"), "21"),
        (result([text("21")]), "21"),
        (result([text("2"), text("1")]), "2\n1"),
        (result([text("2"), IMAGE]), [text("2"), PICTURE]),
        ({"type": "tool_result", "tool_use_id": "c1"}, ""),
        (result("no such city", is_error=True), "Error: no such city"),
        (result([], is_error=True), "Error:"),
        (result([{"type": "tool_reference", "tool_name": "t"}]), "The tool t can be used."),
    ],
)
def test_a_result_is_a_tools_message(block: Item, content: object) -> None:
    """One text where it holds no more; with what chat has no mark for said in words."""
    *_, said = chat_of(user("hi"), assistant(CALL), user(block))

    assert {"role": "tool", "tool_call_id": "c1", "content": content} == said


def test_users_messages_in_a_row_are_one() -> None:
    """As the API takes them, and as templates need them; a command stands alone."""
    said = chat_of(user("a"), user("b"), assistant(text("c")), user("d"), user(text(" /rl good\n")))

    assert [
        user(text("a"), text("b")),
        {"role": "assistant", "content": "c"},
        user("d"),
        user(" /rl good\n"),
    ] == said


def test_a_system_message_before_the_first_answer_joins_the_first() -> None:
    """There it stays, and no template takes one elsewhere."""
    first = chat_of(user("hi"), system("tools"), system="Be")
    later = chat_of(user("hi"), system("tools"), assistant(text("a")), user("b"), system="Be")

    assert [{"role": "system", "content": "Be\n\ntools"}, user("hi")] == first == later[:2]
    assert ["system", "user", "assistant", "user"] == [one["role"] for one in later]


def test_a_later_system_message_stands_before_the_users_words_it_came_with() -> None:
    """A prompt only grows, so an engine's cache of it holds."""
    before = chat_of(user("hi"), assistant(text("a")), user("b"))
    history = [user("hi"), assistant(text("a")), user("b"), system("plan")]

    now = chat_of(*history)
    later = chat_of(*history, assistant(text("c")), user("d"))

    assert before[:2] == now[:2]
    assert [text("<system-reminder>\nplan\n</system-reminder>"), text("b")] == now[2]["content"]
    assert now == later[:3]


def test_a_system_message_behind_results_stands_in_the_last() -> None:
    """A user's message there would begin a new turn."""
    said = chat_of(user("hi"), assistant(CALL), user(result("21")), system("plan"))
    parts = chat_of(user("hi"), assistant(CALL), user(result([text("2"), IMAGE])), system("plan"))

    note = "<system-reminder>\nplan\n</system-reminder>"
    assert f"21\n\n{note}" == said[-1]["content"]
    assert [text("2"), PICTURE, text(note)] == parts[-1]["content"]


def test_a_hooks_words_are_the_systems_however_they_are_sent() -> None:
    """Claude Code says them as a user's within a turn, and as one system message from then on."""
    calls = assistant(CALL, {**CALL, "id": "c2"})
    results = [result("21"), result([text("2"), IMAGE], "c2")]
    notes = [
        text("<system-reminder>\nlint: fine\n</system-reminder>\n"),
        text("<system-reminder>\ntests:  none\n\n</system-reminder>"),
    ]
    joined = "lint: fine\n\ntests:  none\n\n\nhurry"

    now = chat_of(user("hi"), calls, user(*results, *notes), system("hurry"))
    later = chat_of(user("hi"), calls, user(*results), system(joined))

    note = text(f"<system-reminder>\n{joined}\n</system-reminder>")
    assert ["21", [text("2"), PICTURE, note]] == [one["content"] for one in now[2:]]
    assert now == later


def test_hooks_words_in_several_messages_are_all_told() -> None:
    """Beside the results of calls of one answer."""
    calls = assistant(CALL, {**CALL, "id": "c2"})
    one = text("<system-reminder>\na\n</system-reminder>")

    said = chat_of(user("hi"), calls, user(result("1"), one), user(result("2", "c2"), NOTE))

    assert "2\n\n<system-reminder>\na\n\nplan\n</system-reminder>" == said[-1]["content"]


@pytest.mark.parametrize(
    "words",
    [
        [NOTE, text("b")],
        [text("b"), NOTE],
        [NOTE, IMAGE],
        [text("<system-reminder>\nplan"), NOTE],
        [text(f"{NOTE['text']}\nb\n{NOTE['text']}")],
        [text("")],
    ],
)
def test_a_reminder_beside_a_users_words_stands_with_them(words: list[Item]) -> None:
    """Behind a tool's result too."""
    said = chat_of(user("hi"), assistant(CALL), user(result("21"), *words), user("so?"))

    assert "21" == said[-2]["content"]
    assert chat_of(user(*words, text("so?"))) == said[-1:]


def test_a_system_message_behind_nothing_of_the_users_is_said_for_them() -> None:
    """The model has to answer something."""
    said = chat_of(user("hi"), assistant(text("a")), system("go on"))

    assert user("<system-reminder>\ngo on\n</system-reminder>") == said[-1]


def test_a_command_is_the_last_message_whatever_stands_behind_it() -> None:
    """What came with it waits for the user's next words: the command itself is taken out."""
    history = [user("hi"), assistant(text("a")), user("/rl good"), system("plan")]

    now = chat_of(*history)
    later = chat_of(*history, assistant(text("[strop] Rated.")), user("b"))

    assert Command("good") == find_command(now)
    assert now == later[:3]
    assert [text("<system-reminder>\nplan\n</system-reminder>"), text("b")] == later[-1]["content"]


def test_a_custom_command_of_claude_code_is_a_command() -> None:
    """Its last text is what the command's file says."""
    typed = user(text("<command-name>/rl</command-name>\n"), text("/rl good short\n"))

    said = chat_of(user("hi"), assistant(text("a")), typed)

    assert Command("good", "short") == find_command(said)


def test_what_stands_before_a_command_in_its_message_is_said_by_itself() -> None:
    """Claude Code makes one message of a question that got no answer, and the command behind it."""
    asked = [text("why?\n"), text("[Request interrupted by user]\n")]
    typed = [text("<command-name>/rl</command-name>\n"), text("/rl bad short\n")]
    history = [user("hi"), assistant(text("a")), user(*asked, *typed)]

    now = chat_of(*history)
    later = chat_of(*history, assistant(text(f"{MARK}Rated.")), user("b"))

    assert [user(*asked), user(*typed)] == now[2:]
    assert [*now[:2], user(*asked, text("b"))] == without_commands(later)


def test_an_answer_of_strops_that_lost_its_command_parts_no_words() -> None:
    """Claude Code keeps the last answer where it shortens a history."""
    kept = assistant(text(f"{MARK}Took back the rating good (fb_01)."))

    said = chat_of(user("In short: hi."), kept, user("b"))

    assert [user(text("In short: hi."), text("b"))] == without_commands(said)


steps: list[list[Item]] = [
    *([user("a")], [user("/rl good")], [user()], [system("plan")], [assistant(text("c"))]),
    [user("/rl good"), assistant(text(f"{MARK}Rated.")), user("b")],
    [user(text("b"), text("/rl good"))],
    [assistant(text(f"{MARK}Took back the rating good (fb_01).")), user("b")],
    *([assistant(CALL), user(result("21"))], [assistant(CALL), user(result("21"), text("b"))]),
    [assistant(CALL), user(result("21"), NOTE)],
]
turns = st.lists(st.sampled_from(steps), max_size=8).map(
    lambda chosen: [message for step in chosen for message in step]
)


@given(turns)
def test_any_history_has_the_shape_that_strict_templates_want(history: list[Item]) -> None:
    """The system first; then users and assistants in turn, results behind answers.

    Once the commands and their answers are taken out.
    """
    said = chat_of(user("hi"), *history, user("so?"), system="Be")

    kept: list[Any] | None = without_commands(said)
    head, *rest = kept or said
    pairs = [(one["role"], two["role"]) for one, two in itertools.pairwise(rest)]
    assert "system" == head["role"]
    assert {"system"}.isdisjoint(one["role"] for one in rest)
    assert {("user", "user"), ("user", "tool")}.isdisjoint(pairs)


def test_a_thread_is_refused_as_the_sdk_understands() -> None:
    """By this code its tool runner learns to send all messages itself."""
    with pytest.raises(BadRequest) as refused:
        translated(user("hi"), thread={"type": "create"})

    error = refused.value
    said = json.loads(MESSAGES.error(400, {"message": error.message, **error.detail}))["error"]
    assert "invalid_request_error" == said["type"]
    assert "thread_unsupported_request" == said["details"]["error_code"]
    assert "send them all" in said["message"]


@given(turns, turns)
def test_a_history_only_grows(history: list[Item], more: list[Item]) -> None:
    """So an engine's cache of its beginning holds: the answer that followed stands behind it."""
    asked = [user("hi"), assistant(text("a")), *history, user("b")]

    now = chat_of(*asked)
    later = chat_of(*asked, assistant(text("c")), *more, user("d"))

    assert now == later[: len(now)]


def test_the_tools_are_functions() -> None:
    """The vendor's own are left out by their place, as are hints about the others."""
    said = translated(
        user("hi"),
        tools=[
            {**TOOL, "strict": True, "cache_control": {"type": "ephemeral"}},
            SEARCH,
            {"type": "custom", "name": "t", "input_schema": {}, "defer_loading": True},
        ],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
    )

    assert [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "In a city",
                "parameters": {"type": "object"},
                "strict": True,
            },
        },
        {"type": "function", "function": {"name": "t", "parameters": {}}},
    ] == said.fields["tools"]
    assert ("auto", False) == (said.fields["tool_choice"], said.fields["parallel_tool_calls"])
    assert ("tools[1]", "tools[2].defer_loading") == said.left_out


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "any"}, "required"),
        (
            {"type": "tool", "name": "weather"},
            {"type": "function", "function": {"name": "weather"}},
        ),
    ],
)
def test_each_choice_of_a_tool_has_its_name_in_chat(choice: Item, wanted: object) -> None:
    """By kind, or by the tool's name."""
    fields = translated(user("hi"), tools=[TOOL], tool_choice=choice).fields

    assert wanted == fields["tool_choice"]
    assert "parallel_tool_calls" not in fields


def test_a_choice_among_no_tools_is_none() -> None:
    """Engines refuse it."""
    fields = translated(user("hi"), tools=[SEARCH], tool_choice={"type": "auto"}).fields

    assert {"model", "messages", "max_tokens"} == set(fields)


PDF = {"type": "document", "source": {"type": "url", "url": "http://x/y.pdf"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [system("Be")]}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [user(5)]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [user({"type": "video"})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
        ({"messages": [user(PDF)]}, "messages[0].content[0].source.type"),
        (
            {"messages": [user({"type": "image", "source": {"type": "file"}})]},
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [user({"type": "tool_result"})]},
            "messages[0].content[0].tool_use_id",
        ),
        (
            {"messages": [user("x"), assistant({**CALL, "input": "x"}), user("y")]},
            "messages[1].content[0].input",
        ),
        (
            {"messages": [user("x"), assistant({"type": "image"}), user("y")]},
            "messages[1].content[0].type",
        ),
        ({"messages": [user("x"), assistant(text("The"))]}, "messages"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"system": 5}, "system"),
        ({"stop_sequences": [5]}, "stop_sequences[0]"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"name": "t"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [SEARCH], "tool_choice": {"type": "any"}}, "tools"),
        (
            {"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}},
            "tool_choice.name",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "each"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
    ],
)
def test_what_can_not_be_asked_for_is_refused_by_its_path(fields: Item, param: str) -> None:
    """Never dropped: the model would answer something else."""
    with pytest.raises(BadRequest) as refused:
        translated(**{"messages": [user("hi")], **fields})

    assert param == refused.value.param
    assert refused.value.message.startswith("expected ")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["text", "tool_use", "tool_result", "user", "assistant", "system", "\ud800"])
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "input", "id", "name", "tool_use_id", "source"]
            )
            | st.text(),
            inner,
            max_size=4,
        )
    ),
)
fields = st.dictionaries(
    st.sampled_from(["messages", "system", "tools", "tool_choice", "output_config", "max_tokens"])
    | st.text(),
    values,
    max_size=5,
)


@given(fields, st.lists(values, max_size=3), st.lists(values, max_size=3))
def test_any_request_is_translated_or_refused(
    sent: Item, contents: list[Any], blocks: list[Any]
) -> None:
    """Whatever JSON can hold; what comes of it is JSON."""
    roles = ("user", "assistant", "system")
    history = [{"role": roles[at % 3], "content": said} for at, said in enumerate(contents)]
    likely = {"max_tokens": 5, "messages": [*history, {"role": "user", "content": blocks}]}
    for asked in (sent, {**sent, **likely}):
        try:
            said = MESSAGES.to_chat(asked)
        except BadRequest:
            continue
        assert json.loads(body.dumps(said.fields))
