"""What a run collects stays in memory until its end: no more of the store than it learns from."""

import gc
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from rated_home import RatedHome
from store_values import database_in

from strop.proxy.store.run_records import RatedTurn
from strop.proxy.store.store import Store
from strop.training import collection
from strop.training.objectives import Settings, make
from strop.training.rows import Target
from strop.training.stopping import Stopped, Stopping


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[RatedHome]:
    """A home with sixty ratings, of which every second answer is liked."""
    store = await Store.open(database_in(tmp_path))
    home, number = RatedHome(tmp_path, store), count()
    await home.rate(60, likes=lambda *_: 1.0 if next(number) % 2 else -1.0)
    yield home
    await store.close()


def target(home: RatedHome) -> Target:
    """The demo model, as the home knows it."""
    return Target(home.base, 1000, home.tokenizer)


def num_alive() -> int:
    """How many rated turns, with all their requests, are in memory."""
    return sum(type(one) is RatedTurn for one in gc.get_objects())


async def test_requests_are_let_go_as_they_are_read(home: RatedHome) -> None:
    """There are never more of them than the store reads at once, however many are rated."""
    seen: list[int] = []
    # Only what the test makes is looked at: all else takes a hundred times as long.
    gc.freeze()
    try:
        found = await collection.collect(
            home.store, "base", make("topr", Settings()), target(home), seed=0,
            check=lambda: seen.append(num_alive()),
        )  # fmt: skip
        left = num_alive()
    finally:
        gc.unfreeze()

    assert 60 == len(seen) == len(found.completions)
    assert 0 < max(seen) < 20
    assert 0 == left


async def test_prompts_are_no_copies_of_what_is_learned_from(home: RatedHome) -> None:
    """Each is the beginning of a sequence that is there anyway, until the gate's are chosen."""
    found = await collection.collect(
        home.store, "base", make("topr", Settings()), target(home), seed=0
    )

    learn = [row.tokens for one in found.learn for row in one.rows]
    held_out = [tokens for turn in found.held_out for tokens in turn.answers]
    held = {id(tokens.ids) for tokens in [*learn, *held_out]}
    assert held == {id(ids.base) for ids in found.prompts}
    # Those of held-out sessions first.
    first = {id(ids.base) for ids in found.prompts[: len(held_out)]}
    assert {id(tokens.ids) for tokens in held_out} == first
    for ids in found.prompts:
        assert isinstance(ids.base, np.ndarray)


async def test_collecting_ends_where_somebody_asks_it_to(home: RatedHome) -> None:
    """A year of ratings takes a while to read."""
    stopping = Stopping()
    stopping.ask()

    with pytest.raises(Stopped):
        await collection.collect(
            home.store, "base", make("topr", Settings()), target(home), seed=0,
            check=stopping.check,
        )  # fmt: skip
