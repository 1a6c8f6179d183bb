"""What versions have learned: what is fresh, by ancestry, and what makes a version stale."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from store_values import (
    KEY,
    MODEL,
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

from strop.proxy.errors import NotFound
from strop.proxy.store import store as storing
from strop.proxy.store.held_out import is_held_out
from strop.proxy.store.records import Feedback, Revision, Scope
from strop.proxy.store.run_records import FreshCounts
from strop.proxy.store.store import Store

GOOD = Revision(1.0, b'"good"')
BAD = Revision(-1.0, b'"bad"')


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def fresh(store: Store, active: str) -> set[tuple[str, int]]:
    """The fresh ratings and their revisions, as many as are counted."""
    turns = store.training.fresh_turns(active, base=MODEL)
    found = [(one.id, one.revision) async for turn in turns for one in turn.feedback]
    counts = await store.training.fresh_counts(active, base=MODEL)
    assert counts.total == len(found)
    return set(found)


async def stale(store: Store) -> dict[str, str]:
    """Why each stale version is so."""
    return {one.id: one.stale for one in await store.versions.list() if one.stale is not None}


async def test_fresh_ratings_are_counted_for_the_trigger(store: Store) -> None:
    """The good, the bad, those that correct, and all, since some time; and when the newest came."""
    nothing = await store.training.fresh_counts("base", base=MODEL)
    await learnable(store, 1, 1.0)
    await learnable(store, 2, 0.5, correction="like so")
    await learnable(store, 3, -1.0, correction="like so")
    neutral, _ = await learnable(store, 4, 0.0)
    newest = await store.get_feedback(neutral)
    assert newest is not None

    counts = await store.training.fresh_counts("base", base=MODEL)
    since = await store.training.fresh_counts("base", base=MODEL, since_ms=newest.created_ms)

    assert FreshCounts(0, 0, 0, 0, None) == nothing == since
    assert FreshCounts(2, 1, 2, 4, newest.created_ms) == counts


async def test_each_choice_is_counted_with_all_that_stands_on_it(store: Store) -> None:
    """By the sign of the mean."""
    one, other = first_of_session(1), first_of_session(2)
    await record(store, one, base=MODEL, choices=(choice(0), choice(1)))
    await rate(store, one, 1.0, choice=0)
    await rate(store, one, -0.5, choice=1)
    await record(store, other, base=MODEL)
    await rate(store, other, -1.0)
    await rate(store, other, 0.25)

    counts = await store.training.fresh_counts("base", base=MODEL)

    assert (2, 1, 3) == (counts.good, counts.bad, counts.total)


async def test_what_came_late_is_counted_with_what_was_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction too."""
    answer = first_of_session(1)
    await record(store, answer, base=MODEL)
    old = (await rate(store, answer, 1.0, rater="ann", correction="so")).feedback
    monkeypatch.setattr(storing, "now_ms", lambda: old.created_ms + 1)
    await rate(store, answer, -0.5, rater="bob")

    counts = await store.training.fresh_counts("base", base=MODEL, since_ms=old.created_ms)

    assert (1, 0, 1, 1) == (counts.good, counts.bad, counts.corrections, counts.total)


async def test_an_answer_that_several_people_rated_counts_once(store: Store) -> None:
    """Good or bad by the mean of all that stands on it, also of what was learned: as it is read."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL)
    learned = (await rate(store, id_, 1.0, rater="ann")).feedback
    made = await version(store, (learned.id, 1), is_active=True)
    await rate(store, id_, -0.5, rater="bob")
    await rate(store, id_, -0.25, rater="cid", correction="like so")
    for number, (first, second) in enumerate(((1.0, -1.0), (0.5, -1.0)), start=2):
        id_ = first_of_session(number)
        await record(store, id_, base=MODEL)
        await rate(store, id_, first, rater="ann")
        await rate(store, id_, second, rater="bob")

    counts = await store.training.fresh_counts(made.id, base=MODEL)
    turns = [turn async for turn in store.training.fresh_turns(made.id, base=MODEL)]

    assert (1, 1, 1, 3) == (counts.good, counts.bad, counts.corrections, counts.total)
    means = [sum(one.rating for one in turn.feedback) for turn in turns]
    assert [-0.5, 0.0, 0.25] == means


async def test_a_revised_rating_is_new_since_its_revision(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as it is now, from then on."""
    given, _ = await learnable(store, 1)
    monkeypatch.setattr(storing, "now_ms", lambda: 4_000_000_000_000)
    await store.revise(given, KEY, BAD)

    since = await store.training.fresh_counts("base", base=MODEL, since_ms=3_999_999_999_999)

    assert FreshCounts(0, 1, 0, 1, 4_000_000_000_000) == since


