"""When a promoted version is rolled back because people like its answers less."""

import pytest

from strop.adapters.rates import Rate
from strop.proxy.store.version_records import Activation, Version
from strop.proxy.versions.live_rate import MIN_ANSWERS, MIN_SESSIONS, complaint, is_followed


def version(parent: str | None) -> Version:
    """Return v2, made from `parent`."""
    return Version("v2", 2, 0, parent, "sha256:b", "run_1", "run", "active")


def apart(num_good: int, num: int) -> list[Rate]:
    """Return ratings of which each is of a session of its own."""
    return [Rate(int(number < num_good), 1) for number in range(num)]


@pytest.mark.parametrize(
    ("own", "before", "is_bad"),
    [
        # 90 % intervals: 2 of 20 is .03 to .26, 10 of 20 is .33 to .67, 60 of 100 is .52 to .68.
        (apart(2, 20), apart(60, 100), True),
        (apart(10, 20), apart(60, 100), False),
        (apart(2, 20), apart(10, 20), True),
        (apart(0, MIN_ANSWERS - 1), apart(100, 100), False),
        (apart(0, 1000), [], False),
        (apart(90, 100), apart(10, 100), False),
    ],
)
def test_a_version_is_bad_once_its_whole_interval_lies_below(
    own: list[Rate], before: list[Rate], is_bad: bool
) -> None:
    """Both intervals are at 90 %, and it has at least 20 ratings of its own."""
    assert is_bad == (complaint("v2", own, "v1", before) is not None)


@pytest.mark.parametrize("num_sessions", range(1, MIN_SESSIONS + 1))
def test_no_version_is_bad_by_what_a_few_sessions_say(num_sessions: int) -> None:
    """One conversation that goes wrong says little, however many of its answers are rated."""
    own = [Rate(0, 20)] * num_sessions

    reason = complaint("v2", own, "v1", apart(50, 64))

    assert (num_sessions == MIN_SESSIONS) == (reason is not None)


def test_ratings_that_hang_together_in_their_sessions_say_less() -> None:
    """16 of 40 are surely under 50 of 64; but not where sessions were liked or not as a whole."""
    before = apart(50, 64)
    as_many_in_each = [Rate(4, 8), Rate(3, 8), Rate(3, 8), Rate(3, 8), Rate(3, 8)]
    as_a_whole = [Rate(8, 8), Rate(8, 8), Rate(0, 8), Rate(0, 8), Rate(0, 8)]

    assert complaint("v2", apart(16, 40), "v1", before) is not None
    assert complaint("v2", as_many_in_each, "v1", before) is not None
    assert complaint("v2", as_a_whole, "v1", before) is None


def test_what_hangs_together_is_seen_in_the_ratings_of_the_parent_too() -> None:
    """Where its sessions were liked or not as a whole, those of the version are hardly more sure.

    They are too few, and too much alike, to show it themselves.
    """
    own = [Rate(1, 5)] * 4

    reason = complaint("v2", own, "v1", [Rate(10, 10)] * 4 + [Rate(0, 10)] * 2)

    assert complaint("v2", own, "v1", apart(40, 60)) is not None
    assert reason is None


def test_the_reason_has_both_rates_and_their_intervals() -> None:
    """A person can judge the decision by it."""
    own = [Rate(2, 16), *apart(0, 4)]
    reason = complaint("v2", own, "base", [Rate(30, 50), Rate(30, 50)])

    assert (
        "its answers are liked less than those of base, surely: v2 2 of 20 good in 5 sessions (0.03"
        " to 0.26 at 90 %), and base 60 of 100 good in 2 sessions (0.52 to 0.68 at 90 %)" == reason
    )


@pytest.mark.parametrize(
    ("activation", "parent", "expected"),
    [
        (Activation("v2", "v1", 0, "gate"), "v1", True),
        (Activation("v2", "base", 0, "gate"), None, True),
        (Activation("v2", "v1", 0, "api"), "v1", False),
        (Activation("v2", "v1", 0, "watch"), "v1", False),
        (Activation("v2", "base", 0, "gate"), "v1", False),
        (Activation("v2", None, 0, "gate"), "v1", False),
    ],
)
def test_only_what_the_gate_put_in_its_parents_place_is_followed(
    activation: Activation, parent: str | None, expected: bool
) -> None:
    """What a person chose stays; what a rollback went to does too; and a rollback goes home."""
    assert expected == is_followed(activation, version(parent))


def test_one_large_session_beside_small_ones_decides_nothing() -> None:
    """Three of four conversations like the version; of the fourth 40 answers are rated."""
    own = [Rate(0, 40), *apart(3, 3)]

    assert complaint("v1", own, "base", apart(50, 64)) is None
    assert complaint("v1", [Rate(0, 40), *apart(0, 20)], "base", apart(50, 64)) is not None


@pytest.mark.parametrize(
    ("own", "before"),
    [
        # All bad, beside one session that is all good.
        ([Rate(0, 5)] * 4, [Rate(200, 200)]),
        # Sessions are large for an answer, however many are small.
        ([Rate(0, 97), *apart(0, 3)], [Rate(5, 5)] * 10 + [Rate(0, 5)] * 3),
    ],
)
def test_sessions_at_the_edges_say_little(own: list[Rate], before: list[Rate]) -> None:
    assert complaint("v1", own, "base", before) is None
