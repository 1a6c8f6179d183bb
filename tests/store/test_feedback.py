"""Feedback: how it is bound, which one stands, what is kept."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from store_values import (
    KEY,
    NOON_MS,
    OTHER_KEY,
    always,
    choice,
    completion,
    database_in,
    never,
    rate,
    rating,
    record,
)

from strop.proxy.errors import (
    AmbiguousCompletion,
    BadRequest,
    Conflict,
    IdempotencyConflict,
    NotFound,
    UnknownCompletion,
)
from strop.proxy.store.binding import MAX_CANDIDATES, InFlight
from strop.proxy.store.records import FeedbackCounts, FeedbackFilter, Revision
from strop.proxy.store.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def states(store: Store) -> dict[str, str]:
    """The state of every feedback, by id, the first one first."""
    page = await store.list_feedback(limit=100)
    return {one.id: one.state for one in reversed(page.data)}


async def test_a_rating_comes_back_as_it_was(store: Store) -> None:
    """Every field of a rating is kept, and it stands in its completion's session."""
    await record(store, "cmp_1", session="mine", choices=(choice(0), choice(1)))

    given = await rate(
        store, "cmp_1", -0.5, choice=1, original=b'{"stars": 2}', comment="naïve 日本",
        correction="like so", tags=("rude", "long"), rater="ann", source="cli", scope="turn",
    )  # fmt: skip
    found = await store.get_feedback(given.feedback.id)

    assert "created" == given.outcome
    assert given.feedback == found
    assert found is not None
    assert ("cmp_1", 1, -0.5, b'{"stars": 2}') == (
        found.completion, found.choice, found.rating, found.original,
    )  # fmt: skip
    assert ("naïve 日本", "like so", ("rude", "long")) == (
        found.comment, found.correction, found.tags,
    )  # fmt: skip
    assert ("ann", KEY, "cli", "turn") == (found.rater, found.key_id, found.source, found.scope)
    assert ("standing", 1, "mine", None) == (
        found.state, found.revision, found.session, found.note,
    )  # fmt: skip


async def test_text_that_utf8_cannot_hold_is_replaced(store: Store) -> None:
    """A lone surrogate in what a person wrote does not lose the rating."""
    await record(store, "cmp_1")

    given = await rate(store, "cmp_1", comment="a\ud800", correction="b\ud800", tags=("c\ud800",))

    found = given.feedback
    assert ("a?", "b?", ("c?",)) == (found.comment, found.correction, found.tags)


async def test_an_unknown_completion_cannot_be_rated(store: Store) -> None:
    """A rating of nothing is 404 and leaves nothing."""
    with pytest.raises(UnknownCompletion, match="'cmp_1'"):
        await rate(store, "cmp_1")

    assert {} == await states(store)


async def test_another_keys_completion_cannot_be_rated(store: Store) -> None:
    """A key rates only completions made with it, and isn't told that there are others."""
    await record(store, "cmp_1", upstream_id="chatcmpl-1")

    for name in ("cmp_1", "chatcmpl-1"):
        with pytest.raises(UnknownCompletion):
            await rate(store, name, key_id=OTHER_KEY)


async def test_the_engines_id_names_a_completion_of_the_same_key(store: Store) -> None:
    """An alias that one completion of the key has is that completion."""
    await record(store, "cmp_1", upstream_id="chatcmpl-1")
    await record(store, "cmp_2", upstream_id="chatcmpl-1", key_id=OTHER_KEY)

    assert "cmp_1" == (await rate(store, "chatcmpl-1")).feedback.completion


