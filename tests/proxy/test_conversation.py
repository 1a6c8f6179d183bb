"""Conversations: a later request is found to follow a choice, whatever its client did to it."""

import copy
import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from strop.proxy.conversation import MAX_LABEL_CHARS, extend, read, read_prompt, session_label
from strop.proxy.message import call_key, canonical, texts_of

Message = dict[str, Any]

SALT = "key_0123"
LONG = (
    "The quick brown fox jumps over the lazy dog, and the dog goes on sleeping by the warm stove."
)


def call(
    name: str = "weather", arguments: str = '{"city":"x"}', identity: str = "call_1"
) -> Message:
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: Message) -> Message:
    message: Message = {"role": "assistant", "content": text}
    return {**message, "tool_calls": list(calls)} if calls else message


def tool(text: str, identity: str = "call_1") -> Message:
    return {"role": "tool", "tool_call_id": identity, "content": text}


# What clients do to the messages they send back; the name says who does it.


def openai_python(message: Message) -> Message:
    """Sends the parsed object back, with every field it knows."""
    message |= {"refusal": None, "annotations": [], "audio": None, "function_call": None}
    message |= {"parsed": None, "x_msg_extra": 1}
    for index, one in enumerate(message.get("tool_calls", [])):
        one["index"] = index
        one["function"]["parsed_arguments"] = {"city": "x"}
    return message


def ai_sdk(message: Message) -> Message:
    """Writes arguments anew as JavaScript does, and "" for no content."""
    for one in message.get("tool_calls", []):
        one["function"]["arguments"] = json.dumps(
            javascript(json.loads(one["function"]["arguments"])),
            separators=(",", ":"),
            ensure_ascii=False,
        )
    if message["content"] is None:
        message["content"] = ""
    return {key: message[key] for key in ("role", "content", "tool_calls") if key in message}


def javascript(value: Any) -> Any:
    """Return what JavaScript keeps of a JSON value: integral keys first, numbers as doubles."""
    if isinstance(value, dict):
        is_index = re.compile("[0-9]+").fullmatch
        ordered = sorted(
            value, key=lambda key: (not is_index(key), int(key) if is_index(key) else 0)
        )
        return {key: javascript(value[key]) for key in ordered}
    if isinstance(value, list):
        return [javascript(one) for one in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(float(value)) if float(value).is_integer() else value
    return value


def langchain(message: Message) -> Message:
    """Writes arguments anew as Python does, and drops the content of tool calls."""
    for one in message.get("tool_calls", []):
        one["function"]["arguments"] = json.dumps(json.loads(one["function"]["arguments"]))
    message.pop("reasoning_content", None)
    if not message["content"] and "tool_calls" in message:
        del message["content"]
    return message


def openclaw(message: Message) -> Message:
    """Writes the ids of tool calls anew and trims tool results."""
    for one in message.get("tool_calls", []):
        one["id"] = re.sub("[^a-zA-Z0-9]", "", one["id"])
    if "tool_call_id" in message:
        message["tool_call_id"] = re.sub("[^a-zA-Z0-9]", "", message["tool_call_id"])
        message["content"] = message["content"].strip()
    message.pop("reasoning_content", None)
    return ai_sdk(message)


def claude(message: Message) -> Message:
    """Sends parts with cache markers, and arguments as an object."""
    if isinstance(message["content"], str):
        marker = {"cache_control": {"type": "ephemeral"}}
        message["content"] = [{"type": "text", "text": message["content"], **marker}]
    for one in message.get("tool_calls", []):
        one["function"]["arguments"] = javascript(json.loads(one["function"]["arguments"]))
    return message


def smolagents(message: Message) -> Message:
    """Strips text and sends it as parts."""
    text = (message["content"] or "").strip()
    message["content"] = [{"type": "text", "text": text}] if text else []
    return message


def qwen(message: Message) -> Message:
    """Splits text into parts and trims the reasoning."""
    text = message["content"] or ""
    half = len(text) // 2
    message["content"] = [
        {"type": "text", "text": text[:half]},
        {"type": "text", "text": text[half:]},
    ]
    if "reasoning_content" in message:
        message["reasoning_content"] = message["reasoning_content"].strip()
    return message


def litellm(message: Message) -> Message:
    """Adds fields of its own."""
    message["provider_specific_fields"] = {"refusal": None, "x_msg_extra": 1}
    message["name"] = "agent"
    return message


CLIENTS: list[Callable[[Message], Message]] = [
    openai_python,
    ai_sdk,
    langchain,
    openclaw,
    claude,
    smolagents,
    qwen,
    litellm,
]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text(), json_values, max_size=4).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
calls = st.builds(call, name=st.text(min_size=1), arguments=arguments, identity=st.text(min_size=1))
spaced = st.text() | st.text().map(lambda text: f"\ufeff \n{text}\t\u2028 ")


