"""Exports: rated completions as the JSON lines that other trainers load."""

import json
import math
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import pytest
from store_values import KEY, OTHER_KEY, choice, database_in, rate, record

from strop.proxy.store.database import Query
from strop.proxy.store.held_out import is_held_out
from strop.proxy.store.reader import Reader
from strop.proxy.store.records import Dialect, ExportFormat, FeedbackFilter
from strop.proxy.store.store import ALL_FEEDBACK, Store

T = TypeVar("T")

QUESTION = {"role": "user", "content": "What is a strop?"}
ANSWER = {"role": "assistant", "content": "A leather for blades."}
REDACTED = "[redacted]"
ORIGIN = ("completion_id", "model", "version", "base")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def lines_of(store: Store, format_: ExportFormat) -> list[dict[str, Any]]:
    """The lines of chats, whole."""
    return [json.loads(line) async for line in store.export(format_)]


async def rows(
    store: Store,
    format_: ExportFormat,
    wanted: FeedbackFilter = ALL_FEEDBACK,
    dialect: Dialect = "chat",
) -> list[dict[str, Any]]:
    lines = [line async for line in store.export(format_, wanted, dialect=dialect)]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert {bool} >= {type(row.pop("held_out")) for row in found}
    if format_ != "raw":
        assert {bool} >= {type(row.pop("is_whole")) for row in found}
        for row in found:
            for name in ORIGIN:
                del row[name]
    for row in found:
        if row.get("tools") == "null":
            del row["tools"]
    return found


def says(text: str) -> bytes:
    """A stored message."""
    return json.dumps({"role": "assistant", "content": text}).encode()


def said(text: str) -> list[dict[str, str]]:
    """The same message as it is exported."""
    return [{"role": "assistant", "content": text}]


def asks(*messages: dict[str, Any], **beside: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **beside}).encode()


async def test_kto_has_a_label_for_each_rated_choice(store: Store) -> None:
    """Prompt and completion are lists of messages; good is true, bad is false."""
    await record(store, "cmp_1", choices=(choice(0), choice(1, message=says("No.")), choice(2)))
    await record(store, "cmp_2")
    await rate(store, "cmp_1", 0.5)
    await rate(store, "cmp_1", -1.0, choice=1)

    expected = [
        {"prompt": [QUESTION], "completion": [ANSWER], "label": True},
        {"prompt": [QUESTION], "completion": said("No."), "label": False},
    ]
    assert expected == await rows(store, "kto")


async def test_a_label_is_the_sign_of_the_mean(store: Store) -> None:
    """Several raters make one row, and none where they cancel out."""
    await record(store, "cmp_1")
    await record(store, "cmp_2")
    for rater, first, second in (("ann", 1.0, 1.0), ("bob", -0.5, -1.0)):
        await rate(store, "cmp_1", first, rater=rater)
        await rate(store, "cmp_2", second, rater=rater)

    assert [True] == [row["label"] for row in await rows(store, "kto")]


async def test_dpo_pairs_a_correction_with_the_answer_it_corrects(store: Store) -> None:
    """The correction is chosen over the answer; one that equals the answer is no pair."""
    await record(store, "cmp_1")
    await record(store, "cmp_2")
    await rate(store, "cmp_1", -1.0, correction="Like so.")
    await rate(store, "cmp_2", 1.0, correction=ANSWER["content"])

    expected = [{"prompt": [QUESTION], "chosen": said("Like so."), "rejected": [ANSWER]}]
    assert expected == await rows(store, "dpo")


async def test_dpo_pairs_good_with_bad_choices_of_one_completion(store: Store) -> None:
    """Each good choice is chosen over each bad one; other completions' choices don't meet."""
    texts = ("a", "b", "c")
    choices = tuple(choice(i, message=says(text)) for i, text in enumerate(texts))
    await record(store, "cmp_1", choices=choices)
    await record(store, "cmp_2", choices=choices)
    for index, value in enumerate((1.0, -1.0, -0.5)):
        await rate(store, "cmp_1", value, choice=index)
    await rate(store, "cmp_2", -1.0, choice=2)

    expected = [
        {"prompt": [QUESTION], "chosen": said("a"), "rejected": said(text)} for text in ("b", "c")
    ]
    assert expected == await rows(store, "dpo")


