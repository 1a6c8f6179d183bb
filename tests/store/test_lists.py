"""Lists: filters, order, pages."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_values import (
    KEY,
    NOON_MS,
    OTHER_KEY,
    choice,
    database_in,
    rate,
    record,
)

from strop.proxy.errors import BadRequest, StoreUnavailable
from strop.proxy.store.records import (
    CompletionFilter,
    FeedbackFilter,
    Revision,
)
from strop.proxy.store.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def listed(store: Store, wanted: CompletionFilter) -> list[str]:
    return [one.id for one in (await store.list_completions(wanted)).data]


async def rated(store: Store, wanted: FeedbackFilter) -> list[str]:
    return [one.completion for one in (await store.list_feedback(wanted)).data]


async def test_completions_are_listed_newest_first(store: Store) -> None:
    """By the time of creation, and by the order of recording within a millisecond."""
    await record(store, "cmp_b", created_ms=NOON_MS)
    await record(store, "cmp_c", created_ms=NOON_MS + 1)
    await record(store, "cmp_a", created_ms=NOON_MS)

    assert ["cmp_c", "cmp_a", "cmp_b"] == await listed(store, CompletionFilter())


async def test_a_listed_completion_says_what_it_is(store: Store) -> None:
    """A summary has the row's head, and counts choices and standing feedback."""
    await record(
        store, "cmp_1", session="mine", stream=True, delivered=False, status=None,
        prompt_tokens=3, completion_tokens=5, total_ms=9.5, choices=(choice(0), choice(1)),
    )  # fmt: skip
    await rate(store, "cmp_1")
    await rate(store, "cmp_1", -1.0)
    await rate(store, "cmp_1", choice=1)

    page = await store.list_completions()
    (found,) = page.data

    assert ("cmp_1", "mine", "cmp_1", None, "complete") == (
        found.id, found.session, found.turn, found.parent, found.state,
    )  # fmt: skip
    assert (True, False, None, 3, 5, 9.5) == (
        found.stream, found.delivered, found.status, found.prompt_tokens,
        found.completion_tokens, found.total_ms,
    )  # fmt: skip
    assert (2, 2, False) == (found.num_choices, found.num_feedback, page.has_more)


async def test_completions_are_filtered(store: Store) -> None:
    """Each filter keeps what it names, and all of them together keep what all name."""
    await record(store, "cmp_1", session="mine", model="m")
    await record(store, "cmp_2", session="mine", model="n", state="upstream_error", choices=())
    await record(store, "cmp_3", session="other", model="m", created_ms=NOON_MS + 10)
    await record(store, "cmp_4", session="mine", model="m", key_id=OTHER_KEY)
    await rate(store, "cmp_1")
    await rate(store, "cmp_1", rater="ann")
    withdrawn = await rate(store, "cmp_3")
    await store.withdraw(withdrawn.feedback.id, KEY)

    expected = {
        CompletionFilter(session="mine"): ["cmp_4", "cmp_2", "cmp_1"],
        CompletionFilter(state="upstream_error"): ["cmp_2"],
        CompletionFilter(state="complete"): ["cmp_3", "cmp_4", "cmp_1"],
        CompletionFilter(model="n"): ["cmp_2"],
        CompletionFilter(key_id=OTHER_KEY): ["cmp_4"],
        CompletionFilter(since_ms=NOON_MS + 10): ["cmp_3"],
        CompletionFilter(is_rated=True): ["cmp_1"],
        CompletionFilter(is_rated=True, session="other"): [],
        CompletionFilter(is_rated=False): ["cmp_3", "cmp_4", "cmp_2"],
        CompletionFilter(is_rated=False, session="mine", model="m"): ["cmp_4"],
    }

    assert expected == {wanted: await listed(store, wanted) for wanted in expected}


@pytest.mark.parametrize("is_rated", [None, True])
async def test_completions_come_in_pages(store: Store, is_rated: bool | None) -> None:
    """Each page goes on after the last id of the one before, also within one millisecond."""
    for number in range(6):
        await record(store, f"cmp_{number}", created_ms=NOON_MS + number // 4)
        await rate(store, f"cmp_{number}")

    seen: list[str] = []
    mores: list[bool] = []
    after = None
    while not mores or mores[-1]:
        page = await store.list_completions(
            CompletionFilter(is_rated=is_rated), limit=3, after=after
        )
        seen += [one.id for one in page.data]
        after = seen[-1]
        mores.append(page.has_more)

    assert [f"cmp_{number}" for number in range(5, -1, -1)] == seen
    assert [True, False] == mores


async def test_a_page_after_nothing_known_is_refused(store: Store) -> None:
    """`after` must be an id of the list."""
    with pytest.raises(BadRequest, match="got 'cmp_9'"):
        await store.list_completions(after="cmp_9")
    with pytest.raises(BadRequest, match="got 'fb_9'"):
        await store.list_feedback(after="fb_9")


async def test_feedback_is_filtered(store: Store) -> None:
    """Each filter keeps what it names, the newest first, as its current revision says."""
    await record(store, "cmp_1", session="mine")
    await record(store, "cmp_2", session="other")
    await record(store, "cmp_3", key_id=OTHER_KEY, session="mine")
    first = (await rate(store, "cmp_1", -1.0)).feedback
    await rate(store, "cmp_1", 1.0, rater="ann")
    second = (await rate(store, "cmp_2", 1.0)).feedback
    await rate(store, "cmp_3", 0.0, key_id=OTHER_KEY)
    await store.withdraw(second.id, KEY)
    await store.revise(first.id, KEY, Revision(0.5, b"0.5"))

    expected = {
        FeedbackFilter(): ["cmp_3", "cmp_2", "cmp_1", "cmp_1"],
        FeedbackFilter(completion="cmp_1"): ["cmp_1", "cmp_1"],
        FeedbackFilter(session="mine"): ["cmp_3", "cmp_1", "cmp_1"],
        FeedbackFilter(rater="ann"): ["cmp_1"],
        FeedbackFilter(state="withdrawn"): ["cmp_2"],
        FeedbackFilter(state="standing"): ["cmp_3", "cmp_1", "cmp_1"],
        FeedbackFilter(key_id=OTHER_KEY): ["cmp_3"],
        FeedbackFilter(sign="good"): ["cmp_2", "cmp_1", "cmp_1"],
        FeedbackFilter(sign="bad"): [],
        FeedbackFilter(sign="good", session="mine", rater="ann"): ["cmp_1"],
        FeedbackFilter(since_ms=second.created_ms + 60_000): [],
        FeedbackFilter(since_ms=first.created_ms, completion="cmp_1", rater=""): ["cmp_1"],
    }

    assert expected == {wanted: await rated(store, wanted) for wanted in expected}


async def test_feedback_comes_in_pages(store: Store) -> None:
    """Each page goes on after the last id of the one before."""
    await record(store, "cmp_1")
    given = [(await rate(store, "cmp_1", rater=str(i))).feedback.id for i in range(5)]

    first = await store.list_feedback(limit=3)
    rest = await store.list_feedback(limit=3, after=first.data[-1].id)

    assert given[::-1] == [one.id for one in (*first.data, *rest.data)]
    assert (True, False) == (first.has_more, rest.has_more)


async def test_a_closed_store_refuses_reads_and_writes(store: Store) -> None:
    """After the close each call says that the store is closed; closing again is quiet."""
    await store.close()
    await store.close()

    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await store.list_completions()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await rate(store, "cmp_1")