@st.composite
def answers(draw: st.DrawFn) -> Message:
    message = assistant(draw(st.none() | spaced), *draw(st.lists(calls, max_size=2)))
    if draw(st.booleans()):
        message["reasoning_content"] = draw(st.text())
    return message


histories = st.lists(
    st.builds(user, spaced)
    | st.builds(tool, spaced, st.text())
    | answers()
    | st.builds(lambda text: {"role": "system", "content": text}, st.text()),
    max_size=5,
)


@given(histories, answers(), st.sampled_from(CLIENTS))
@example([user("hi")], assistant(None, call(arguments='{"n": 5000.0, "é": -0.0}')), claude)
@example([user("hi")], assistant(None, call(identity="call_0a1B-é2c3D")), openclaw)
@example([user("hi")], assistant(None, call(arguments='{"id": 12345678901234567890}')), ai_sdk)
@example([user("hi")], assistant(None, call(arguments='{"b": "\\ud83d", "1": 2}')), ai_sdk)
def test_a_request_that_ends_in_a_choice_follows_it(
    history: list[Message], answer: Message, client: Callable[[Message], Message]
) -> None:
    """What any known client sends back has the chain and the tail that the choice stored."""
    chain, tail = extend(read(history, SALT), answer)

    later = [client(copy.deepcopy(message)) for message in [*history, answer]]
    found = read([*later, user("go on")], SALT)

    assert (chain, tail) == (found.after, found.after_tail)