async def test_sft_has_liked_answers_and_corrections(store: Store) -> None:
    """Each beside the conversation that it answers; a bad answer is left out."""
    await record(store, "cmp_1")
    await record(store, "cmp_2")
    await rate(store, "cmp_1", 1.0)
    await rate(store, "cmp_2", -1.0, correction="Like so.")
    await rate(store, "cmp_2", -1.0, correction="Like so.", rater="ann")

    expected = [
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": [QUESTION], "completion": said("Like so.")},
    ]
    assert expected == await rows(store, "sft")


async def test_sft_has_no_earlier_answer_to_learn(store: Store) -> None:
    """What the model said before is in the prompt, which TRL's loss leaves out; as are tools."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": "a leather", "tool_call_id": "c1"}
    called = choice(message=json.dumps(calls).encode())
    await record(store, "cmp_1", request=asks(QUESTION, tools=tools), choices=(called,))
    await record(store, "cmp_2", request=asks(QUESTION, calls, result, tools=tools))
    await rate(store, "cmp_1")
    await rate(store, "cmp_2")

    found = await rows(store, "sft")

    assert [([QUESTION], [calls]), ([QUESTION, calls, result], [ANSWER])] == [
        (row["prompt"], row["completion"]) for row in found
    ]
    assert [tools, tools] == [json.loads(row["tools"]) for row in found]


async def test_only_what_stands_counts(store: Store) -> None:
    """Superseded and withdrawn ratings are in no export, and neither is what nobody rated."""
    for number in range(3):
        await record(store, f"cmp_{number}")
    await rate(store, "cmp_0", 1.0)
    await rate(store, "cmp_0", -1.0)
    withdrawn = await rate(store, "cmp_1", 1.0)
    await store.withdraw(withdrawn.feedback.id, KEY)

    assert [False] == [row["label"] for row in await rows(store, "kto")]
    assert [] == await rows(store, "sft")
    assert ["cmp_0"] == [row["id"] for row in await rows(store, "raw")]


async def test_an_export_can_be_filtered(store: Store) -> None:
    """Only feedback that is asked for counts."""
    await record(store, "cmp_1", session="mine")
    await record(store, "cmp_2", session="yours", key_id=OTHER_KEY)
    await rate(store, "cmp_1", 1.0, rater="ann")
    await rate(store, "cmp_1", -1.0, rater="bob")
    await rate(store, "cmp_2", 1.0, key_id=OTHER_KEY)

    async def labels(**wanted: Any) -> list[bool]:
        return [row["label"] for row in await rows(store, "kto", FeedbackFilter(**wanted))]

    assert [True] == await labels(rater="ann")
    assert [False] == await labels(rater="bob")
    assert [True] == await labels(key_id=OTHER_KEY)
    assert [True] == await labels(session="yours")
    assert [False] == await labels(sign="bad")
    assert [] == await labels(since_ms=2**60)


async def test_an_export_goes_on_over_many_pages(store: Store) -> None:
    """Every rated completion is there once, by id."""
    ids = [f"cmp_{number:03}" for number in range(50)]
    for id_ in ids:
        await record(store, id_)
        await rate(store, id_)

    assert ids == [row["id"] for row in await rows(store, "raw")]


async def test_tool_calls_and_tools_are_kept(store: Store) -> None:
    """Calls and their results are in the prompt; the tools offered beside it, as a JSON string."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    ]
    asked: list[dict[str, Any]] = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a leather"}]},
    ]
    await record(store, "cmp_1", request=asks(*asked, tools=tools))
    await rate(store, "cmp_1")

    (row,) = await rows(store, "kto")

    assert tools == json.loads(row["tools"])
    assert [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "a leather", "tool_call_id": "c1"},
    ] == row["prompt"]


@pytest.mark.parametrize(
    ("finish_reason", "sampling", "is_whole"),
    [
        ("stop", b"{}", True),
        ("tool_calls", b'{"stop": ["Observation:"]}', True),
        ("length", b"{}", False),
        ("content_filter", b"{}", False),
        (None, b"{}", False),
        ("stop", b'{"stop": ["Observation:"]}', False),
        ("stop", b'{"stop_token_ids": [7]}', False),
    ],
)
async def test_an_answer_is_whole_where_the_model_ended_it(
    store: Store, finish_reason: str | None, sampling: bytes, is_whole: bool
) -> None:
    """Who trains on others teaches to stop midway; a correction always is."""
    answer = choice(finish_reason=finish_reason)
    await record(store, "cmp_1", choices=(answer,), sampling=sampling)
    await rate(store, "cmp_1", 1.0, correction="Like so.")

    async def said(format_: ExportFormat) -> list[bool]:
        return [row["is_whole"] for row in await lines_of(store, format_)]

    assert [is_whole] == await said("kto")
    assert [is_whole, True] == await said("sft")
    assert [is_whole] == await said("dpo")