async def test_only_what_stands_on_answers_of_the_base_is_fresh(store: Store) -> None:
    """Not another base's or an unknown one's, not what broke off, waits, or was taken back."""
    roots = iter([first_of_session(number) for number in range(8)])

    async def rated(**changes: Any) -> Feedback:
        id_ = next(roots)
        await record(store, id_, **{"base": MODEL, **changes})
        return (await rate(store, id_)).feedback

    kept = [await rated(), await rated(state="client_cancelled")]
    for state in ("upstream_error", "upstream_timeout", "shutdown"):
        await rated(state=state)
    await rated(base=OTHER_MODEL)
    await rated(base=None)
    await store.withdraw((await rated()).id, KEY)
    await store.add_feedback(rating("cmp_waiting"), always)

    assert {(one.id, 1) for one in kept} == await fresh(store, "base")


async def test_held_out_sessions_are_never_fresh(store: Store) -> None:
    """However often they are rated."""
    kept = await learnable(store, 1)
    await learnable(store, 2, held_out=True)

    assert {kept} == await fresh(store, "base")


async def test_a_session_stays_on_its_side(store: Store) -> None:
    """What decided when its first rating came still does when an earlier request is recorded."""
    root, earlier = first_of_session(1), first_of_session(2, held_out=True)
    await record(store, root, base=MODEL, session="mine", created_ms=2000)
    before = (await rate(store, root)).feedback
    await record(store, earlier, base=MODEL, session="mine", created_ms=1000)

    after = (await rate(store, earlier)).feedback

    found = [one async for one in store.training.fresh_turns("base", base=MODEL)]
    assert {(before.id, root), (after.id, root)} == {
        (one.feedback[0].id, one.root) for one in found
    }


def test_the_side_of_a_session_never_changes() -> None:
    """Not with another version of strop either: who is judged by it would have learned from it."""
    sides = "".join(str(int(is_held_out(f"cmp_{number}"))) for number in range(40))
    num_held_out = sum(is_held_out(f"cmp_{number}") for number in range(10_000))

    assert "0100000000100000000000010000100000000000" == sides
    assert 1_547 == num_held_out


async def test_a_rating_that_waited_is_learned_from_like_any(store: Store) -> None:
    """It gets its base, its session's side and its freshness when its completion is recorded."""
    root, held_out = first_of_session(1), first_of_session(2, held_out=True)
    for id_ in (root, held_out):
        await store.add_feedback(rating(id_), always)
        await record(store, id_, base=MODEL)

    (found,) = [one async for one in store.training.fresh_turns("base", base=MODEL)]

    assert root == found.root


async def test_what_a_version_learned_is_fresh_no_more_for_it_and_its_descendants(
    store: Store,
) -> None:
    """Consumption follows from ancestry: each branch has learned its own."""
    first, second, third, last = [await learnable(store, n) for n in range(4)]
    await version(store, first)
    await version(store, second, parent="v1")
    await version(store, third, parent="v1")

    assert {
        "base": {first, second, third, last},
        "v1": {second, third, last},
        "v2": {third, last},
        "v3": {second, last},
    } == {id_: await fresh(store, id_) for id_ in ("base", "v1", "v2", "v3")}


async def test_a_rejected_version_has_consumed_nothing(store: Store) -> None:
    """Nor has a candidate whose run failed; what they learned trains with the next run."""
    given = await learnable(store, 1)
    await store.versions.reserve(base=MODEL)
    await store.versions.publish("v1", b"{}", [given], state="rejected", actor="gate")

    assert {given} == await fresh(store, "base")


async def test_a_rollback_reopens(store: Store) -> None:
    """What the rolled back version learned is fresh again, and what the one before did is not."""
    first, second, third, last = [await learnable(store, n) for n in range(4)]
    await version(store, first, is_active=True)
    await version(store, second, parent="v1", is_active=True)
    await version(store, third, parent="v2")
    await store.versions.activate("v1", actor="api", kind="rolled_back")

    assert {second, third, last} == await fresh(store, "v1")


async def test_a_removed_version_has_still_been_learned_from(store: Store) -> None:
    """Its descendants keep what it learned, when its folder is long gone."""
    first, second = [await learnable(store, n) for n in range(2)]
    await version(store, first)
    await version(store, second, parent="v1", is_active=True)

    await store.versions.remove("v1", actor="cli")

    assert set() == await fresh(store, "v2")