@given(histories, answers(), answers())
def test_another_answer_is_another_choice(
    history: list[Message], answer: Message, other: Message
) -> None:
    """Choices whose canonical forms differ have different chains and, other calls, tails."""
    assume(canonical(answer, "assistant") != canonical(other, "assistant"))
    assume(call_key(answer) is None or call_key(answer) != call_key(other))
    conversation = read(history, SALT)

    chain, tail = extend(conversation, answer)
    other_chain, other_tail = extend(conversation, other)

    assert chain != other_chain
    assert tail != other_tail


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (assistant("yes"), assistant("no")),
        (assistant("yes"), assistant("y es")),
        (assistant("yes"), user("yes")),
        (assistant("", call("a")), assistant("", call("b"))),
        (assistant("", call()), assistant("", call(), call())),
        (assistant("", call(arguments='{"n":1}')), assistant("", call(arguments='{"n":1.5}'))),
        (assistant("", call(arguments='{"n":1}')), assistant("", call(arguments='{"n":"1"}'))),
        (assistant("", call(arguments='{"n":1')), assistant("", call(arguments='{"n":2'))),
        (assistant("", call(arguments="[1,2]")), assistant("", call(arguments="[2,1]"))),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:a"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:b"}}]},
        ),
        (
            {"role": "assistant", "tool_calls": [{"custom": {"name": "sh", "input": "ls"}}]},
            {"role": "assistant", "tool_calls": [{"custom": {"name": "sh", "input": "rm"}}]},
        ),
        (assistant("acall:barguments:{}"), assistant("a", call("b", "{}"))),
        (tool("a"), tool("a <system-reminder>b</system-reminder> c")),
        (tool("a"), tool("a</system-reminder>")),
        (user("a"), user("a <system-reminder>b</system-reminder>")),
        (tool("a</system-reminder>"), tool("b</system-reminder>")),
    ],
)
def test_what_differs_in_meaning_differs_in_form(one: Message, other: Message) -> None:
    """Words, calls, arguments, their order and images tell messages apart."""
    assert canonical(one, one["role"]) != canonical(other, other["role"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (assistant("caf\u00e9"), assistant("cafe\u0301")),
        (assistant("a"), assistant("\u001c\u0085\ufeff a \u2029\n")),
        (assistant("a"), assistant("<think>\nhm\n</think>\n\na")),
        (assistant("a"), assistant("<think>b</think><think>c</think> a")),
        (assistant("a"), {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}),
        (assistant("a"), {"role": "assistant", "content": ["a"]}),
        (assistant("a"), {"role": "assistant", "content": "a", "tool_calls": []}),
        (assistant("a"), {"role": "assistant", "content": "a", "tool_calls": None}),
        (
            assistant("a"),
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "b"}, "a", None]},
        ),
        (tool("a"), tool("a\n\n<system-reminder>\nb\n</system-reminder>")),
        (
            tool("a"),
            {"role": "tool", "content": ["a", *2 * ["<system-reminder>b</system-reminder>\n"]]},
        ),
        (assistant("", call(arguments="")), assistant("", call(arguments="{}"))),
        (assistant("", call(arguments=" null ")), assistant("", call(arguments="{ }"))),
        (
            assistant("", call(arguments='{"a":1,"b":2}')),
            assistant("", call(arguments='{"b":2,"a":1}')),
        ),
        (assistant("", call(arguments='{"a":')), assistant("", call(arguments=' {"a":\n'))),
        (assistant("", call(arguments="1e2")), assistant("", call(arguments="100"))),
        (
            {"role": "user", "content": [{"type": "file", "file": {"a": 1, "b": 2}}]},
            {
                "role": "user",
                "content": [
                    {"file": {"b": 2, "a": 1}, "cache_control": {}, "name": None, "type": "file"}
                ],
            },
        ),
    ],
)
def test_what_clients_change_makes_no_difference(one: Message, other: Message) -> None:
    """Spaces around, Unicode forms, thoughts, key order, cache markers, reminders tell nothing."""
    assert canonical(one, one["role"]) == canonical(other, other["role"])


def test_an_unclosed_thought_is_text() -> None:
    """A `<think>` without its end is what the model said."""
    assert canonical(assistant("<think>a"), "assistant") != canonical(assistant(""), "assistant")
    assert canonical(user("<think>a</think>"), "user") != canonical(user(""), "user")


def test_system_messages_are_not_in_the_chain() -> None:
    """System and developer messages may come, go, move and change."""
    history = [user("a"), assistant("b"), user("c")]

    moved = [{"role": "developer", "content": "1"}, *history, {"role": "system", "content": "2"}]

    assert read(history, SALT) == read(moved, SALT)


def test_an_agents_own_context_is_not_in_the_chain() -> None:
    """OpenClaw puts it behind all else, tool results too, and into no later history."""
    context = user("<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nx\n<<<END_OPENCLAW_INTERNAL_CONTEXT>>>")
    history = [user("a"), assistant("", call()), tool("c")]

    assert read(history, SALT) == read([*history, context], SALT)
    assert not read([*history, context], SALT).starts_turn


@pytest.mark.parametrize(
    "note",
    [
        '<subagent_notification>\n{"status":"<turn_aborted>"}\n</subagent_notification>',
        "<turn_aborted>\nOn purpose.\n</turn_aborted>\n\n<turn_aborted>x</turn_aborted>",
        "[Request interrupted by user]\n",
    ],
)
def test_an_agents_note_begins_no_turn(note: str) -> None:
    """Codex says as a user's that its own sub-agent has answered, and that its user stopped it."""
    loop = [user("a"), assistant("", call()), tool("c")]
    noted = [*loop, user(note)]
    answer = assistant(LONG)

    assert read(loop, SALT) == read(noted, SALT)
    assert not read(noted, SALT).starts_turn
    assert extend(read(noted, SALT), answer)[0] == read([*noted, answer], SALT).after