async def test_a_pair_is_whole_where_both_answers_are(store: Store) -> None:
    """Of good ones over bad ones."""
    reasons = ("stop", "length", "stop")
    choices = tuple(
        choice(i, message=says(str(i)), finish_reason=one) for i, one in enumerate(reasons)
    )
    await record(store, "cmp_1", choices=choices)
    for index, value in enumerate((1.0, -1.0, -1.0)):
        await rate(store, "cmp_1", value, choice=index)

    found = await lines_of(store, "dpo")

    assert [("1", False), ("2", True)] == [
        (row["rejected"][0]["content"], row["is_whole"]) for row in found
    ]


async def test_what_the_engine_did_not_let_the_model_finish_is_in_raw_alone(store: Store) -> None:
    """As in training, which learns from what the client cut off, but not from that."""
    for state in ("upstream_error", "upstream_timeout", "shutdown", "client_cancelled"):
        await record(store, f"cmp_{state}", state=state, choices=(choice(finish_reason=None),))
        await rate(store, f"cmp_{state}", 1.0, correction="Like so.")

    found = {format_: len(await lines_of(store, format_)) for format_ in get_args(ExportFormat)}

    assert {"raw": 4, "turns": 1, "kto": 1, "dpo": 1, "sft": 2} == found


@pytest.mark.parametrize("format_", ["raw", "kto", "dpo", "sft"])
async def test_each_line_says_what_answered(store: Store, format_: ExportFormat) -> None:
    """The completion, the model as it was asked for, the version and its base, named as in raw."""
    await record(store, "cmp_1", version="v3", base="sha256:0123")
    await record(store, "cmp_2", model="other")
    for number in (1, 2):
        await rate(store, f"cmp_{number}", correction="Like so.")

    found = await lines_of(store, format_)

    names = ("id", *ORIGIN[1:]) if format_ == "raw" else ORIGIN
    expected = {("cmp_1", "m", "v3", "sha256:0123"), ("cmp_2", "other", "base", None)}
    assert expected == {tuple(row[name] for name in names) for row in found}


async def test_what_was_redacted_is_in_raw_alone(store: Store) -> None:
    """As in training: of a prompt, an answer or a correction; what is sound beside it stays."""
    cut: dict[str, Any] = {"prompt_ids": None}
    hidden = choice(message=says(f"Call {REDACTED}."), token_ids=None, logprobs=None)
    asked = asks({"role": "user", "content": f"I am {REDACTED}."})
    text = json.dumps({"prompt": f"I am {REDACTED}"}).encode()
    worse = choice(1, message=says("No."))
    await record(store, "cmp_1", request=asked, **cut)
    await record(store, "cmp_2", choices=(hidden, worse), **cut)
    await record(store, "cmp_3", **cut)
    await record(
        store, "cmp_4", dialect="completions", request=text,
        choices=(choice(message=b'{"text": " so."}'),), **cut,
    )  # fmt: skip
    await rate(store, "cmp_1", correction="Like so.")
    await rate(store, "cmp_2", correction="Like so.")
    await rate(store, "cmp_2", -1.0, choice=1)
    await rate(store, "cmp_3", correction=f"Call {REDACTED}!")
    await rate(store, "cmp_4")

    raw = await rows(store, "raw")

    assert [("cmp_2", False), ("cmp_3", True)] == [
        (row["completion_id"], row["label"]) for row in await lines_of(store, "kto")
    ]
    assert [] == await rows(store, "dpo")
    assert [said("Like so."), [ANSWER]] == [row["completion"] for row in await rows(store, "sft")]
    assert [] == await rows(store, "kto", dialect="completions")
    assert [f"cmp_{number}" for number in (1, 2, 3, 4)] == [row["id"] for row in raw]
    assert f"I am {REDACTED}." == raw[0]["request"]["messages"][0]["content"]
    assert f"Call {REDACTED}." == raw[1]["choices"][0]["message"]["content"]
    assert f"Call {REDACTED}!" == raw[2]["feedback"][0]["correction"]


