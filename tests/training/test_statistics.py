"""Tests of the intervals of means, and of counted n-grams."""

import math

import pytest

from strop.adapters.rates import Interval
from strop.training.statistics import Group, bootstrap_difference, bootstrap_mean, distinct


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


def test_distinct_n_counts_the_n_grams_of_all_sequences_together() -> None:
    """1 2 1 2 and 1 2 have bigrams 12 21 12, 12: 2 different of 4; and 2 different words of 6."""
    sequences = [[1, 2, 1, 2], [1, 2]]

    assert 0.5 == distinct(sequences, 2)
    assert pytest.approx(1 / 3) == distinct(sequences, 1)


def test_distinct_n_of_sequences_that_are_too_short_is_0() -> None:
    """Where there is no n-gram there is no variety."""
    assert 0.0 == distinct([[1], []], 2)
