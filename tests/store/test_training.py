"""Rated turns: which completions a rating credits, and in which pages they come."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from store_values import (
    KEY,
    MODEL,
    NOON_MS,
    OTHER_KEY,
    OTHER_MODEL,
    always,
    choice,
    database_in,
    first_of_session,
    learnable,
    rate,
    rating,
    record,
    version,
)

from strop.proxy.store import rated_turns, training_store
from strop.proxy.store.records import Revision, State
from strop.proxy.store.run_records import Prior, RatedTurn
from strop.proxy.store.store import Store
from strop.proxy.store.training_queries import Rated

ROOT = first_of_session(0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def turns(store: Store, active: str = "base") -> list[RatedTurn]:
    return [one async for one in store.training.fresh_turns(active, base=MODEL)]


async def held_out(store: Store) -> list[RatedTurn]:
    return [one async for one in store.training.held_out_turns(base=MODEL)]


def roots(found: list[RatedTurn]) -> dict[str, list[str]]:
    """The completions of rated turns, by the first of their sessions."""
    grouped: dict[str, list[str]] = {}
    for one in found:
        grouped.setdefault(one.root, []).extend(each.completion.id for each in one.completions)
    return {root: sorted(ids) for root, ids in grouped.items()}


def credited(turn: RatedTurn) -> list[tuple[str, int]]:
    return [
        (one.completion.id, index)
        for one, index in zip(turn.completions, turn.choices, strict=True)
    ]


async def tool_loop(
    store: Store,
    *,
    second_state: State = "complete",
    second_base: str | None = MODEL,
) -> None:
    """Record a turn of its own, then one of three completions; the second has two choices."""
    await record(store, ROOT, base=MODEL, choices=(choice(chain=b"0"),))
    await record(
        store, "cmp_1", base=MODEL, after=b"0", choices=(choice(0, chain=b"1"),),
        created_ms=NOON_MS + 1,
    )  # fmt: skip
    await record(
        store, "cmp_2", base=second_base, after=b"1", starts_turn=False, state=second_state,
        choices=(choice(0, chain=b"2a"), choice(1, chain=b"2b")), created_ms=NOON_MS + 2,
    )  # fmt: skip
    await record(
        store, "cmp_3", base=MODEL, after=b"2b", starts_turn=False, created_ms=NOON_MS + 3,
        choices=(choice(0, chain=b"3"),),
    )  # fmt: skip


async def test_a_rating_of_a_completion_credits_that_one(store: Store) -> None:
    """Whole, with its feedback, its choice and the first completion of its session."""
    await tool_loop(store)
    given = (await rate(store, "cmp_2", -1.0, choice=1)).feedback

    (found,) = await turns(store)

    assert (await store.get_completion("cmp_2"),) == found.completions
    assert ((given,), (1,), ROOT) == (found.feedback, found.choices, found.root)


async def test_a_rating_of_a_turn_credits_all_of_it_up_to_the_rated_one(store: Store) -> None:
    """From the last user message on, along the parents, each with the choice that was gone on with.

    Neither the turn before nor what came after the rated completion is in it.
    """
    await tool_loop(store)
    await record(store, "cmp_4", base=MODEL, after=b"3", starts_turn=False)
    await rate(store, "cmp_3", scope="turn")

    (found,) = await turns(store)

    assert [("cmp_1", 0), ("cmp_2", 1), ("cmp_3", 0)] == credited(found)
    assert ROOT == found.root


async def test_a_turn_that_forked_is_credited_along_its_parents(store: Store) -> None:
    """What another branch answered from the same beginning isn't in it."""
    await tool_loop(store)
    await record(store, "cmp_other", base=MODEL, after=b"1", starts_turn=False)
    await rate(store, "cmp_other", scope="turn")

    (found,) = await turns(store)

    assert [("cmp_1", 0), ("cmp_other", 0)] == credited(found)


async def test_a_turn_of_one_completion_is_that_one(store: Store) -> None:
    """Also where its conversation began earlier."""
    await tool_loop(store)
    await rate(store, "cmp_1", scope="turn")

    (found,) = await turns(store)

    assert [("cmp_1", 0)] == credited(found)


@pytest.mark.parametrize(
    "state", ["client_cancelled", "upstream_error", "upstream_timeout", "shutdown"]
)
async def test_what_broke_off_within_a_turn_is_left_out(store: Store, state: State) -> None:
    """Unless it is the rated one, and broke off because the client left."""
    await tool_loop(store, second_state=state)
    await rate(store, "cmp_3", scope="turn")
    await rate(store, "cmp_2", scope="turn")

    found = [credited(one) for one in await turns(store)]

    rated_itself = [("cmp_1", 0), ("cmp_2", 0)]
    assert [
        [("cmp_1", 0), ("cmp_3", 0)],
        *([rated_itself] if state == "client_cancelled" else []),
    ] == found