@pytest.mark.parametrize(
    "content",
    [
        "So?\n\n<turn_aborted>x</turn_aborted>",
        "<turn_aborted>x</turn_aborted>\n\nSo?",
        "<turn_aborted>x",
        "<turn_aborted>" * 3,
        "</turn_aborted>",
        "<turn>x</turn>",
        [{"type": "text", "text": "<turn_aborted>x</turn_aborted>"}, {"type": "image_url"}],
        "",
    ],
)
def test_a_users_words_beside_a_note_begin_a_turn(content: object) -> None:
    """So does what only looks like a note."""
    asked = {"role": "user", "content": content}

    assert read([user("a"), assistant("", call()), tool("c"), asked], SALT).starts_turn


def test_another_key_is_another_conversation() -> None:
    """The same words under another client key have other chains and tails."""
    history = [user("a"), assistant(LONG)]

    mine, theirs = read(history, "key_1"), read(history, "key_2")

    assert mine.after != theirs.after
    assert mine.after_tail != theirs.after_tail


def test_the_chain_depends_on_all_before() -> None:
    """An earlier message that differs, is missing or stands elsewhere makes another chain."""
    history = [user("a"), assistant("b"), user("c"), assistant("d")]
    others = [
        [user("A"), *history[1:]],
        history[1:],
        [user("c"), assistant("b"), user("a"), assistant("d")],
        [user("a"), user("b"), user("c"), assistant("d")],
    ]

    chains = {read(messages, SALT).after for messages in [history, *others]}

    assert len(others) + 1 == len(chains)


def test_results_are_hashed_in_the_order_of_their_calls() -> None:
    """An agent may send them as they come, and another way later; so in the tail too."""
    asked = assistant(None, call(identity="call_a"), call(identity="call_b"))
    results = [tool("21 degrees", "call_a"), tool("3 passed", "call_b")]
    before, note = [user("and?"), asked], {"role": "system", "content": "Plan mode."}
    sent = [[*before, *results], [*before, *results[::-1]], [*before, results[1], note, results[0]]]

    found = [read([*history, assistant("Ok."), user("more")], SALT) for history in sent]

    assert 1 == len({each.chain for each in found})
    assert 1 == len({each.after_tail for each in found})
    assert [extend(read(history, SALT), assistant("Ok."))[0] for history in sent] == [
        each.after for each in found
    ]


@pytest.mark.parametrize(
    ("identities", "names"),
    [
        (("call_a", "call_b"), ("call_a", "call_c")),
        (("call_a", "call_b"), ("call_a", None)),
        (("call_a", "call_a"), ("call_a", "call_a")),
        ((None, None), (None, None)),
        ((["x"], 5), (["x"], 5)),
    ],
)
def test_results_that_are_not_told_apart_count_as_they_stand(
    identities: tuple[object, object], names: tuple[object, object]
) -> None:
    """Swapped, they are another history: which call they belong to is not known."""
    calls = [{**call(), "id": identity} for identity in identities]
    results = [{**tool(f"result {n}"), "tool_call_id": one} for n, one in enumerate(names)]
    before = [user("and?"), assistant(None, *calls)]

    as_sent, swapped = (read([*before, *order], SALT) for order in (results, results[::-1]))

    assert as_sent.chain != swapped.chain


def test_a_cut_history_keeps_its_tail() -> None:
    """A truncated or compacted history has the tail of its last answer, and another chain."""
    turn = [user("and the tests?"), assistant("", call()), tool("3 passed"), assistant("Green.")]
    whole = [user("fix it"), assistant("Done."), *turn[:-1]]

    chain, tail = extend(read(whole, SALT), turn[-1])
    cut = read([user("Summary: it is fixed."), *turn, user("thanks")], SALT)

    assert chain != cut.after
    assert tail == cut.after_tail


def test_moved_context_keeps_the_tail_of_a_telling_answer() -> None:
    """A client that moves its context message to the end still follows (OpenClaw)."""
    context = user("INTERNAL CONTEXT: it is Tuesday")
    history = [user("hello"), context]

    chain, tail = extend(read(history, SALT), assistant(LONG))
    later = read([user("hello"), assistant(LONG), user("more"), context], SALT)

    assert chain != later.after
    assert tail == later.after_tail