async def test_who_says_the_mark_is_not_redacted(store: Store) -> None:
    """Where the ids are kept, nothing was taken out."""
    answer = choice(message=says(f"It writes {REDACTED}."))
    asked = asks({"role": "user", "content": f"What is {REDACTED}?"})
    await record(store, "cmp_1", request=asked, prompt_ids=array("i", [5, 6]), choices=(answer,))
    await rate(store, "cmp_1")

    (row,) = await rows(store, "kto")

    assert said(f"It writes {REDACTED}.") == row["completion"]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_what_the_model_thought_is_part_of_its_answer(store: Store, name: str) -> None:
    """Beside the content, by the name that chat templates know; of earlier answers too."""
    earlier = {"role": "assistant", "content": "Hi.", name: "Greet."}
    user = {**QUESTION, name: "Not a thought."}
    thought = json.dumps({**ANSWER, name: "A blade needs it."}).encode()
    only = json.dumps({"role": "assistant", "content": None, name: "Hm"}).encode()
    await record(
        store, "cmp_1", request=asks(QUESTION, earlier, user), choices=(choice(message=thought),)
    )
    await record(store, "cmp_2", choices=(choice(message=only, finish_reason="length"),))
    await rate(store, "cmp_1", correction="Like so.")
    await rate(store, "cmp_2")

    answer = [{**ANSWER, "reasoning_content": "A blade needs it."}]
    prompt = [
        QUESTION, {"role": "assistant", "content": "Hi.", "reasoning_content": "Greet."}, QUESTION,
    ]  # fmt: skip
    assert [{"prompt": prompt, "completion": answer, "label": True}] == await rows(store, "kto")
    assert [{"prompt": prompt, "chosen": said("Like so."), "rejected": answer}] == await rows(
        store, "dpo"
    )
    assert [answer, said("Like so.")] == [row["completion"] for row in await rows(store, "sft")]


@pytest.mark.parametrize("format_", ["kto", "dpo", "sft"])
async def test_each_line_has_the_same_members(store: Store, format_: ExportFormat) -> None:
    """Tools too, as JSON, offered or not: readers know no column that comes late."""
    tools = [{"type": "function", "function": {"name": "look"}}]
    await record(store, "cmp_1")
    await record(store, "cmp_2", request=asks(QUESTION, tools=[]))
    await record(store, "cmp_3", request=asks(QUESTION, tools=tools))
    for number in (1, 2, 3):
        await rate(store, f"cmp_{number}", -1.0, correction="Like so.")

    found = await lines_of(store, format_)

    assert 1 == len({tuple(row) for row in found})
    assert [None, None, tools] == [json.loads(row["tools"]) for row in found]


async def test_the_arguments_of_a_call_are_a_string(store: Store) -> None:
    """Also where the client sent an object: a column has one type."""
    called = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    custom = {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "it"}}
    history = {"role": "assistant", "content": None, "tool_calls": [called, custom]}
    await record(store, "cmp_1", request=asks(QUESTION, history))
    await rate(store, "cmp_1")

    ((row,), (raw,)) = [await rows(store, format_) for format_ in ("kto", "raw")]

    first, second = row["prompt"][1]["tool_calls"]
    assert {"name": "look", "arguments": '{"at":1}'} == first["function"]
    assert custom == second
    assert history == raw["request"]["messages"][1]


async def test_content_is_always_one_string(store: Store) -> None:
    """Text parts are joined, so that a column has one type; other fields are left out."""
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a strop?"}]
    await record(
        store, "cmp_1", request=asks({"role": "user", "content": parts, "cache_control": {}})
    )
    await rate(store, "cmp_1")

    (row,) = await rows(store, "kto")

    assert [QUESTION] == row["prompt"]