@pytest.mark.parametrize("base", [OTHER_MODEL, None])
async def test_what_another_base_answered_within_a_turn_is_left_out(
    store: Store, base: str | None
) -> None:
    """Its tokens say nothing about this one."""
    await tool_loop(store, second_base=base)
    await rate(store, "cmp_3", scope="turn")

    (found,) = await turns(store)

    assert [("cmp_1", 0), ("cmp_3", 0)] == credited(found)


async def test_several_raters_of_a_choice_come_together(store: Store) -> None:
    """In the order of arrival, what is learned already included, and as wide as the widest."""
    await tool_loop(store)
    first = (await rate(store, "cmp_3", 1.0, rater="ann")).feedback
    await version(store, (first.id, 1))
    second = (await rate(store, "cmp_3", -1.0, rater="bob", scope="turn")).feedback

    (found,) = await turns(store, "v1")

    assert (first, second) == found.feedback
    assert [("cmp_1", 0), ("cmp_2", 1), ("cmp_3", 0)] == credited(found)


async def test_each_rated_choice_is_a_turn_of_its_own(store: Store) -> None:
    """Only the rated ones."""
    await record(store, ROOT, base=MODEL, choices=(choice(0), choice(1), choice(2)))
    await rate(store, ROOT, 1.0, choice=0)
    await rate(store, ROOT, -1.0, choice=2)

    found = await turns(store)

    assert {(0, 1.0), (2, -1.0)} == {(one.choices[0], one.feedback[0].rating) for one in found}


async def test_held_out_turns_are_apart(store: Store) -> None:
    """What is held out is never among the fresh, learned or not; what isn't never among these."""
    kept = [await learnable(store, n) for n in range(3)]
    apart = [await learnable(store, n, held_out=True) for n in range(3)]
    await version(store, kept[0], apart[0])

    fresh = {(f.id, f.revision) for one in await turns(store, "v1") for f in one.feedback}
    held = {(f.id, f.revision) for one in await held_out(store) for f in one.feedback}

    assert set(kept[1:]) == fresh
    assert set(apart) == held