def test_a_shortened_question_keeps_the_tail_of_a_telling_answer() -> None:
    """A client that sends earlier questions without their reminder still follows (aider)."""
    _, tail = extend(read([user("hello\nReply in French.")], SALT), assistant(f"  {LONG}\n"))

    later = read([user("hello"), assistant(LONG), user("more\nReply in French.")], SALT)

    assert tail == later.after_tail


def test_tool_results_make_a_short_answer_telling() -> None:
    """With enough tool output before it, a short answer is known without the user messages."""
    loop = [assistant("", call()), tool(LONG), user("CONTEXT 1")]

    _, tail = extend(read([user("hi"), *loop], SALT), assistant("Ok."))
    later = read([user("hi"), *loop[:2], assistant("Ok."), user("CONTEXT 1")], SALT)
    other = read([user("hi"), loop[0], tool(LONG + "!"), assistant("Ok.")], SALT)

    assert tail == later.after_tail
    assert tail != other.after_tail


@pytest.mark.parametrize(
    "sent",
    [
        call("Edit", '{"new":"y","replace_all":false}', "toolu_01Ab-23Cd"),
        call("Edit", '{"new":"y"}', "toolu01Ab23Cd"),
    ],
)
def test_a_call_is_known_by_its_id_whatever_its_client_makes_of_it(sent: Message) -> None:
    """It adds defaults, trims text, or writes the id without what it can't have there."""
    made = assistant("I edit.", call("Edit", '{"new":"y\\n"}', "toolu_01Ab-23Cd"))

    _, tail = extend(read([user("fix it")], SALT), made)
    later = read([user("fix that"), assistant(None, sent), tool("ok", "toolu_01Ab-23Cd")], SALT)

    assert tail == later.after_tail


@pytest.mark.parametrize(("identity", "tells"), [("a-1B2_c3D4", True), ("a-1B2_c3D", False)])
def test_an_id_tells_from_eight_letters_and_digits_on(identity: str, tells: bool) -> None:
    assert tells == (call_key(assistant(None, call(identity=identity))) is not None)


@pytest.mark.parametrize(
    ("identity", "sent"),
    [
        ("call_0a1b2c3d", "call0a1b2"),
        ("8c1f5e0a-9d3b-4e5f-8a7b-0c1d2e3f4a5b", "8c1f5e0a9"),
        ("Zz9kLmN0pQrStUvWxYz012345678901a", "Zz9kLmN0p"),
    ],
)
def test_the_first_nine_letters_and_digits_of_an_id_tell(identity: str, sent: str) -> None:
    """Where the model is called mistral, opencode sends these alone; and it drops old results."""
    made = assistant(None, call(identity=identity))

    _, tail = extend(read([user("hi")], SALT), made)
    later = read([user("(dropped)"), assistant(None, call(identity=sent))], SALT)

    assert tail == later.after_tail


def test_an_id_that_begins_with_a_long_word_tells_by_its_rest() -> None:
    """All of vLLM's begin alike."""
    ids = [f"chatcmpl-tool-{place:016x}" for place in range(2)]

    keys = {call_key(assistant(None, call(identity=identity))) for identity in ids}

    assert len(ids) == len(keys - {None})


def test_of_several_calls_the_first_tells() -> None:
    one, other = call(identity="call_0a1B2c3D"), call(identity="call_4e5F6g7H")

    keys = [call_key(assistant(None, *calls)) for calls in ([one], [one, other], [other, one])]

    assert keys[0] == keys[1]
    assert None not in keys
    assert keys[0] != keys[2]


def test_an_id_under_another_key_is_another_call() -> None:
    made = assistant(None, call(identity="call_0a1B2c3D"))

    (_, one), (_, other) = (extend(read([], salt), made) for salt in ("one", "other"))

    assert one != other