async def test_what_is_not_text_is_left_out(store: Store) -> None:
    """An image in the prompt, an unreadable request or an answer without text give no row."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    await record(store, "cmp_1", request=asks({"role": "user", "content": [image]}))
    await record(store, "cmp_2", request=b"\xff not JSON")
    await record(store, "cmp_3", choices=(choice(message=b'{"role":"assistant"}'),))
    for number in (1, 2, 3):
        await rate(store, f"cmp_{number}")

    assert [] == await rows(store, "kto")
    assert [] == await rows(store, "sft")
    assert ["cmp_1", "cmp_2", "cmp_3"] == [row["id"] for row in await rows(store, "raw")]


async def test_an_empty_answer_is_kept_in_a_prompt_alone(store: Store) -> None:
    """What came after it was said to that; one that says something else instead is not text."""
    nothing = {"role": "assistant", "content": ""}
    refusal = {"role": "assistant", "content": None, "refusal": "No."}
    await record(store, "cmp_1", request=asks(QUESTION, nothing, QUESTION))
    await record(store, "cmp_2", request=asks(QUESTION, refusal, QUESTION))
    await record(store, "cmp_3", choices=(choice(message=says("")),))
    for number in (1, 2, 3):
        await rate(store, f"cmp_{number}")

    (row,) = await rows(store, "kto")

    assert [QUESTION, nothing, QUESTION] == row["prompt"]


async def test_commands_and_our_answers_to_them_are_left_out(store: Store) -> None:
    """What the model never saw is not in a prompt."""
    command = {"role": "user", "content": "/rl good"}
    ours = {"role": "assistant", "content": "[strop] rated good"}
    await record(store, "cmp_1", request=asks(QUESTION, ANSWER, command, ours, QUESTION))
    await rate(store, "cmp_1")

    (row,) = await rows(store, "kto")

    assert [QUESTION, ANSWER, QUESTION] == row["prompt"]


async def test_text_completions_are_plain_strings(store: Store) -> None:
    """The other dialect, asked for by name, has strings for prompt and answer."""
    text = {"dialect": "completions", "request": b'{"model": "m", "prompt": "A strop is"}'}
    await record(store, "cmp_1", choices=(choice(message=b'{"text":" a leather."}'),), **text)
    await record(store, "cmp_2")
    await rate(store, "cmp_1", 1.0, correction=" a strap.")
    await rate(store, "cmp_2", 1.0)

    async def of_text(format_: ExportFormat) -> list[dict[str, Any]]:
        return await rows(store, format_, dialect="completions")

    prompt, answer, correction = "A strop is", " a leather.", " a strap."
    assert [{"prompt": prompt, "completion": answer, "label": True}] == await of_text("kto")
    assert [{"prompt": prompt, "chosen": correction, "rejected": answer}] == await of_text("dpo")
    assert [
        {"prompt": prompt, "completion": answer},
        {"prompt": prompt, "completion": correction},
    ] == await of_text("sft")
    assert 1 == len(await rows(store, "kto"))


async def test_a_prompt_that_is_repeated_is_no_answer(store: Store) -> None:
    """With `echo`, what the model said begins after it; where that can't be told, there is none."""
    text = {"dialect": "completions", "choices": (choice(message=b'{"text":"One two"}'),)}
    await record(store, "cmp_1", request=b'{"prompt": "One", "echo": true}', **text)
    await record(store, "cmp_2", request=b'{"prompt": ["One"], "echo": true}', **text)
    await record(store, "cmp_3", request=b'{"prompt": "Two", "echo": true}', **text)
    await record(store, "cmp_4", request=b'{"prompt": "One two", "echo": true}', **text)
    for number in (1, 2, 3, 4):
        await rate(store, f"cmp_{number}", correction=" three")

    expected = {"prompt": "One", "completion": " two", "label": True}
    assert [expected] * 2 == await rows(store, "kto", dialect="completions")
    pair = {"prompt": "One", "chosen": " three", "rejected": " two"}
    assert [pair] * 2 == await rows(store, "dpo", dialect="completions")


class Deleting(Reader):
    """Beside which completions are deleted, just before the choices of one are read."""

    delete: Callable[[], Awaitable[object]]

    async def all(self, query: Query[T]) -> list[T]:
        if "FROM choices" in query.sql:
            await self.delete()
        return await super().all(query)


async def test_what_is_deleted_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    """Half a completion is none."""
    store = await Store.open(database_in(tmp_path))
    for number in range(3):
        await record(store, f"cmp_{number}")
        await rate(store, f"cmp_{number}")
    reader = await Deleting.open(database_in(tmp_path))
    assert isinstance(reader, Deleting)
    reader.delete = lambda: store.deletion.completions(["cmp_1"])

    exported = await rows(Store(store._writer, reader), "raw")
    await reader.close()
    await store.close()

    assert ["cmp_0", "cmp_2"] == [row["id"] for row in exported]