async def test_the_versions_that_fresh_ratings_name_are_known(store: Store) -> None:
    """Those that sampled what is still to be learned from, and not what is held out."""
    for number, (sampled_by, held_out) in enumerate(
        [("v1", False), ("v2", False), ("v3", True), ("base", False)]
    ):
        id_ = first_of_session(number, held_out=held_out)
        await record(store, id_, base=MODEL, version=sampled_by)
        given = (await rate(store, id_)).feedback
        if sampled_by == "v1":
            await version(store, (given.id, 1))

    assert {"v2", "base"} == await store.training.fresh_versions("v1", base=MODEL)


async def test_a_rating_that_was_learned_and_taken_back_names_no_version(store: Store) -> None:
    """Whoever rolled back learns nothing from it, so who sampled it isn't kept for that."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL, version="v7")
    given = (await rate(store, id_)).feedback
    await version(store, (given.id, 1))
    named = await store.training.fresh_versions("base", base=MODEL)

    await store.withdraw(given.id, KEY)

    assert {"v7"} == named
    assert set() == await store.training.fresh_versions("base", base=MODEL)


@pytest.mark.parametrize("how", ["withdrawn", "undone", "superseded", "revised"])
async def test_taking_a_rating_back_makes_stale_who_learned_from_it(store: Store, how: str) -> None:
    """That version and its descendants, with the reason and an event each; nobody else."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL, session="mine")
    given = (await rate(store, id_)).feedback
    other = await learnable(store, 2)
    await version(store, other)
    await version(store, (given.id, 1), parent="v1")
    await version(store, parent="v2", is_active=True)
    await version(store, parent="v1")

    if how == "withdrawn":
        await store.withdraw(given.id, KEY)
    elif how == "undone":
        await store.undo("mine", KEY, "")
    elif how == "superseded":
        await rate(store, id_, -1.0)
    else:
        await store.revise(given.id, KEY, BAD)

    said = "withdrawn" if how == "undone" else how
    reason = f"v2 learned from {given.id}, which was {said} since"
    assert {"v2": reason, "v3": reason} == await stale(store)
    for marked in ("v2", "v3"):
        event = (await store.versions.list_events(marked, limit=1))[0]
        assert ("stale", "feedback", {"reason": reason}) == (
            event.kind, event.actor, json.loads(event.detail),
        )  # fmt: skip
    assert "v3" == (await store.versions.activation()).version


async def test_all_branches_that_learned_from_it_are_named(store: Store) -> None:
    """A rating that was learned twice makes both branches stale."""
    given = await learnable(store, 1)
    await version(store, given)
    await version(store, given)

    await store.withdraw(given[0], KEY)

    reason = f"v1, v2 learned from {given[0]}, which was withdrawn since"
    assert {"v1": reason, "v2": reason} == await stale(store)


async def test_a_stale_version_keeps_its_first_reason(store: Store) -> None:
    """One mark and one event, however many ratings are taken back."""
    first, second = [await learnable(store, n) for n in range(2)]
    await version(store, first, second)

    await store.withdraw(first[0], KEY)
    await store.withdraw(second[0], KEY)

    assert {"v1": f"v1 learned from {first[0]}, which was withdrawn since"} == await stale(store)
    events = await store.versions.list_events("v1")
    assert 1 == sum(event.kind == "stale" for event in events)


async def test_what_nobody_learned_makes_nothing_stale(store: Store) -> None:
    """Pending, superseded and fresh ratings are taken back without a trace on any version."""
    learned, unlearned = [await learnable(store, n) for n in range(2)]
    await version(store, learned)
    pending = (await store.add_feedback(rating("cmp_waiting"), always)).feedback

    await store.revise(pending.id, KEY, BAD)
    await store.withdraw(pending.id, KEY)
    await store.withdraw(unlearned[0], KEY)

    assert {} == await stale(store)


async def test_a_descendant_made_later_is_not_stale(store: Store) -> None:
    """A stale version can be continued from."""
    given = await learnable(store, 1)
    await version(store, given, is_active=True)
    await store.withdraw(given[0], KEY)

    await version(store, parent="v1")

    assert {"v1"} == set(await stale(store))


async def test_staleness_passes_through_what_was_removed(store: Store) -> None:
    """The removed version itself is history."""
    given = await learnable(store, 1)
    await version(store, given)
    await version(store, parent="v1")
    await version(store, parent="v2", is_active=True)
    await store.versions.remove("v2", actor="cli")

    await store.withdraw(given[0], KEY)

    assert {"v1", "v3"} == set(await stale(store))
    assert "removed" == (await store.versions.list_events("v2", limit=1))[0].kind