async def test_an_engines_id_of_several_completions_is_ambiguous(store: Store) -> None:
    """The candidates are in the error, the newest first; never is one of them taken."""
    await record(store, "cmp_1", upstream_id="chatcmpl-1", created_ms=NOON_MS)
    await record(store, "cmp_2", upstream_id="chatcmpl-1", created_ms=NOON_MS + 2000, model="n")

    with pytest.raises(AmbiguousCompletion) as raised:
        await rate(store, "chatcmpl-1")

    second = {"completion_id": "cmp_2", "created": NOON_MS // 1000 + 2, "model": "n"}
    first = {"completion_id": "cmp_1", "created": NOON_MS // 1000, "model": "m"}
    assert {"candidates": [second, first]} == raised.value.detail
    assert {} == await states(store)


async def test_a_stream_that_was_recorded_meanwhile_is_no_second_one(store: Store) -> None:
    """It was in flight when its rating came in, and is there when that is bound."""
    await record(store, "cmp_1", upstream_id="chatcmpl-1")
    called = [InFlight("cmp_1", NOON_MS, "m")]

    given = await store.add_feedback(rating("chatcmpl-1"), always, called)

    assert ("created", "cmp_1") == (given.outcome, given.feedback.completion)


async def test_of_an_ambiguous_ids_streams_the_newest_are_candidates(store: Store) -> None:
    """As of what is recorded."""
    called = [InFlight(f"cmp_{n}", NOON_MS + n, "m") for n in range(MAX_CANDIDATES + 1)]

    with pytest.raises(AmbiguousCompletion) as raised:
        await store.add_feedback(rating("chatcmpl-1"), always, called)

    candidates: Any = raised.value.detail["candidates"]
    newest = [f"cmp_{n}" for n in range(MAX_CANDIDATES, 0, -1)]
    assert newest == [one["completion_id"] for one in candidates]


async def test_a_choice_that_is_not_there_cannot_be_rated(store: Store) -> None:
    """The error names the choices that there are."""
    await record(store, "cmp_1", choices=(choice(0), choice(1)))

    with pytest.raises(BadRequest, match=r"expected one of the choices \[0, 1\] of cmp_1, got 2"):
        await rate(store, "cmp_1", choice=2)


async def test_a_completion_without_an_answer_cannot_be_rated(store: Store) -> None:
    """An error of the engine has no choice, so nothing to rate."""
    await record(store, "cmp_1", state="upstream_error", choices=())

    with pytest.raises(BadRequest, match="has no answer to rate"):
        await rate(store, "cmp_1")


async def test_an_answer_that_was_cut_off_can_be_rated(store: Store) -> None:
    """What a cancelled completion did answer is rated like any answer."""
    await record(store, "cmp_1", state="client_cancelled")

    assert "standing" == (await rate(store, "cmp_1")).feedback.state


async def test_a_newer_rating_supersedes_the_older_one(store: Store) -> None:
    """One stands per completion, choice, rater and key; the history is kept."""
    await record(store, "cmp_1")

    old = (await rate(store, "cmp_1", 1.0)).feedback
    new = (await rate(store, "cmp_1", 1.0)).feedback

    assert {old.id: "superseded", new.id: "standing"} == await states(store)


async def test_ratings_of_others_and_of_other_choices_stand_beside_it(store: Store) -> None:
    """Another rater, choice or completion is another rating."""
    await record(store, "cmp_1", choices=(choice(0), choice(1)))
    await record(store, "cmp_2")

    await rate(store, "cmp_1")
    await rate(store, "cmp_1", rater="ann")
    await rate(store, "cmp_1", choice=1)
    await rate(store, "cmp_2")

    assert ["standing"] * 4 == list((await states(store)).values())


async def test_a_header_that_repeats_itself_changes_nothing(store: Store) -> None:
    """Equal ratings by header are one; another value or scope by header is a new one."""
    await record(store, "cmp_1")

    first = await rate(store, "cmp_1", source="header", scope="turn")
    again = await rate(store, "cmp_1", source="header", scope="turn")
    narrower = await rate(store, "cmp_1", source="header", scope="completion")
    worse = await rate(store, "cmp_1", -1.0, source="header", scope="completion")

    outcomes = [one.outcome for one in (first, again, narrower, worse)]
    assert ["created", "repeat", "created", "created"] == outcomes
    assert first.feedback == again.feedback


async def test_a_header_that_repeats_its_comment_changes_nothing(store: Store) -> None:
    """A client that asks again after an error sends it again; another comment is a new rating."""
    await record(store, "cmp_1")

    first = await rate(store, "cmp_1", -1.0, source="header", comment="too long")
    again = await rate(store, "cmp_1", -1.0, source="header", comment="too long")
    other = await rate(store, "cmp_1", -1.0, source="header", comment="wrong")

    assert ["created", "repeat", "created"] == [one.outcome for one in (first, again, other)]
    assert first.feedback == again.feedback


async def test_a_header_does_not_supersede_a_comment_with_nothing(store: Store) -> None:
    """A header that says no more than the standing rating leaves its comment and correction."""
    await record(store, "cmp_1")
    commented = await rate(store, "cmp_1", -1.0, correction="like so")

    again = await rate(store, "cmp_1", -1.0, source="header")

    assert ("repeat", commented.feedback) == (again.outcome, again.feedback)


async def test_the_same_request_again_is_the_same_feedback(store: Store) -> None:
    """With an idempotency id a retry is a repeat, also when the rating is superseded by then."""
    await record(store, "cmp_1")

    first = await rate(store, "cmp_1", idempotency="a", digest=b"1")
    await rate(store, "cmp_1", -1.0, idempotency="b", digest=b"2")
    again = await rate(store, "cmp_1", idempotency="a", digest=b"1")

    assert "repeat" == again.outcome
    assert (first.feedback.id, "superseded") == (again.feedback.id, again.feedback.state)
    assert 2 == len(await states(store))


async def test_an_idempotency_id_with_another_body_is_a_conflict(store: Store) -> None:
    """The id belongs to the body that it came with, and to its key."""
    await record(store, "cmp_1")
    await record(store, "cmp_2", key_id=OTHER_KEY)
    first = await rate(store, "cmp_1", idempotency="a", digest=b"1")

    with pytest.raises(IdempotencyConflict) as raised:
        await rate(store, "cmp_1", -1.0, idempotency="a", digest=b"2")
    of_other = await rate(store, "cmp_2", key_id=OTHER_KEY, idempotency="a", digest=b"3")

    assert {"feedback_id": first.feedback.id} == raised.value.detail
    assert "created" == of_other.outcome


async def test_a_rating_of_a_completion_in_flight_waits_for_it(store: Store) -> None:
    """It is pending until the completion is recorded, and stands from then on."""
    waiting = await store.add_feedback(rating("cmp_1"), always)

    await record(store, "cmp_1", session="mine")

    joined = await store.get_feedback(waiting.feedback.id)
    assert ("pending", "pending", None) == (
        waiting.outcome, waiting.feedback.state, waiting.feedback.session,
    )  # fmt: skip
    assert joined is not None
    assert ("standing", "mine") == (joined.state, joined.session)


async def test_a_rating_and_its_completion_meet_in_either_order(store: Store) -> None:
    """Submitted together, while the completion still counts as in flight, the rating stands."""
    made = completion("cmp_1"), completion("cmp_2")

    rated_first = asyncio.ensure_future(store.add_feedback(rating("cmp_1"), always))
    await asyncio.sleep(0)
    recorded = store.commit_completion(lambda: made[0], 0)
    recorded_first = store.commit_completion(lambda: made[1], 0)
    rated_second = store.add_feedback(rating("cmp_2"), always)
    await asyncio.gather(rated_first, recorded, recorded_first, rated_second)

    assert ["standing", "standing"] == list((await states(store)).values())


async def test_what_waits_is_joined_in_the_order_it_came(store: Store) -> None:
    """Of two pending ratings by one rater the later one stands."""
    first = await store.add_feedback(rating("cmp_1", 1.0), always)
    second = await store.add_feedback(rating("cmp_1", -1.0), always)

    await record(store, "cmp_1")

    assert {first.feedback.id: "superseded", second.feedback.id: "standing"} == await states(store)


async def test_what_waits_under_the_engines_id_is_joined(store: Store) -> None:
    """A rating by alias of a completion in flight is bound to that completion of its key."""
    mine = await store.add_feedback(rating("chatcmpl-1"), always)
    theirs = await store.add_feedback(rating("chatcmpl-1", key_id=OTHER_KEY), always)

    await record(store, "cmp_1", upstream_id="chatcmpl-1")

    bound = await store.get_feedback(mine.feedback.id)
    other = await store.get_feedback(theirs.feedback.id)
    assert bound is not None
    assert other is not None
    assert ("standing", "cmp_1") == (bound.state, bound.completion)
    assert ("pending", "chatcmpl-1") == (other.state, other.completion)


async def test_a_pending_rating_of_a_missing_choice_is_withdrawn(store: Store) -> None:
    """Its sender is gone, so its note says why."""
    waiting = await store.add_feedback(rating("cmp_1", choice=3), always)

    await record(store, "cmp_1")

    found = await store.get_feedback(waiting.feedback.id)
    assert found is not None
    assert ("withdrawn", "expected one of the choices [0] of cmp_1, got 3") == (
        found.state, found.note,
    )  # fmt: skip


async def test_a_pending_rating_with_another_key_is_withdrawn(store: Store) -> None:
    """A key rates only completions made with it, waiting or not."""
    waiting = await store.add_feedback(rating("cmp_1", key_id=OTHER_KEY), always)

    await record(store, "cmp_1")

    found = await store.get_feedback(waiting.feedback.id)
    assert found is not None
    assert ("withdrawn", "the completion was made with another key") == (found.state, found.note)


async def test_a_rating_whose_completion_never_came_is_withdrawn_at_the_next_start(
    tmp_path: Path,
) -> None:
    """Nothing is in flight then; a command beside a running server withdraws nothing."""
    found = []
    waiting = None
    for is_server in (False, False, True):
        store = await Store.open(database_in(tmp_path), is_server=is_server)
        if waiting is None:
            waiting = await store.add_feedback(rating("cmp_1"), always)
        found.append((await states(store))[waiting.feedback.id])
        await store.close()

    assert ["pending", "pending", "withdrawn"] == found


async def test_a_revision_replaces_what_it_says_and_keeps_what_it_said(store: Store) -> None:
    """A PUT makes a new revision; each revision's values stay readable."""
    await record(store, "cmp_1")
    given = (await rate(store, "cmp_1", 1.0, comment="good", tags=("a",))).feedback
    new = Revision(-1.0, b'"bad"', "on second thoughts", "like so", ("b",), "turn")

    revised = await store.revise(given.id, KEY, new)
    first, second = await store.list_revisions(given.id)

    assert (2, -1.0, b'"bad"', "on second thoughts", "like so", ("b",), "turn", "standing") == (
        revised.revision, revised.rating, revised.original, revised.comment, revised.correction,
        revised.tags, revised.scope, revised.state,
    )  # fmt: skip
    assert (given, revised) == (first, second)
    assert revised == await store.get_feedback(given.id)


async def test_an_equal_revision_is_none(store: Store) -> None:
    """Saying the same again changes nothing, so a PUT can be retried."""
    await record(store, "cmp_1")
    given = (await rate(store, "cmp_1")).feedback

    revised = await store.revise(given.id, KEY, Revision(1.0, b'"good"'))

    assert given == revised
    assert 1 == len(await store.list_revisions(given.id))


async def test_a_pending_rating_can_be_revised(store: Store) -> None:
    """Its newest revision is what stands once the completion is recorded."""
    given = (await store.add_feedback(rating("cmp_1"), always)).feedback
    await store.revise(given.id, KEY, Revision(-1.0, b'"bad"'))

    await record(store, "cmp_1")

    found = await store.get_feedback(given.id)
    assert found is not None
    assert ("standing", -1.0, 2) == (found.state, found.rating, found.revision)


async def test_what_no_longer_stands_cannot_be_revised(store: Store) -> None:
    """Superseded and withdrawn ratings are history."""
    await record(store, "cmp_1")
    superseded = (await rate(store, "cmp_1")).feedback
    withdrawn = (await rate(store, "cmp_1")).feedback
    await store.withdraw(withdrawn.id, KEY)

    for one, state in ((superseded, "superseded"), (withdrawn, "withdrawn")):
        with pytest.raises(Conflict, match=f"is {state}; give a new rating"):
            await store.revise(one.id, KEY, Revision(-1.0, b'"bad"'))


async def test_another_keys_feedback_can_be_neither_revised_nor_withdrawn(store: Store) -> None:
    """To another key it doesn't exist; without a key, as for the admin, it does."""
    await record(store, "cmp_1")
    given = (await rate(store, "cmp_1")).feedback

    with pytest.raises(NotFound):
        await store.revise(given.id, OTHER_KEY, Revision(-1.0, b'"bad"'))
    with pytest.raises(NotFound):
        await store.withdraw(given.id, OTHER_KEY)
    with pytest.raises(NotFound):
        await store.withdraw("fb_none", None)
    assert "standing" == (await states(store))[given.id]

    assert 2 == (await store.revise(given.id, None, Revision(-1.0, b'"bad"'))).revision
    assert "withdrawn" == (await store.withdraw(given.id, None)).state


async def test_a_withdrawn_rating_stays_withdrawn(store: Store) -> None:
    """Withdrawing again is the same; the rating that it superseded doesn't come back."""
    await record(store, "cmp_1")
    old = (await rate(store, "cmp_1")).feedback
    new = (await rate(store, "cmp_1", -1.0)).feedback

    first = await store.withdraw(new.id, KEY)
    again = await store.withdraw(new.id, KEY)

    assert first == again
    assert {old.id: "superseded", new.id: "withdrawn"} == await states(store)


async def test_undo_withdraws_the_raters_newest_rating_in_the_session(store: Store) -> None:
    """Not another session's, rater's or key's; each undo takes back one more."""
    await record(store, "cmp_1", session="mine")
    await record(store, "cmp_2", session="mine")
    await record(store, "cmp_3", session="another")
    await record(store, "cmp_4", session="mine", key_id=OTHER_KEY)
    first = (await rate(store, "cmp_1")).feedback
    second = (await rate(store, "cmp_2")).feedback
    await rate(store, "cmp_1", rater="ann")
    await rate(store, "cmp_3")
    await rate(store, "cmp_4", key_id=OTHER_KEY)

    undone = [await store.undo("mine", KEY, "") for _ in range(3)]

    assert [second.id, first.id, None] == [one.id if one else None for one in undone]
    standing = [state for state in (await states(store)).values() if state == "standing"]
    assert 3 == len(standing)


async def test_an_answers_undo_withdraws_what_the_rater_says_of_it(store: Store) -> None:
    """Of this choice alone, with this key; again, there is nothing left."""
    await record(store, "cmp_1", choices=(choice(0, chain=b"0"), choice(1, chain=b"1")))
    await record(store, "cmp_2", after=b"1")
    given = (await rate(store, "cmp_1", choice=1)).feedback
    await rate(store, "cmp_1", choice=0)
    await rate(store, "cmp_1", choice=1, rater="ann")
    await rate(store, "cmp_2")
    answer = ("cmp_1", 1)

    strangers = await store.undo_answer(*answer, OTHER_KEY, "", or_above=False)
    undone = [await store.undo_answer(*answer, KEY, "", or_above=False) for _ in range(2)]

    assert strangers is None
    assert [given.id, None] == [one.id if one else None for one in undone]
    standing = [state for state in (await states(store)).values() if state == "standing"]
    assert 3 == len(standing)


async def test_an_answers_undo_goes_up_its_own_history_at_most(store: Store) -> None:
    """To the next above it that is rated; past none, and into no other branch."""
    await record(store, "cmp_1", choices=(choice(0, chain=b"0"), choice(1, chain=b"1")))
    await record(store, "cmp_2", after=b"1", choices=(choice(chain=b"2"),))
    await record(store, "cmp_3", after=b"2")
    await record(store, "cmp_other", after=b"1")
    first = (await rate(store, "cmp_1", choice=1)).feedback
    await rate(store, "cmp_1", choice=0)
    last = (await rate(store, "cmp_3")).feedback
    await rate(store, "cmp_other")

    alone = await store.undo_answer("cmp_2", 0, KEY, "", or_above=False)
    undone = [await store.undo_answer("cmp_3", 0, KEY, "", or_above=True) for _ in range(3)]

    assert alone is None
    assert [last.id, first.id, None] == [one.id if one else None for one in undone]
    standing = [state for state in (await states(store)).values() if state == "standing"]
    assert 2 == len(standing)


async def test_undo_does_not_bring_back_what_was_superseded(store: Store) -> None:
    """After good, then bad, then undo, nothing stands."""
    await record(store, "cmp_1", session="mine")
    old = (await rate(store, "cmp_1")).feedback
    new = (await rate(store, "cmp_1", -1.0)).feedback

    await store.undo("mine", KEY, "")

    assert {old.id: "superseded", new.id: "withdrawn"} == await states(store)


async def test_counts_are_of_what_stands_in_the_session(store: Store) -> None:
    """Good, bad and all standing ratings; of one session and key, or of all."""
    for number, session in enumerate(("mine", "mine", "mine", "another"), start=1):
        await record(store, f"cmp_{number}", session=session)
    await record(store, "cmp_5", session="mine", key_id=OTHER_KEY)
    await rate(store, "cmp_1", 1.0)
    await rate(store, "cmp_1", 0.5)
    await rate(store, "cmp_2", -1.0)
    await rate(store, "cmp_3", 0.0, original=b"0")
    await rate(store, "cmp_4", 1.0)
    await rate(store, "cmp_5", 1.0, key_id=OTHER_KEY)

    mine = await store.feedback_counts("mine", KEY)
    everything = await store.feedback_counts()
    nothing = await store.feedback_counts("nowhere", KEY)

    assert FeedbackCounts(good=1, bad=1, total=3) == mine
    assert FeedbackCounts(good=3, bad=1, total=5) == everything
    assert FeedbackCounts(good=0, bad=0, total=0) == nothing


async def test_a_rating_that_is_refused_leaves_nothing_behind(store: Store) -> None:
    """Refused and accepted ratings in one batch don't touch one another."""
    await record(store, "cmp_1")

    found = await asyncio.gather(
        rate(store, "cmp_1"),
        rate(store, "cmp_9"),
        rate(store, "cmp_1", choice=4),
        store.add_feedback(rating("cmp_1", rater="ann"), never),
        return_exceptions=True,
    )

    assert [None, UnknownCompletion, BadRequest, None] == [
        type(one) if isinstance(one, Exception) else None for one in found
    ]
    page = await store.list_feedback(FeedbackFilter(completion="cmp_1"))
    assert ["standing", "standing"] == [one.state for one in page.data]