async def test_raw_has_all_that_is_stored(store: Store) -> None:
    """Texts, ids, logprobs, sampling, versions, and the standing feedback."""
    await record(
        store, "cmp_1", session="mine", sampling=b'{"temperature":0.5}', version="v3",
        base="sha256:0123", prompt_ids=array("i", [5, 6]), upstream_id="chatcmpl-1",
        choices=(choice(logprobs=array("f", [-0.5, -math.inf, -0.25])),),
    )  # fmt: skip
    given = (await rate(store, "cmp_1", -1.0, comment="no", correction="so", tags=("a",))).feedback

    (row,) = await rows(store, "raw")

    assert [QUESTION] == row["request"]["messages"]
    assert ({"temperature": 0.5}, "v3", "sha256:0123", [5, 6], "mine", "cmp_1", True, None) == (
        row["sampling"], row["version"], row["base"], row["prompt_ids"], row["session"],
        row["turn"], row["starts_turn"], row["request_base64"],
    )  # fmt: skip
    assert [
        {
            "index": 0,
            "message": ANSWER,
            "finish_reason": "stop",
            "token_ids": [7, 11, 2],
            "token_texts": None,
            "logprobs": [-0.5, None, -0.25],
            "logprobs_source": "engine",
            "logprobs_kind": "raw",
        }
    ] == row["choices"]
    (feedback,) = row["feedback"]
    assert (given.id, 1, 0, -1.0, "bad", "no", "so", ["a"], "completion") == (
        feedback["id"], feedback["revision"], feedback["choice"], feedback["rating"],
        feedback["original"], feedback["comment"], feedback["correction"], feedback["tags"],
        feedback["scope"],
    )  # fmt: skip


async def test_raw_keeps_a_request_that_is_not_json(store: Store) -> None:
    """Its bytes are there in base64; lone surrogates are JSON and stay JSON."""
    await record(store, "cmp_1", request=b"\xff\x00")
    await record(
        store,
        "cmp_2",
        request=b'{"messages": [{"content": "\\ud800"}]}',
        choices=(choice(logprobs=array("f", [-math.inf])),),
    )
    await rate(store, "cmp_1")
    await rate(store, "cmp_2")

    broken, lone = await rows(store, "raw")

    assert (None, "/wA=") == (broken["request"], broken["request_base64"])
    assert ("\ud800", None) == (lone["request"]["messages"][0]["content"], lone["request_base64"])
    assert [None] == lone["choices"][0]["logprobs"]


@pytest.mark.parametrize("format_", get_args(ExportFormat))
async def test_each_line_says_whether_its_session_is_held_out(
    store: Store, format_: ExportFormat
) -> None:
    """By the session's first completion, for each of its answers: strop measures on those."""
    ids = [f"cmp_{number}" for number in range(12)]
    for id_ in ids:
        await record(store, id_, session=f"of {id_}")
        await rate(store, id_, correction=f"Better than {id_}.")
    first = next(filter(is_held_out, ids))
    await record(store, "cmp_later", session=f"of {first}")
    await rate(store, "cmp_later", correction="Better than cmp_later.")

    found = await lines_of(store, format_)

    each = 2 if format_ == "sft" else 1
    expected = [is_held_out(root) for root in [*ids[:2], *ids[10:], *ids[2:10], first]]
    assert {True, False} == {*expected}
    assert not is_held_out("cmp_later")
    assert [said for said in expected for _ in range(each)] == [row["held_out"] for row in found]


@pytest.mark.parametrize("where", ["request", "answer"])
async def test_half_a_character_keeps_no_reader_from_the_rest(store: Store, where: str) -> None:
    """JSON may hold half a surrogate pair, as some clients send; readers then refuse the file."""
    half, whole = "\ud83d", "\U0001f600"
    asked = asks({"role": "user", "content": half if where == "request" else whole})
    answer = choice(message=says(half if where == "answer" else whole))
    await record(store, "cmp_1", request=asked, choices=(answer,))
    await record(store, "cmp_2", request=asks({"role": "user", "content": whole, "name": "\x00"}))
    await rate(store, "cmp_1")
    await rate(store, "cmp_2")

    found = [row["completion_id"] for row in await lines_of(store, "sft")]

    assert ["cmp_2"] == found