@pytest.mark.parametrize(
    "identity",
    [
        *("call_12", "functions.weather:12", "functionsweather12", "", None),
        *("tool_call_1", "call_0001", "functions_1", "123456789"),
        *("toolu_" + 32 * "a" + "_0", "call_fc_" + 32 * "0", "call_ctc_" + 32 * "0" + "_1"),
    ],
)
def test_a_call_whose_id_others_have_too_is_known_by_its_arguments(identity: Any) -> None:
    one, other = (
        assistant(None, call(arguments=given, identity=identity))
        for given in ('{"city":"x"}', '{"city":"y"}')
    )

    _, tail = extend(read([user("hi")], SALT), one)
    _, other_tail = extend(read([user("hi")], SALT), other)

    assert tail != other_tail


def test_the_same_id_of_another_tool_is_another_call() -> None:
    """And a custom tool's call has an id too."""
    identity = "call_0a1B2c3D"
    custom = {"id": identity, "type": "custom", "custom": {"name": "sh", "input": "ls"}}
    calls = [call("Read", identity=identity), call("Edit", identity=identity), custom]

    keys = {call_key(assistant(None, one)) for one in calls}

    assert len(calls) == len(keys - {None})


def test_short_answers_of_strangers_have_different_tails() -> None:
    """An answer that anyone could get is told apart by the question before it."""
    _, mine = extend(read([user("is it raining?")], SALT), assistant("Yes."))
    _, theirs = extend(read([user("is it late?")], SALT), assistant("Yes."))

    assert mine != theirs


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], True),
        ([user("a")], True),
        ([{"role": "system", "content": "a"}], True),
        ([user("a"), assistant("b")], False),
        ([user("a"), assistant("b"), user("c")], True),
        ([user("a"), assistant("", call()), tool("c")], False),
        ([user("a"), assistant("", call()), {"role": "system", "content": "c"}], False),
        ([user("a"), assistant("", call()), tool("c"), user("d")], True),
    ],
)
def test_a_user_message_starts_a_turn(messages: list[object], expected: bool) -> None:
    """A turn begins with a user message after the last answer, or with the conversation."""
    assert expected is read(messages, SALT).starts_turn


def test_without_an_answer_nothing_is_followed() -> None:
    """A history without assistant messages follows nothing, but a choice can follow it."""
    conversation = read([user("a")], SALT)

    assert conversation.after is None
    assert conversation.after_tail is None
    assert 16 == len(extend(conversation, assistant("b"))[0])


def test_a_prompt_follows_nothing() -> None:
    """A text completion begins a conversation of its own."""
    conversation = read_prompt(SALT)

    assert (None, None, True) == (
        conversation.after,
        conversation.after_tail,
        conversation.starts_turn,
    )


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.fixed_dictionaries(
            {},
            optional={
                "role": st.sampled_from(["user", "assistant", "tool", "system"]) | inner,
                "content": inner,
                "tool_calls": inner,
                "function": inner,
                "custom": inner,
                "arguments": inner,
                "type": st.just("text") | inner,
                "text": inner,
            },
        )
    ),
    max_leaves=20,
)


@given(st.lists(anything, max_size=5))
@example([{"content": {"type": []}}, {"content": [{"type": {}}]}])
def test_no_history_is_refused(messages: list[object]) -> None:
    """Whatever JSON can hold is hashed, and the same value always gives the same keys."""
    assert read(messages, SALT) == read(copy.deepcopy(messages), SALT)


def deep(levels: int, core: object) -> object:
    for _ in range(levels):
        core = [core]
    return core


@pytest.mark.parametrize(
    "content",
    ["\ud83d", ["\ud83d"], [{"type": "x", "y": "\ud83d"}], 2**80, deep(300, 1), deep(5000, 1)],
)
def test_what_json_libraries_refuse_is_hashed(content: object) -> None:
    """Lone surrogates, long integers and deep nesting raise nothing, wherever they stand."""
    arguments = content if isinstance(content, str) else "[" * 5000 + "]" * 5000
    custom = {"custom": {"name": content, "input": content}}
    messages = [
        {"role": "user", "content": content},
        assistant("a", call("name", arguments), {"function": {"arguments": content}}, custom),
        content,
    ]

    assert read(messages, SALT).after is not None


