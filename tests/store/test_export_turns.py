"""Exports of turns: each rated choice with all answers that training credits by it."""

import itertools
import json
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from store_values import (
    KEY,
    MODEL,
    NOON_MS,
    OTHER_KEY,
    OTHER_MODEL,
    choice,
    database_in,
    first_of_session,
    rate,
    record,
)

from strop.proxy.store import training_store
from strop.proxy.store.database import Query
from strop.proxy.store.held_out import is_held_out
from strop.proxy.store.reader import Reader
from strop.proxy.store.records import FeedbackFilter, Scope, State
from strop.proxy.store.run_records import RatedTurn
from strop.proxy.store.store import ALL_FEEDBACK, Store

T = TypeVar("T")

ROOT = first_of_session(0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def lines(store: Store, wanted: FeedbackFilter = ALL_FEEDBACK) -> list[dict[str, Any]]:
    found = [line async for line in store.export("turns", wanted)]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in found)
    return [json.loads(line) for line in found]


def credited(line: dict[str, Any]) -> list[tuple[str, int]]:
    return [(answer["id"], answer["choice"]) for answer in line["answers"]]


async def tool_loop(
    store: Store,
    root: str = ROOT,
    base: str | None = MODEL,
    second: Mapping[str, object] | None = None,
) -> list[str]:
    """Record a turn of three completions, in a session of its own; return their ids.

    The second, which is as `second` says, has two choices: the client goes on with the last.
    """
    ids = [root, f"{root}_second", f"{root}_third"]
    after = None
    for number, id_ in enumerate(ids):
        indexes = (0, 1) if number == 1 else (0,)
        choices = tuple(choice(n, chain=f"{id_} {n}".encode()) for n in indexes)
        changes = {"base": base, **(second or {} if number == 1 else {})}
        await record(
            store, id_, after=after, starts_turn=number == 0, choices=choices,
            created_ms=NOON_MS + number, **changes,
        )  # fmt: skip
        after = choices[-1].chain
    return ids


async def test_a_rating_of_a_turn_has_all_answers_up_to_the_rated_one(store: Store) -> None:
    """Oldest first, each with the choice that was gone on with, and at last the rated one."""
    first, second, third = await tool_loop(store)
    await rate(store, third, scope="turn")

    (line,) = await lines(store)

    assert [(first, 0), (second, 1), (third, 0)] == credited(line)
    assert [1, 2, 1] == [len(answer["choices"]) for answer in line["answers"]]
    assert (third, 0, 1.0, ROOT) == (
        line["completion_id"], line["choice"], line["rating"], line["root"],
    )  # fmt: skip


async def test_an_answer_is_a_line_of_raw_without_feedback(store: Store) -> None:
    """Whoever reads the one can read the other; ratings are as there too."""
    root, ids = first_of_session(0, held_out=True), array("i", [5, 6])
    await record(store, root, base=MODEL, prompt_ids=ids, choices=(choice(), choice(1)))
    await rate(store, root, -1.0, choice=1, comment="no", correction="so", tags=("a",))

    (line,) = await lines(store)
    (raw,) = [json.loads(raw) async for raw in store.export("raw")]

    assert {
        "completion_id": root,
        "choice": 1,
        "rating": -1.0,
        "session": raw["session"],
        "root": root,
        "held_out": raw.pop("held_out"),
        "feedback": raw.pop("feedback"),
        "answers": [{**raw, "choice": 1}],
    } == line
    assert line["held_out"]


async def test_a_text_has_a_line_too(store: Store) -> None:
    """As in raw, whatever dialect is asked for."""
    await record(store, ROOT, dialect="completions", request=b'{"prompt": "A strop is"}')
    await rate(store, ROOT)

    (line,) = await lines(store)

    assert "completions" == line["answers"][0]["dialect"]


async def test_a_rating_of_a_completion_has_that_alone(store: Store) -> None:
    """What came before it in the turn is not credited."""
    *_, third = await tool_loop(store)
    await rate(store, third, scope="completion")

    assert [[(third, 0)]] == [credited(line) for line in await lines(store)]


async def test_ratings_of_one_choice_are_one_line(store: Store) -> None:
    """With their mean; where one of them is of the turn, its steps are credited."""
    first, second, third = await tool_loop(store)
    scopes: tuple[tuple[str, Scope], ...] = (("ann", "completion"), ("bob", "turn"))
    for (rater, scope), value in zip(scopes, (1.0, -0.5), strict=True):
        await rate(store, third, value, rater=rater, scope=scope)

    (line,) = await lines(store)

    assert [(first, 0), (second, 1), (third, 0)] == credited(line)
    assert ["ann", "bob"] == [one["rater"] for one in line["feedback"]]
    assert 0.25 == line["rating"]


async def test_each_rated_choice_of_a_completion_has_a_line(store: Store) -> None:
    """In their order, each with what was said of that one."""
    first, second, _ = await tool_loop(store)
    await rate(store, second, -1.0, choice=1, scope="turn")
    await rate(store, second, 1.0)

    found = await lines(store)

    assert [[(second, 0)], [(first, 0), (second, 1)]] == [credited(line) for line in found]
    assert [(0, 1.0), (1, -1.0)] == [(line["choice"], line["rating"]) for line in found]
    assert [[0], [1]] == [[one["choice"] for one in line["feedback"]] for line in found]


