"""Tests of the intervals of shares."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.adapters.rates import Interval, Rate, wilson

ONE_SIGMA = math.erf(1 / math.sqrt(2))  # the confidence whose z is 1


def test_wilson_is_the_score_interval() -> None:
    """2 of 4 at z = 1: centre (.5 + 1/8) / 1.25 = .5, spread sqrt(.25/4 + 1/64) / 1.25 = .2236."""
    interval = wilson(2, 4, ONE_SIGMA)

    assert pytest.approx(0.5 - math.sqrt(5) / 10) == interval.low
    assert pytest.approx(0.5 + math.sqrt(5) / 10) == interval.high


def test_wilson_has_the_published_value_at_95_percent() -> None:
    """8 of 10 at 95 % is .490 to .943 (Agresti & Coull 1998, The American Statistician 52)."""
    interval = wilson(8, 10, 0.95)

    assert (0.4902, 0.9433) == (round(interval.low, 4), round(interval.high, 4))


def test_wilson_of_nothing_says_nothing() -> None:
    """Without a trial the share may be anything."""
    assert Interval(0.0, 1.0) == wilson(0, 0)


@pytest.mark.parametrize(("num_hits", "num"), [(-1, 3), (4, 3), (1, 0)])
def test_wilson_refuses_impossible_counts(num_hits: int, num: int) -> None:
    """There are at most as many hits as trials, and no negative ones."""
    with pytest.raises(ValueError, match="expected 0 <= hits"):
        wilson(num_hits, num)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_0_and_1(counts: tuple[int, int]) -> None:
    """The observed share lies inside, also at 0 and at 1."""
    num_hits, num = counts

    interval = wilson(num_hits, num)

    assert 0 <= interval.low <= num_hits / num <= interval.high <= 1


def test_a_rate_of_nothing_is_not_a_number() -> None:
    """No samples have no share, and an interval that says so."""
    nothing = Rate(0, 0)

    assert math.isnan(nothing.value)
    assert Interval(0.0, 1.0) == nothing.interval
    assert 0.25 == Rate(1, 4).value


def test_what_hangs_together_has_the_interval_of_what_it_is_worth() -> None:
    """60 of 80 that tell as much as 8 independent ones have the interval of 6 of 8."""
    rate = Rate(60, 80, worth=8.0)

    assert (0.75, wilson(6, 8)) == (rate.value, rate.interval)
    assert Interval(0.0, 1.0) == Rate(0, 0, worth=0.0).interval