async def test_a_revision_with_another_value_is_fresh_again(store: Store) -> None:
    """It is learned as what it says now; who learned the old one is stale."""
    given = await learnable(store, 1)
    await version(store, given, is_active=True)

    await store.revise(given[0], KEY, BAD)
    then = await fresh(store, "v1")
    await version(store, (given[0], 2), parent="v1", is_active=True)

    assert {(given[0], 2)} == then
    assert set() == await fresh(store, "v2")
    assert {"v1"} == set(await stale(store))


async def tool_loop(store: Store, number: int) -> str:
    """Record a turn of two answers; return the last one."""
    first = first_of_session(number)
    chain = b"chain of %d" % number
    await record(store, first, base=MODEL, choices=(choice(chain=chain),))
    last = f"{first}_last"
    follows = {"after": chain, "starts_turn": False}
    recorded = await record(store, last, base=MODEL, **follows)
    assert (first, first) == (recorded.parent, recorded.turn)
    return last


@pytest.mark.parametrize(
    "changed",
    [
        Revision(0.5, b"0.5"),
        Revision(1.0, b'"good"', correction="like so"),
        Revision(1.0, b'"good"', scope="turn"),
    ],
)
async def test_rating_correction_and_scope_are_what_is_learned(
    store: Store, changed: Revision
) -> None:
    """A change of one of them is another lesson."""
    given = (await rate(store, await tool_loop(store, 1))).feedback
    await version(store, (given.id, 1))

    await store.revise(given.id, KEY, changed)

    assert {"v1"} == set(await stale(store))
    assert {(given.id, 2)} == await fresh(store, "v1")


@pytest.mark.parametrize("learned", ["completion", "turn"])
@pytest.mark.parametrize("how", ["superseded", "revised", "during the run"])
async def test_a_turn_of_one_answer_is_that_answer(store: Store, how: str, learned: Scope) -> None:
    """Whichever of the two a person rates, the same is learned."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL)
    given = (await rate(store, id_, scope=learned)).feedback
    other: Scope = "completion" if learned == "turn" else "turn"
    if how == "during the run":
        await store.versions.reserve(base=MODEL)
    else:
        await version(store, (given.id, 1))

    if how == "revised":
        await store.revise(given.id, KEY, Revision(1.0, b'"good"', scope=other))
    else:
        await rate(store, id_, scope=other)
    if how == "during the run":
        await store.versions.publish("v1", b"{}", [(given.id, 1)], state="ready", actor="gate")

    assert (set(), {}) == (await fresh(store, "v1"), await stale(store))


async def test_other_words_for_the_same_are_learned_already(store: Store) -> None:
    """A new comment, or the same rating once more, is neither fresh nor makes it stale."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL)
    given = (await rate(store, id_)).feedback
    await version(store, (given.id, 1))
    await version(store, parent="v1")

    await store.revise(given.id, KEY, Revision(1.0, b'"good"', "well done", tags=("short",)))
    again = (await rate(store, id_)).feedback
    assert (set(), {}) == (await fresh(store, "v2"), await stale(store))

    await store.withdraw(again.id, KEY)
    reason = f"v1 learned from {again.id}, which was withdrawn since"
    assert {"v1": reason, "v2": reason} == await stale(store)


async def test_other_words_are_learned_by_those_alone_who_learned_what_they_repeat(
    store: Store,
) -> None:
    """Not by a version that learned what the rating said before: it is rolled back to."""
    given = await learnable(store, 1)
    await version(store, given, is_active=True)
    await store.revise(given[0], KEY, BAD)
    await version(store, (given[0], 2), parent="v1", is_active=True)

    await store.revise(given[0], KEY, Revision(-1.0, b'"bad"', "too long"))

    assert set() == await fresh(store, "v2")
    assert {(given[0], 3)} == await fresh(store, "v1")