async def test_a_step_that_broke_off_is_left_out(store: Store) -> None:
    """As training leaves it out; the others of the turn are there."""
    first, _, third = await tool_loop(store, second={"state": "upstream_error"})
    await rate(store, third, scope="turn")

    assert [[(first, 0), (third, 0)]] == [credited(line) for line in await lines(store)]


async def test_a_filter_chooses_ratings(store: Store) -> None:
    """Of what it leaves out no line says anything: no rating in the mean, no step by its scope."""
    mine = await tool_loop(store)
    theirs = first_of_session(1)
    await record(store, theirs, key_id=OTHER_KEY, session="theirs")
    await rate(store, mine[-1], -1.0, rater="ann")
    await rate(store, mine[-1], rater="bob", scope="turn")
    await rate(store, theirs, key_id=OTHER_KEY)

    async def found(**wanted: Any) -> list[tuple[float, list[str]]]:
        asked = await lines(store, FeedbackFilter(**wanted))
        return [(line["rating"], [id_ for id_, _ in credited(line)]) for line in asked]

    assert [(0.0, mine), (1.0, [theirs])] == await found()
    assert [(-1.0, mine[-1:])] == await found(rater="ann")
    assert [(1.0, mine)] == await found(rater="bob")
    assert [(0.0, mine)] == await found(key_id=KEY)
    assert [(1.0, [theirs])] == await found(session="theirs")
    assert [] == await found(since_ms=2**60)


@pytest.mark.parametrize("page", [1, 2, 8])
async def test_turns_go_on_over_many_pages(
    store: Store, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Every rated choice once, oldest first, however large the pages."""
    monkeypatch.setattr(training_store, "_TURNS_PAGE", page)
    expected = []
    for number in range(5):
        first, second, third = await tool_loop(store, first_of_session(number))
        await rate(store, second, choice=0)
        await rate(store, second, choice=1)
        await rate(store, third, scope="turn")
        expected += [[(second, 0)], [(second, 1)], [(first, 0), (second, 1), (third, 0)]]

    assert expected == [credited(line) for line in await lines(store)]


class Deleting(Reader):
    """Beside which completions are deleted, once it is known which are asked for."""

    delete: Callable[[], Awaitable[object]]

    async def all(self, query: Query[T]) -> list[T]:
        if "FROM choices" in query.sql:
            await self.delete()
        return await super().all(query)


async def test_what_is_deleted_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    """A rated answer with its line, a step from the line of another."""
    store = await Store.open(database_in(tmp_path))
    gone, first, last = (first_of_session(number) for number in range(3))
    loops = [await tool_loop(store, root) for root in (gone, first, last)]
    for *_, third in loops:
        await rate(store, third, scope="turn")
    reader = await Deleting.open(database_in(tmp_path))
    assert isinstance(reader, Deleting)
    reader.delete = lambda: store.deletion.completions([loops[0][2], loops[1][1]])

    found = await lines(Store(store._writer, reader))
    await reader.close()
    await store.close()

    whole = list(zip(loops[2], (0, 1, 0), strict=True))
    assert [[(first, 0), (loops[1][2], 0)], whole] == [credited(line) for line in found]


async def test_what_is_redacted_is_as_it_is_recorded(store: Store) -> None:
    """A step too: the line is the record, as a line of raw is."""
    asked = b'{"messages": [{"role": "user", "content": "I am [redacted]."}]}'
    *_, third = await tool_loop(store, second={"request": asked, "prompt_ids": None})
    await rate(store, third, scope="turn")

    (line,) = await lines(store)

    assert 3 == len(line["answers"])
    assert json.loads(asked) == line["answers"][1]["request"]


def read(turn: RatedTurn) -> tuple[object, ...]:
    """What training reads of a rated choice, as `written` has it."""
    ids = [one.completion.id for one in turn.completions]
    given = [(one.id, one.revision) for one in turn.feedback]
    return list(zip(ids, turn.choices, strict=True)), given, turn.root, is_held_out(turn.root)


def written(line: dict[str, Any]) -> tuple[object, ...]:
    given = [(one["id"], one["revision"]) for one in line["feedback"]]
    return credited(line), given, line["root"], line["held_out"]


async def test_turns_are_what_training_reads(store: Store) -> None:
    """Of each base, to learn from and held out; and beside those, what no known base answered."""
    bases = (MODEL, OTHER_MODEL, None)
    states: tuple[State, ...] = ("complete", "client_cancelled", "upstream_error")
    scopes: tuple[Scope, ...] = ("completion", "turn")
    kinds = itertools.product(bases, bases, states, scopes, (False, True))
    for number, (base, other, state, scope, is_apart) in enumerate(kinds):
        root = first_of_session(number, held_out=is_apart)
        _, second, third = await tool_loop(store, root, base, {"base": other, "state": state})
        await rate(store, second, -1.0, choice=number % 2, scope=scope)
        for rater in ("ann", "bob")[: number % 3]:
            await rate(store, third, rater=rater, scope=scope)
    training = store.training

    found: dict[str | None, list[tuple[object, ...]]] = {base: [] for base in bases}
    for line in await lines(store):
        found[line["answers"][-1]["base"]].append(written(line))

    for base in (MODEL, OTHER_MODEL):
        fresh = [read(turn) async for turn in training.fresh_turns("base", base=base)]
        held_out = [read(turn) async for turn in training.held_out_turns(base=base)]
        assert min(len(fresh), len(held_out)) > 20
        assert sorted([*fresh, *held_out]) == sorted(found[base])
    assert len(found[None]) > 20
