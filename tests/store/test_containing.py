"""Completions by what was said: found wherever it stands, and however it is written."""

import asyncio
import base64
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from store_values import KEY, NOON_MS, OTHER_KEY, choice, database_in, rate, record

from strop.proxy.store import containing
from strop.proxy.store.database import Row
from strop.proxy.store.records import CompletionFilter, Revision
from strop.proxy.store.store import Store

NAME = "José Müller"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


def chat(*messages: dict[str, Any], **members: object) -> bytes:
    """A request; what is not ASCII is escaped."""
    return json.dumps({"model": "m", "messages": messages, **members}).encode()


def said(text: object, role: str = "user") -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": text}


def calling(arguments: object) -> dict[str, Any]:
    """A message that calls a tool."""
    function = {"name": "look_up", "arguments": arguments}
    call = {"id": "call_jose", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


async def holding(store: Store, text: str, **wanted: Any) -> list[str]:
    """Return the ids of the completions that hold `text`."""
    page = await store.list_completions(CompletionFilter(containing=text, **wanted), limit=100)
    return [one.id for one in page.data]


@pytest.mark.parametrize(
    "request_",
    [
        chat(said(f"Who is {NAME}?")),
        json.dumps({"messages": [said(f"Who is {NAME}?")]}, ensure_ascii=False).encode(),
        chat(said(f"You help {NAME}.", "system"), said("Who am I?")),
        chat(said("Who?"), said(f"{NAME}.", "assistant"), said("Thanks.")),
        chat(said([{"type": "text", "text": f"Who is {NAME}?"}])),
        chat(said([{"type": "image_url", "image_url": {"url": f"https://x/{NAME}.png"}}])),
        chat(said("Who am I?") | {"name": NAME}),
        chat(said("Who am I?"), user=NAME),
        chat(said("Who am I?"), metadata={"of": NAME}),
        chat(calling(f'{{"name": "{NAME}"}}')),
        chat(calling(json.dumps({"name": NAME}))),
        chat(said(json.dumps({"found": json.dumps([NAME])}), "tool")),
        chat(said(normalize("NFD", NAME))),
        json.dumps({"model": "m", "prompt": f"{NAME} is"}).encode(),
        json.dumps({"model": "m", "prompt": ["One", f"{NAME} is"]}).encode(),
        json.dumps({"model": "m", "prompt": "A", "suffix": NAME}).encode(),
        b"no JSON, but of " + NAME.encode(),
        b"\xff " + NAME.encode(),
        chat(said(f"Jos\N{LATIN SMALL LETTER E WITH ACUTE} {normalize('NFD', 'Müller')}")),
        chat(said("José\u00a0\n\tMüller")),
        chat(said(r'{"a": "JOS\u00c9\nM\u00dcLLER"}', "tool")),
        chat(said(f"![](data:image/png;base64,AAAA) by {NAME}")),
        chat(said(f"data:text/plain;base64,QUJD, asks {NAME}")),
        chat(said([{"type": "file", "file": {"filename": "a.txt", "file_data": NAME}}])),
        chat(calling({"id": NAME})),
        chat(calling({"type": {"data": NAME}})),
        chat(calling({NAME: 3})),
        chat(said([{"type": "json", "data": {"role": NAME}}], "tool")),
        chat(said({"id": NAME}, "tool")),
        chat(said([{"id": NAME}], "tool")),
        chat(said("Who?"), documents=[{"title": "T", "data": NAME}]),
        chat(said("Who?"), metadata={"id": NAME}),
        chat(said("Who?"), prediction={"type": "content", "content": NAME}),
        chat(said("Who?"), chat_template_kwargs={"user_name": NAME}),
        chat(said("Who?"), stop=[f"{NAME}:"]),
        chat(said("Who?"), guided_choice=[NAME, "Bob"]),
        chat(said("Who?"), structured_outputs={"choice": [NAME]}),
        chat(said("Who?"), response_format={"json_schema": {"schema": {"enum": [NAME]}}}),
        chat(said("Who?"), safety_identifier=NAME),
    ],
)
@pytest.mark.parametrize(
    "text", [NAME, "josé müller", normalize("NFD", NAME), "José \N{NO-BREAK SPACE}MÜLLER"]
)
async def test_it_is_found_in_what_was_asked(store: Store, request_: bytes, text: str) -> None:
    """Whoever said it, in whatever case, with whatever white space, and in JSON that is a text."""
    await record(store, "cmp_1", request=request_)
    await record(store, "cmp_2")

    assert ["cmp_1"] == await holding(store, text)


@pytest.mark.parametrize(
    "message",
    [
        said(f"You are {NAME}.", "assistant"),
        {"role": "assistant", "content": "Hm.", "reasoning_content": f"It is {NAME}"},
        {"role": "assistant", "content": "Hm.", "reasoning": f"It is {NAME}"},
        {"role": "assistant", "content": None, "refusal": f"Not of {NAME}."},
        calling(json.dumps({"name": NAME})),
        {"text": f" {NAME}."},
        {"content": f"data:image/png;base64,AAAA) {NAME}"},
        {"content": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": NAME}]},
        {"content": None, "audio": {"id": "audio_1", "data": "AAAA", "transcript": NAME}},
    ],
)
async def test_it_is_found_in_each_answer(store: Store, message: dict[str, Any]) -> None:
    """In its words, its thoughts and its calls."""
    answer = choice(1, message=json.dumps(message).encode())
    await record(store, "cmp_1", choices=(choice(), answer))
    await record(store, "cmp_2")

    assert ["cmp_1"] == await holding(store, NAME)


@pytest.mark.parametrize(
    "words", [{"comment": f"{NAME}!"}, {"correction": f"Ask {NAME}."}, {"tags": ("x", NAME)}]
)
async def test_it_is_found_in_what_was_said_of_an_answer(
    store: Store, words: dict[str, Any]
) -> None:
    """Also where that was revised since: it is kept."""
    for id_ in ("cmp_1", "cmp_2"):
        await record(store, id_)
        given = (await rate(store, id_)).feedback
        await store.revise(given.id, KEY, Revision(1.0, b"1", **(words if id_ == "cmp_1" else {})))
        await store.revise(given.id, KEY, Revision(1.0, b"1"))

    assert ["cmp_1"] == await holding(store, NAME)


async def test_what_nobody_has_said_is_passed_over(store: Store) -> None:
    """Else roles, ids, models, and the letters of an image would be found in many."""
    image = base64.b64encode(b"\xa3\x9a" + b"image" * 100).decode()
    parts = [
        {"type": "text", "text": "Look."},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "input_audio", "input_audio": {"data": image, "format": "wav"}},
        {"type": "file", "file": {"file_data": image}},
        {"type": "image_url", "image_url": {"url": "https://x.org/y", "detail": "high"}},
    ]
    thoughts = [{"type": "thinking", "thinking": "Aha.", "signature": "c2lnbmVk"}]
    result = said("7", "tool") | {"tool_call_id": "call_jose"}
    tool = {"type": "function", "function": {"name": "shell", "parameters": {}}}
    messages = (said(parts), said(thoughts, "assistant"), calling("{}"), result)
    asked = chat(*messages, tools=[tool], tool_choice="auto", seed=42, reasoning_effort="medium")
    await record(store, "cmp_1", request=asked, session="mine")
    of_ids = json.dumps({"model": "m", "prompt": [[42, 43], [44]]}).encode()
    await record(store, "cmp_2", request=of_ids)

    words = ("user", "text", "m", "call_jose", image[:4], "shell", "messages", "wav", "mine", KEY)
    labels = ("high", "c2lnbmVk", "thinking", "auto", "42", "medium")
    assert [] == [text for text in (*words, *labels) if await holding(store, text)]
    assert ["cmp_1"] == await holding(store, "look")


@pytest.mark.parametrize(
    "text", ['Ann "Annie" Smith', r"C:\Users\new", "https://x.org/ann", "Ann\nSmith", "5551234"]
)
@pytest.mark.parametrize("times", range(5))
async def test_it_is_found_in_json_within_json(store: Store, text: str, times: int) -> None:
    """However often that was escaped, a slash too."""
    written = text
    for _ in range(times):
        written = json.dumps([written]).replace("/", r"\/")
    await record(store, "cmp_1", request=chat(said(written, "tool")))
    await record(store, "cmp_2")

    assert ["cmp_1"] == await holding(store, text)


async def test_a_number_is_found_where_it_is_no_setting(store: Store) -> None:
    """As a tool's result has one."""
    await record(store, "cmp_1", request=chat(said({"phone": 5551234, "is": True}, "tool")))
    await record(store, "cmp_2", request=chat(said("Hi."), seed=5551234))

    assert ["cmp_1"] == await holding(store, "5551234")
    assert [] == await holding(store, "true")


async def test_a_space_at_an_end_is_one(store: Store) -> None:
    """Also at the end of what was said."""
    for id_, text in {"cmp_1": "Is it\nAnn?", "cmp_2": "Susann", "cmp_3": "Ann"}.items():
        await record(store, id_, request=chat(said(text)))

    assert ["cmp_3", "cmp_1"] == await holding(store, " ann")
    assert ["cmp_3"] == await holding(store, " ann ")


async def test_accents_are_found_in_either_order(store: Store) -> None:
    """Wherever in a long text they stand."""
    for at in range(90, 135):
        await record(store, f"cmp_{at}", request=chat(said("x" * at + "oe\u0302\u0323 is")))

    assert 45 == len(await holding(store, "oe\u0323\u0302"))


async def test_accents_without_end_are_looked_into(store: Store) -> None:
    """To put all of them in order at once would take many minutes."""
    endless = "e" + "\u0301\u0323" * 1_000_000
    await record(store, "cmp_1", request=chat(said(f"{endless} {NAME}")))

    assert ["cmp_1"] == await holding(store, NAME)


async def test_what_is_damaged_is_passed_over(store: Store, tmp_path: Path) -> None:
    """The others are found."""
    await record(store, "cmp_1", request=chat(said(NAME)))
    await record(store, "cmp_2", request=chat(said(f"{NAME} " * 500)))
    await record(store, "cmp_3", request=chat(said(NAME)))
    with contextlib.closing(sqlite3.connect(database_in(tmp_path))) as connection:
        connection.execute("UPDATE completions SET request = x'01ff' WHERE id = 'cmp_2'")
        connection.commit()

    assert ["cmp_3", "cmp_1"] == await holding(store, NAME)


async def test_what_is_deleted_meanwhile_does_not_end_the_search(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on where it was."""
    loop = asyncio.get_running_loop()
    look_into = containing.holding

    def delete_meanwhile(text: str, rows: list[Row], *others: list[Row]) -> set[str]:
        gone = store.deletion.completions([id_ for id_, _ in rows])
        asyncio.run_coroutine_threadsafe(gone, loop).result()
        return look_into(text, rows, *others)

    ids = [f"cmp_{number:02}" for number in range(50)]
    for id_ in ids:
        await record(store, id_, request=chat(said(NAME)))
    monkeypatch.setattr(containing, "holding", delete_meanwhile)

    assert ids[::-1] == await holding(store, NAME)


@pytest.mark.parametrize("escaped", [r"\ud83d\ude00", r"\\ud83d\\ude00", r"\\\\uD83D\\\\uDE00"])
async def test_a_character_may_be_escaped_in_halves(store: Store, escaped: str) -> None:
    """However often that was escaped."""
    await record(store, "cmp_1", request=chat(said(f'Said "{escaped}"')))

    assert ["cmp_1"] == await holding(store, "\N{GRINNING FACE}")


async def test_half_a_character_is_no_reason_to_fail(store: Store) -> None:
    """JSON can hold one."""
    lone = b'{"messages": [{"role": "user", "content": "\\ud83d Ann \\\\ud83d"}]}'
    await record(store, "cmp_1", request=lone)

    assert ["cmp_1"] == await holding(store, "ann")
    assert [] == await holding(store, "Bob")


@pytest.mark.parametrize("limit", [1, 3, 10, 100])
@pytest.mark.parametrize("is_rated", [None, True])
async def test_the_newest_come_first_in_pages(
    store: Store, limit: int, is_rated: bool | None
) -> None:
    """As many as asked for, however many others lie between; each goes on after the one before."""
    for number in range(60):
        text = "Ann" if number % 7 == 0 or number > 55 else "Bob"
        await record(store, f"cmp_{number:02}", request=chat(said(text)), created_ms=number)
        await rate(store, f"cmp_{number:02}")
    wanted = CompletionFilter(containing="ann", is_rated=is_rated)

    pages: list[list[str]] = []
    after, has_more = None, True
    while has_more:
        page = await store.list_completions(wanted, limit=limit, after=after)
        pages.append([one.id for one in page.data])
        after, has_more = pages[-1][-1], page.has_more

    expected = [f"cmp_{number:02}" for number in (59, 58, 57, 56, 49, 42, 35, 28, 21, 14, 7, 0)]
    assert [expected[at : at + limit] for at in range(0, 12, limit)] == pages


async def test_all_that_is_asked_for_must_hold(store: Store) -> None:
    """Beside the text, as without it."""
    asked = chat(said("Ann"))
    await record(store, "cmp_1", request=asked, session="mine", created_ms=NOON_MS - 1)
    await record(store, "cmp_2", request=asked, state="upstream_error", choices=())
    await record(store, "cmp_3", request=asked, key_id=OTHER_KEY, model="n")
    await record(store, "cmp_4", session="mine")
    await rate(store, "cmp_1")

    expected = {
        CompletionFilter(): ["cmp_3", "cmp_2", "cmp_1"],
        CompletionFilter(session="mine"): ["cmp_1"],
        CompletionFilter(state="upstream_error"): ["cmp_2"],
        CompletionFilter(key_id=OTHER_KEY): ["cmp_3"],
        CompletionFilter(model="n"): ["cmp_3"],
        CompletionFilter(is_rated=True): ["cmp_1"],
        CompletionFilter(since_ms=NOON_MS): ["cmp_3", "cmp_2"],
        CompletionFilter(session="mine", key_id=OTHER_KEY): [],
    }

    assert expected == {
        wanted: [
            one.id for one in (await store.list_completions(replace(wanted, containing="ANN"))).data
        ]
        for wanted in expected
    }
