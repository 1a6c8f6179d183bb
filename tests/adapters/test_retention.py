"""Which versions retention gives up."""

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from strop.adapters.retention import Held, removable


def version(num: int, state: str = "retired", *, is_kept: bool = False) -> Held:
    """Return the version of that number."""
    return Held(f"v{num}", num, state, is_kept)


def decide(versions: list[Held], **changes: Any) -> tuple[str, ...]:
    arguments: dict[str, Any] = {
        "active": "base",
        "previous": None,
        "named": (),
        "on_engines": (),
        "keep": 0,
    }
    return removable(versions, **{**arguments, **changes})


def test_the_newest_few_stay() -> None:
    """The oldest go first, by number."""
    versions = [version(num) for num in (10, 1, 9, 2)]

    assert ("v1", "v2") == decide(versions, keep=2)
    assert () == decide(versions, keep=4)
    assert () == decide(versions, keep=5)


def test_what_is_needed_stays_and_does_not_count() -> None:
    """Active, previous, kept, named by a fresh rating, on an engine: each beside those kept."""
    versions = [version(num, is_kept=num == 3) for num in range(1, 8)]

    assert ("v4", "v7") == decide(
        versions, active="v1", previous="v2", named=("v5",), on_engines=("v6",)
    )
    assert ("v4",) == decide(
        versions, active="v1", previous="v2", named=("v5",), on_engines=("v6",), keep=1
    )


def test_what_is_being_written_or_gone_is_left_alone() -> None:
    """A candidate's folder is its writer's; a missing version has none."""
    versions = [version(1, "candidate"), version(2, "missing"), version(3, "active")]

    assert () == decide(versions, active="base")


def test_rejected_versions_go_as_others_do() -> None:
    """They are kept a while, for whoever wants to know why."""
    assert ("v1",) == decide([version(1, "rejected"), version(2, "rejected")], keep=1)


@given(st.integers(0, 2**32))
def test_nothing_needed_is_ever_given_up(seed: int) -> None:
    """Whatever there is."""
    rng = random.Random(seed)
    states = ["candidate", "ready", "retired", "rejected", "missing"]
    versions = [
        version(num, rng.choice(states), is_kept=rng.random() < 0.2)
        for num in rng.sample(range(1, 40), rng.randrange(20))
    ]
    ids = [each.id for each in versions] or ["v1"]
    active, previous = rng.choice([*ids, "base"]), rng.choice([*ids, None])
    named, held = rng.sample(ids, len(ids) // 3), rng.sample(ids, len(ids) // 4)
    keep = rng.randrange(12)

    gone = decide(
        versions, active=active, previous=previous, named=named, on_engines=held, keep=keep
    )

    needed = {active, previous, *named, *held}
    by_id = {each.id: each for each in versions}
    assert not needed & set(gone)
    assert not any(by_id[each].is_kept for each in gone)
    assert all(by_id[each].state in ("ready", "retired", "rejected") for each in gone)
    assert sorted(gone, key=lambda each: by_id[each].num) == [*gone]
    stays = [each for each in versions if each.id not in gone]
    assert len(stays) >= min(keep, len(versions))