async def test_withdrawing_what_was_repeated_since_changes_nothing(store: Store) -> None:
    """The rating that stands says the same still."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL)
    given = (await rate(store, id_)).feedback
    await version(store, (given.id, 1))
    await rate(store, id_)

    await store.withdraw(given.id, KEY)

    assert (set(), {}) == (await fresh(store, "v1"), await stale(store))


async def change(store: Store, given: Feedback, how: str) -> None:
    if how == "withdrawn":
        await store.withdraw(given.id, KEY)
    elif how == "superseded":
        await rate(store, given.completion, -1.0)
    else:
        await store.revise(given.id, KEY, BAD)


@pytest.mark.parametrize("how", ["withdrawn", "superseded", "revised"])
async def test_what_changed_during_the_run_makes_a_version_stale_from_the_beginning(
    store: Store, how: str
) -> None:
    """It is published all the same, and says why; its event too."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL)
    given = (await rate(store, id_)).feedback
    await store.versions.reserve(base=MODEL)

    await change(store, given, how)
    published = await store.versions.publish(
        "v1", b"{}", [(given.id, 1)], state="ready", actor="gate"
    )

    reason = f"v1 learned from {given.id}, which was {how} since"
    assert ("ready", reason) == (published.state, published.stale)
    event = (await store.versions.list_events("v1", limit=1))[0]
    assert ("stale", {"reason": reason}) == (event.kind, json.loads(event.detail))


async def test_several_changes_during_the_run_are_counted(store: Store) -> None:
    """The first is named."""
    given = [await learnable(store, n) for n in range(3)]
    await store.versions.reserve(base=MODEL)
    for id_, _ in given[1:]:
        await store.withdraw(id_, KEY)

    published = await store.versions.publish("v1", b"{}", given, state="ready", actor="gate")

    assert (
        f"v1 learned from {given[1][0]}, which was withdrawn since, and 1 more that changed"
        == published.stale
    )


async def test_other_words_during_the_run_are_learned(store: Store) -> None:
    """The version has learned the current revision, then."""
    given = await learnable(store, 1)
    await store.versions.reserve(base=MODEL)
    await store.revise(given[0], KEY, Revision(1.0, b'"good"', "well done"))

    published = await store.versions.publish("v1", b"{}", [given], state="ready", actor="gate")

    assert published.stale is None
    assert set() == await fresh(store, "v1")
    await store.withdraw(given[0], KEY)
    assert {"v1"} == set(await stale(store))


@pytest.mark.parametrize("is_undone", [False, True], ids=["at once", "after an undo"])
async def test_the_same_rating_once_more_during_the_run_is_learned(
    store: Store, is_undone: bool
) -> None:
    """The version has learned the one that stands at its end."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL)
    given = (await rate(store, id_)).feedback
    await store.versions.reserve(base=MODEL)
    if is_undone:
        await store.withdraw(given.id, KEY)
    again = (await rate(store, id_, comment="as I said")).feedback

    published = await store.versions.publish(
        "v1", b"{}", [(given.id, 1)], state="ready", actor="gate"
    )

    assert published.stale is None
    assert set() == await fresh(store, "v1")
    await store.withdraw(again.id, KEY)
    assert {"v1": f"v1 learned from {again.id}, which was withdrawn since"} == await stale(store)


async def test_a_candidate_of_a_version_that_becomes_stale_is_stale_too(store: Store) -> None:
    """It descends from it; being published doesn't take the mark away."""
    given = await learnable(store, 1)
    await version(store, given, is_active=True)
    await store.versions.reserve(base=MODEL, parent="v1")

    await store.withdraw(given[0], KEY)
    published = await store.versions.publish("v2", b"{}", state="ready", actor="gate")

    assert f"v1 learned from {given[0]}, which was withdrawn since" == published.stale
    kinds = [event.kind for event in await store.versions.list_events("v2")]
    assert ["passed", "created", "stale"] == kinds


@pytest.mark.parametrize("learned", [("fb_none", 1), (None, 7)])
async def test_nothing_is_learned_from_what_is_not_there(
    store: Store, learned: tuple[str | None, int]
) -> None:
    """An unknown feedback, or revision, is refused, and the version stays a candidate."""
    given, _ = await learnable(store, 1)
    await store.versions.reserve(base=MODEL)

    with pytest.raises(NotFound):
        await store.versions.publish(
            "v1", b"{}", [(learned[0] or given, learned[1])], state="ready", actor="gate"
        )

    found = await store.versions.get("v1")
    assert found is not None
    assert "candidate" == found.state
    assert 1 == len(await fresh(store, "base"))


async def test_several_choices_are_learned_each_by_itself(store: Store) -> None:
    """A version that learned from one choice leaves the other one fresh."""
    id_ = first_of_session(1)
    await record(store, id_, base=MODEL, choices=(choice(0), choice(1)))
    first = (await rate(store, id_)).feedback
    second = (await rate(store, id_, -1.0, choice=1)).feedback

    await version(store, (first.id, 1))

    assert {(second.id, 1)} == await fresh(store, "v1")
    turns = [one async for one in store.training.fresh_turns("v1", base=MODEL)]
    assert [(1,)] == [one.choices for one in turns]
