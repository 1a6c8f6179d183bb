"""How people rated what each version answered."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_values import (
    MODEL,
    OTHER_MODEL,
    choice,
    database_in,
    first_of_session,
    rate,
    record,
)

from strop.adapters.rates import Rate
from strop.proxy.store.records import Revision
from strop.proxy.store.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def test_ratings_are_counted_by_the_version_that_answered(store: Store) -> None:
    """Those above 0 are good ones, those of 0 are none; held-out sessions count too."""
    ratings = [("base", 1.0), ("base", -0.5), ("v1", 0.25), ("v1", 0.0), ("v2", -1.0)]
    for number, (version, rating) in enumerate(ratings):
        id_ = first_of_session(number, held_out=number % 2 == 0)
        await record(store, id_, base=MODEL, version=version)
        await rate(store, id_, rating)

    assert {
        "base": Rate(1, 2),
        "v1": Rate(1, 1),
        "v2": Rate(0, 1),
    } == await store.training.live_rates(base=MODEL)


async def test_only_what_stands_counts(store: Store) -> None:
    """Revised, superseded and withdrawn ratings are what they were made."""
    for id_ in ("cmp_revised", "cmp_superseded", "cmp_withdrawn"):
        await record(store, id_, base=MODEL, version="v1")
    revised = (await rate(store, "cmp_revised", 1.0)).feedback
    await rate(store, "cmp_superseded", 1.0)
    withdrawn = (await rate(store, "cmp_withdrawn", 1.0)).feedback

    await store.revise(revised.id, None, Revision(rating=-1.0, original=b"-1"))
    await rate(store, "cmp_superseded", -1.0)
    await store.withdraw(withdrawn.id, None)

    assert {"v1": Rate(0, 2)} == await store.training.live_rates(base=MODEL)


async def test_other_bases_do_not_count(store: Store) -> None:
    """A version answers for one base."""
    await record(store, "cmp_other", base=OTHER_MODEL, version="v1")
    await record(store, "cmp_own", base=MODEL, version="v1")
    for id_ in ("cmp_other", "cmp_own"):
        await rate(store, id_, 1.0)

    assert {"v1": Rate(1, 1)} == await store.training.live_rates(base=MODEL)


async def test_the_ratings_next_to_a_switch_are_told_apart(store: Store) -> None:
    """The newest before it and the first from then on, by when the answer was asked for.

    One rate for each session; here each answer has its own.
    """
    answers = [
        ("base", 1997, 1.0), ("base", 1998, -1.0), ("base", 1999, -1.0), ("base", 2000, 1.0),
        ("v1", 1999, -1.0), ("v1", 2000, 1.0), ("v1", 2001, 0.0), ("v1", 2002, 0.5),
        ("v1", 2003, -1.0),
    ]  # fmt: skip
    # The order of the ratings isn't that of the answers.
    for number, (version, created_ms, rating) in reversed(list(enumerate(answers))):
        await record(store, f"cmp_{number}", base=MODEL, version=version, created_ms=created_ms)
        await rate(store, f"cmp_{number}", rating)

    two, all_ = [
        await store.training.rates_around(2000, "base", "v1", base=MODEL, most=most)
        for most in (2, 9)
    ]

    good, bad = Rate(1, 1), Rate(0, 1)
    assert ([bad, bad], [good, good]) == two
    assert ([good, bad, bad], [good, good, bad]) == all_
    assert ([], []) == await store.training.rates_around(
        2000, "base", "v1", base=OTHER_MODEL, most=9
    )


async def test_the_ratings_next_to_a_switch_are_counted_by_session(store: Store) -> None:
    """An answer that several people rated is one, by their mean; one where that is 0 is none."""
    answers = [("mine", (1.0,)), ("mine", (-1.0, -1.0, 1.0)), ("mine", (0.5, -1.0)),
               ("yours", (1.0, -1.0)), ("theirs", (1.0, 1.0)), ("theirs", (1.0,))]  # fmt: skip
    for number, (session, ratings) in enumerate(answers):
        id_ = f"cmp_{number}"
        await record(
            store, id_, base=MODEL, version="v1", created_ms=2000 + number, session=session
        )
        for rater, rating in enumerate(ratings):
            await rate(store, id_, rating, rater=str(rater))

    _, own = await store.training.rates_around(2000, "base", "v1", base=MODEL, most=200)

    assert [Rate(1, 3), Rate(2, 2)] == own


async def test_choices_are_liked_as_their_ratings_stand(store: Store) -> None:
    """Each choice for itself, and each rating as it was revised."""
    made = {"base": MODEL, "version": "v1", "session": "s", "created_ms": 2000}
    await record(store, "cmp_two", choices=(choice(0), choice(1)), **made)
    await rate(store, "cmp_two", 1.0, choice=0)
    await rate(store, "cmp_two", -0.5, choice=1)
    await record(store, "cmp_one", **made)
    given = (await rate(store, "cmp_one", -1.0)).feedback
    await store.revise(given.id, None, Revision(rating=0.25, original=b"1"))

    _, own = await store.training.rates_around(2000, "base", "v1", base=MODEL, most=200)

    assert [Rate(2, 3)] == own


async def test_an_answer_counts_whichever_of_its_ratings_was_taken_back(store: Store) -> None:
    """What stands on it decides, though it came later."""
    for number, value in enumerate((1.0, 0.0)):
        id_ = first_of_session(number)
        await record(store, id_, base=MODEL, version="v1", created_ms=2000 + number)
        first = (await rate(store, id_, value, rater="ann")).feedback
        await rate(store, id_, -1.0, rater="bob")
        if value:
            await store.withdraw(first.id, None)

    _, own = await store.training.rates_around(2000, "base", "v1", base=MODEL, most=9)

    assert [Rate(0, 1)] * 2 == own


async def test_as_many_answers_count_however_many_people_rate_them(store: Store) -> None:
    """And all ratings of each."""
    for number in range(3):
        id_ = first_of_session(number)
        await record(store, id_, base=MODEL, version="v1", created_ms=2000 + number)
        for rater in ("ann", "bob", "cid"):
            await rate(store, id_, 1.0 if rater == "cid" else -0.25, rater=rater)

    around = store.training.rates_around
    _, first = await around(2000, "base", "v1", base=MODEL, most=2)
    newest, _ = await around(3000, "v1", "v2", base=MODEL, most=2)

    assert [Rate(1, 1)] * 2 == first == newest