def test_large_images_are_kept_by_their_digest() -> None:
    """The canonical form of a message does not grow with its images."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}

    form = canonical(
        {"role": "user", "content": [{"type": "text", "text": "what?"}, image]}, "user"
    )

    assert len(form) < 100


def test_text_parts_are_those_with_text() -> None:
    """`texts_of` gives the strings among the parts, in order."""
    parts = ["a", {"type": "text", "text": "b"}, {"type": "text", "text": 1}, {"type": "image"}, 2]

    assert ["a", "b"] == texts_of({"content": parts})
    assert [] == texts_of({"content": None})
    assert [] == texts_of("a")


UUID = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.mark.parametrize(
    ("headers", "path_session", "metadata", "expected"),
    [
        ({}, None, None, None),
        ({"x-strop-session": "a", "x-session-id": "b"}, "c", {"session_id": "d"}, "a"),
        ({"x-session-id": "b"}, "c", {"session_id": "d"}, "c"),
        ({"x-session-id": "b", "x-claude-code-session-id": "c"}, None, None, "b"),
        ({"x-claude-code-session-id": "c", "session-id": "d"}, None, None, "c"),
        ({"thread-id": "e", "session-id": "d"}, None, None, "d"),
        ({"thread-id": "e", "session_id": "d"}, None, None, "d"),
        ({"thread-id": "e"}, None, {"session_id": "f"}, "e"),
        ({}, None, {"session_id": "f", "user_id": f"user_1_session_{UUID}"}, "f"),
        ({}, None, {"user_id": f"user_1_account__session_{UUID}"}, UUID),
        ({}, None, {"user_id": json.dumps({"device_id": "x", "session_id": UUID})}, UUID),
        ({}, None, {"user_id": "user_1"}, None),
        ({}, None, {"user_id": "[1]"}, None),
        ({}, None, {"user_id": '{"session_id": 1}'}, None),
        ({}, None, {"user_id": 1, "session_id": 2}, None),
        ({}, None, "session_id", None),
        ({"x-strop-session": "  "}, "", {"session_id": " f "}, "f"),
        ({"x-strop-session": "a" * MAX_LABEL_CHARS}, None, None, "a" * MAX_LABEL_CHARS),
        ({"x-strop-session": "a" * (MAX_LABEL_CHARS + 1)}, None, None, None),
        ({"x-strop-session": "naïve"}, None, None, "naïve"),
        ({}, "a\nb", None, None),
        ({}, None, {"session_id": "\ud83d"}, None),
    ],
)
def test_a_session_label_is_found_in_its_order(
    headers: dict[str, str], path_session: str | None, metadata: object, expected: str | None
) -> None:
    """The first usable label counts: ours, the path's, then those that agents send."""
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]

    assert expected == session_label(pairs, path_session, {"metadata": metadata})


def test_labels_that_are_no_utf8_stay_apart() -> None:
    """Bytes that are no text make a label that no other bytes make."""
    labels = {session_label([(b"x-strop-session", raw)], None, {}) for raw in (b"\xff", b"\xfe")}

    assert 2 == len(labels - {None})


def test_long_text_is_composed_unless_marks_stand_on_marks() -> None:
    """Thirty of them are sorted and composed; thousands, which would take minutes, stay."""
    hindi, thirty = "\u0928\u093c" * 3000, "\u4e00" * 300 + "e" + "\u0301" * 30
    for text in (hindi, thirty, "cafe\u0301 " * 9000):
        composed = unicodedata.normalize("NFC", text)
        assert composed != text
        assert canonical(user(composed), "user") == canonical(user(text), "user")

    for marks in ("\u0301" * 9000 + "\u0323" * 9000, "\u0f73" * 9000, "\u0f75\u0f81" * 9000):
        heap = "a" + marks
        assert heap.encode() in canonical(user(heap), "user")


def test_words_between_two_notes_begin_a_turn() -> None:
    """They are its user's."""
    said = user("<turn_aborted>a</turn_aborted> So? <turn_aborted>b</turn_aborted>")

    assert read([user("a"), assistant("b"), said], SALT).starts_turn
