"""When a promoted version is rolled back because people like its answers less."""

import pytest

from strop.adapters.rates import Rate
from strop.proxy.store.version_records import Activation, Version
from strop.proxy.versions.live_rate import MIN_RATINGS, complaint, is_followed


def version(parent: str | None) -> Version:
    """Return v2, made from `parent`."""
    return Version("v2", 2, 0, parent, "sha256:b", "run_1", "run", "active")


@pytest.mark.parametrize(
    ("own", "before", "is_bad"),
    [
        # 90 % intervals: 2 of 20 is .03 to .26, 10 of 20 is .33 to .67, 60 of 100 is .52 to .68.
        (Rate(2, 20), Rate(60, 100), True),
        (Rate(10, 20), Rate(60, 100), False),
        (Rate(2, 20), Rate(10, 20), True),
        (Rate(0, MIN_RATINGS - 1), Rate(100, 100), False),
        (Rate(0, 1000), Rate(0, 0), False),
        (Rate(90, 100), Rate(10, 100), False),
    ],
)
def test_a_version_is_bad_once_its_whole_interval_lies_below(
    own: Rate, before: Rate, is_bad: bool
) -> None:
    """Both intervals are at 90 %, and it has at least 20 ratings of its own."""
    assert is_bad == (complaint("v2", own, "v1", before) is not None)


def test_the_reason_has_both_rates_and_their_intervals() -> None:
    """A person can judge the decision by it."""
    reason = complaint("v2", Rate(2, 20), "base", Rate(60, 100))

    assert (
        "its answers are liked less than those of base, surely: v2 2 of 20 good (0.03 to 0.26 at"
        " 90 %), and base 60 of 100 good (0.52 to 0.68 at 90 %)" == reason
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