async def test_of_many_held_out_turns_the_newest_are_looked_at(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What people like changes, and each is read and scored."""
    monkeypatch.setattr(training_store, "MOST_TURNS", 2)
    apart = [await learnable(store, n, held_out=True) for n in range(3)]

    held = [(f.id, f.revision) for one in await held_out(store) for f in one.feedback]

    assert apart[:0:-1] == held


async def test_sessions_that_two_keys_name_alike_are_held_out_apart(store: Store) -> None:
    """By the first completion of each key, pending or not; else a team's shared label is one."""
    first, theirs, late = first_of_session(1, held_out=True), first_of_session(2), "cmp_late"
    await record(store, first, session="project", base=MODEL)
    await record(store, theirs, session="project", base=MODEL, key_id=OTHER_KEY)
    await rate(store, first)
    await rate(store, theirs, key_id=OTHER_KEY)
    await store.add_feedback(rating(late, key_id=OTHER_KEY), always)
    await record(store, late, session="project", base=MODEL, key_id=OTHER_KEY)

    assert {first: [first]} == roots(await held_out(store))
    assert {theirs: [theirs, late]} == roots(await turns(store))


@pytest.mark.parametrize(("choices_page", "turns_page"), [(256, 8), (1, 1), (3, 2)])
async def test_turns_come_in_pages_newest_first(
    store: Store, monkeypatch: pytest.MonkeyPatch, choices_page: int, turns_page: int
) -> None:
    """Each rated choice once, in the same order, however large the pages."""
    monkeypatch.setattr(training_store, "_CHOICES_PAGE", choices_page)
    monkeypatch.setattr(training_store, "_TURNS_PAGE", turns_page)
    ids = [first_of_session(number) for number in range(7)]
    for id_ in ids:
        await record(store, id_, base=MODEL, choices=(choice(0), choice(1)))
        for index in (0, 1):
            await rate(store, id_, choice=index)
    learned = [(one.feedback[0].id, 1) for one in await turns(store)][2:4]
    await version(store, *learned)

    found = [credited(one)[0] for one in await turns(store, "v1")]

    expected = [(id_, index) for id_ in sorted(ids, reverse=True) for index in (1, 0)]
    assert expected[:2] + expected[4:] == found


async def test_turns_can_be_left_before_their_end(store: Store) -> None:
    """Whoever has enough stops; the store goes on."""
    for number in range(12):
        await learnable(store, number)
    found = []

    async for turn in store.training.fresh_turns("base", base=MODEL):
        found.append(turn)
        if len(found) == 3:
            break

    assert 3 == len(found)
    assert 12 == len(await turns(store))


async def test_what_goes_while_it_is_read_is_left_out(store: Store) -> None:
    """The completion, its rated choice, or all that was said of it."""
    await record(store, ROOT, base=MODEL)
    given = (await rate(store, ROOT)).feedback
    ((stored,),) = [one.completions for one in await turns(store)]
    rated = Rated(ROOT, 0, ROOT)

    found = [
        rated_turns.assemble([which], said, [], there)
        for which, said, there in (
            (rated, [given], {ROOT: stored}),
            (rated, [given], {}),
            (rated, [], {ROOT: stored}),
            (replace(rated, choice=1), [replace(given, choice=1)], {ROOT: stored}),
        )
    ]

    assert [1, 0, 0, 0] == [len(one) for one in found]


async def test_ratings_of_all_keys_are_learned_from(store: Store) -> None:
    """There is one model for all."""
    mine, theirs = first_of_session(1), first_of_session(2)
    await record(store, mine, base=MODEL)
    await record(store, theirs, base=MODEL, key_id=OTHER_KEY)
    await rate(store, mine)
    await rate(store, theirs, key_id=OTHER_KEY)

    assert {KEY, OTHER_KEY} == {one.feedback[0].key_id for one in await turns(store)}


async def test_the_prior_is_over_all_that_stands_and_is_not_held_out(store: Store) -> None:
    """Learned or not; of this base alone; nothing at all is zero."""
    nothing = await store.training.prior(base=MODEL)
    for number, value in enumerate((1.0, 1.0, -0.5)):
        given = await learnable(store, number, value)
    await version(store, given)
    await learnable(store, 3, -1.0, held_out=True)
    withdrawn, _ = await learnable(store, 4)
    await store.withdraw(withdrawn, KEY)
    other = first_of_session(5)
    await record(store, other, base=OTHER_MODEL)
    await rate(store, other)

    assert Prior(0.0, 0, 0) == nothing
    assert Prior(1.5, 3, 3) == await store.training.prior(base=MODEL)
    assert Prior(1.0, 1, 1) == await store.training.prior(base=OTHER_MODEL)


async def test_in_the_prior_an_answer_counts_once_however_many_rated_it(store: Store) -> None:
    """By their mean, as in the loss; another choice of it is another answer."""
    one, two = first_of_session(1), first_of_session(2)
    await record(store, one, base=MODEL)
    await record(store, two, base=MODEL)
    for rater, value in (("ann", 1.0), ("ben", 1.0), ("cy", -0.5)):
        await rate(store, one, value, rater=rater)
    await rate(store, two, -1.0)

    assert Prior(-0.5, 2, 4) == await store.training.prior(base=MODEL)


async def test_another_choice_is_another_answer_in_the_prior(store: Store) -> None:
    """Each by its own mean."""
    root = first_of_session(1)
    await record(store, root, base=MODEL, choices=(choice(), choice(1)))
    await rate(store, root)
    for rater, value in (("ann", -1.0), ("ben", -0.5)):
        await rate(store, root, value, choice=1, rater=rater)

    assert Prior(0.25, 2, 3) == await store.training.prior(base=MODEL)


async def test_ratings_stand_as_they_were_collected_until_one_changes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on asks for all of them, however many."""
    monkeypatch.setattr(training_store, "_CHOICES_PAGE", 2)
    given = [await learnable(store, number) for number in range(5)]
    still_stand = store.training.still_stand
    stood = await still_stand(given), await still_stand([*given, ("fb_none", 1)])

    await store.withdraw(given[3][0], KEY)
    await store.revise(given[4][0], KEY, Revision(-1.0, b'"bad"'))

    assert (True, False) == stood
    assert [True, True, True, False, False] == [await still_stand([one]) for one in given]
    assert not await still_stand(given)
    assert await still_stand([*given[:3], (given[4][0], 2)])


async def test_completions_are_recorded_until_one_is_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run asks for all that it has collected, however many."""
    monkeypatch.setattr(training_store, "_CHOICES_PAGE", 2)
    ids = [f"cmp_{number}" for number in range(5)]
    for id_ in ids:
        await record(store, id_, base=MODEL)
    were_recorded = await store.training.are_recorded(ids)

    await store.deletion.completions([ids[4]])

    assert were_recorded
    assert not await store.training.are_recorded(ids)
    assert await store.training.are_recorded(ids[:4])


async def test_a_trainer_beside_the_server_reads_what_it_wrote(tmp_path: Path) -> None:
    """Two stores on one file: ratings come from one, the version from the other."""
    server = await Store.open(database_in(tmp_path), is_server=True)
    trainer = await Store.open(database_in(tmp_path))
    given = await learnable(server, 1)

    found = await turns(trainer)
    _, made = await asyncio.gather(learnable(server, 2), version(trainer, given))
    left = await turns(server, made.id)
    await trainer.close()
    await server.close()

    assert [given[0]] == [one.feedback[0].id for one in found]
    assert [first_of_session(2)] == [one.root for one in left]
