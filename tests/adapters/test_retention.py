"""Which versions retention gives up."""

import random
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from strop.adapters.retention import Held, removable


def version(num: int, state: str = "retired", **changes: Any) -> Held:
    """Return the version of that number, trained on the one before it."""
    parent = f"v{num - 1}" if num > 1 else None
    held = Held(f"v{num}", num, state, parent, is_kept=False, is_stale=False)
    return replace(held, **changes)


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
    versions = [version(num) for num in range(1, 8)]
    versions[2] = replace(versions[2], is_kept=True)

    assert ("v4", "v7") == decide(
        versions, active="v1", previous="v2", named=("v5",), on_engines=("v6",)
    )
    assert ("v4",) == decide(
        versions, active="v1", previous="v2", named=("v5",), on_engines=("v6",), keep=1
    )


def test_parents_are_not_kept_for_their_children() -> None:
    """A version is whole; it needs no other to be served or continued from."""
    assert ("v1", "v2") == decide([version(1), version(2), version(3, "active")], active="v3")


def test_what_is_being_written_or_gone_is_left_alone() -> None:
    """A candidate's folder is its writer's; a missing version has none."""
    versions = [version(1, "candidate"), version(2, "missing"), version(3, "active")]

    assert () == decide(versions, active="base")


def test_rejected_versions_go_as_others_do() -> None:
    """They are kept a while, for whoever wants to know why."""
    assert ("v1",) == decide([version(1, "rejected"), version(2, "rejected")], keep=1)


def test_a_stale_active_version_keeps_its_last_clean_ancestor() -> None:
    """Relearning starts from there."""
    versions = [
        version(1),
        version(2),
        version(3, is_stale=True),
        version(4, "active", is_stale=True),
    ]

    assert ("v1", "v3") == decide(versions, active="v4")


def test_an_ancestor_that_is_missing_is_not_the_one_to_start_from() -> None:
    """The one before it is, whose folder is there."""
    versions = [version(1), version(2, "missing"), version(3, "active", is_stale=True)]

    assert () == decide(versions, active="v3")


def test_a_line_of_stale_versions_ends_at_the_base() -> None:
    """Even where an ancestor is gone, or the records go round in circles."""
    one = version(1, is_stale=True, parent="v2")
    two = version(2, "active", is_stale=True)

    assert ("v1",) == decide([one, two], active="v2")
    assert () == decide([two], active="v2")


@given(st.integers(0, 2**32))
def test_nothing_needed_is_ever_given_up(seed: int) -> None:
    """Whatever there is."""
    rng = random.Random(seed)
    states = ["candidate", "ready", "retired", "rejected", "missing"]
    versions = [
        version(num, rng.choice(states), is_kept=rng.random() < 0.2, is_stale=rng.random() < 0.3)
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
