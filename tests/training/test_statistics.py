"""Tests of the intervals of means, of what hits that hang together are worth, and of n-grams."""

import math

import numpy as np
import pytest

from strop.adapters.rates import Interval, Rate
from strop.training.statistics import (
    Group,
    bootstrap_difference,
    bootstrap_mean,
    distinct,
    worth,
)


def test_a_bootstrap_of_equal_groups_is_a_point() -> None:
    """Every resample of groups with mean 2 has mean 2."""
    assert Interval(2.0, 2.0) == bootstrap_mean([Group(4.0, 2), Group(2.0, 1), Group(6.0, 3)])


def test_a_bootstrap_draws_whole_groups() -> None:
    """Two groups, 0 and 1, give means 0, 1/2 and 1 with chances 1/4, 1/2, 1/4: 90 % is all of it.

    A thousand values in each don't make the interval narrower, as they are of two sessions.
    """
    assert Interval(0.0, 1.0) == bootstrap_mean([Group(0.0, 1000), Group(1000.0, 1000)])


def test_a_bootstrap_has_the_width_of_the_normal_approximation() -> None:
    """400 groups alternating 0 and 1: sd of the mean .5 / 20 = .025, times 1.645 is .041."""
    interval = bootstrap_mean([Group(float(i % 2), 1) for i in range(400)])

    assert pytest.approx(0.5 - 0.041, abs=0.006) == interval.low
    assert pytest.approx(0.5 + 0.041, abs=0.006) == interval.high


def test_a_bootstrap_is_the_same_for_the_same_seed_only() -> None:
    """Intervals can be made again, and another seed draws other resamples."""
    groups = [Group(math.sin(i), 1) for i in range(50)]

    assert bootstrap_mean(groups, seed=1) == bootstrap_mean(groups, seed=1)
    assert bootstrap_mean(groups, seed=1) != bootstrap_mean(groups, seed=2)


def test_a_difference_draws_both_sides_together() -> None:
    """Sessions whose sides differ by exactly 1 differ by 1 in every resample."""
    first = [Group(i + 1.0, 1) for i in range(20)]
    second = [Group(float(i), 1) for i in range(20)]

    interval = bootstrap_difference(first, second)

    assert pytest.approx(1.0) == interval.low
    assert pytest.approx(1.0) == interval.high


def test_a_difference_takes_sessions_with_one_side_only() -> None:
    """A resample that lacks a side says nothing and is left out, so nothing is divided by zero."""
    interval = bootstrap_difference([Group(3.0, 1), Group(0.0, 0)], [Group(0.0, 0), Group(1.0, 1)])

    assert Interval(2.0, 2.0) == interval


def test_a_bootstrap_of_no_value_is_refused() -> None:
    """An interval needs at least one value on each side."""
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_difference([Group(1.0, 1)], [Group(0.0, 0)])
    with pytest.raises(ValueError, match="as many groups"):
        bootstrap_difference([Group(1.0, 1)], [])


def test_trials_are_divided_by_the_design_effect() -> None:
    """How often the variance between groups is what that of independent trials would be.

    Hits 4, 3, 1, 0 of 4: share 1/2, spread 4/3 (4 + 1 + 1 + 4) = 40/3 against 16/4 = 4, so they are
    worth 16 x 4 x 3/40 = 4.8. Hits 3, 2, 1, 2 have the spread 8/3, less than 4, and all 16 count.
    """
    apart, together = (
        [Group(hits, 4) for hits in listed] for listed in ([3, 2, 1, 2], [4, 3, 1, 0])
    )

    assert 16 == worth(apart)
    assert pytest.approx(4.8) == worth(together)


@pytest.mark.parametrize("hits", [[4, 4, 4], [0, 0, 0], [4, 0, 4], [2]])
def test_groups_are_worth_as_much_as_they_are_many_where_each_has_one_opinion(
    hits: list[int],
) -> None:
    """Or where nothing tells how groups differ."""
    assert len(hits) == worth([Group(one, 4) for one in hits])


def test_groups_that_are_all_alike_hang_together_no_more_than_by_chance() -> None:
    """Without any spread all trials count; and of no group there are none."""
    assert 12 == worth([Group(2, 4)] * 3)
    assert 0 == worth([])


@pytest.mark.parametrize(("share", "together"), [(0.5, 0.3), (0.5, 1.0), (0.8, 0.6), (0.95, 1.0)])
def test_nine_of_ten_intervals_over_prompts_hold_the_share(share: float, together: float) -> None:
    """23 prompts of 4 samples each, which hang together; taken as 92 apart, .54 to .77 would.

    Of 300 draws .84 to .96 is near enough.
    """
    rng = np.random.default_rng(0)

    def holds() -> bool:
        a = share * (1 / together - 1)
        chances = rng.beta(a, a / share - a, 23) if a else rng.random(23) < share
        groups = [Group(hits, 4) for hits in rng.binomial(4, chances)]
        rate = Rate(round(sum(group.total for group in groups)), 92, worth(groups))
        return share in rate.interval

    assert 0.84 <= np.mean([holds() for _ in range(300)]) <= 0.96


def test_distinct_n_counts_the_n_grams_of_all_sequences_together() -> None:
    """1 2 1 2 and 1 2 have bigrams 12 21 12, 12: 2 different of 4; and 2 different words of 6."""
    sequences = [[1, 2, 1, 2], [1, 2]]

    assert 0.5 == distinct(sequences, 2)
    assert pytest.approx(1 / 3) == distinct(sequences, 1)


def test_distinct_n_of_sequences_that_are_too_short_is_0() -> None:
    """Where there is no n-gram there is no variety."""
    assert 0.0 == distinct([[1], []], 2)
