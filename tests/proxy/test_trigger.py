"""When training starts by itself, and what it says that it waits for."""

from datetime import datetime
from typing import Any

import pytest

from strop.proxy.settings.kinds import parse_hours
from strop.proxy.settings.settings import Training
from strop.proxy.store.run_records import FreshCounts
from strop.proxy.trigger import Decision, Moment, decide

NOON = Moment(datetime(2026, 11, 21, 12, 0), idle_s=0.0)  # noqa: DTZ001


def fresh(good: int, bad: int, corrections: int = 0) -> FreshCounts:
    """Return counts of fresh ratings."""
    return FreshCounts(good, bad, corrections, good + bad, newest_ms=1000)


@pytest.mark.parametrize(
    ("num_good", "num_bad", "expected"),
    [
        (0, 0, "32 more ratings; 0 bad still to learn from: rate some bad ones too"),
        (23, 0, "9 more ratings; 0 bad still to learn from: rate some bad ones too"),
        (0, 40, "0 good still to learn from: rate some good ones too"),
        (40, 0, "0 bad still to learn from: rate some bad ones too"),
        (20, 11, "1 more rating"),
    ],
)
def test_it_says_what_is_missing(num_good: int, num_bad: int, expected: str) -> None:
    """Too few ratings, or ratings of one kind, start nothing, and the reason says what to do."""
    decision = decide(fresh(num_good, num_bad), num_good + num_bad, NOON, Training())

    assert Decision(False, expected) == decision


def test_enough_ratings_of_both_kinds_start_a_run() -> None:
    """The number that is set starts a run, once both kinds are there."""
    assert Decision(True, "32 ratings to learn from") == decide(fresh(31, 1), 32, NOON, Training())


def test_a_refused_run_is_tried_again_only_with_new_ratings() -> None:
    """Ratings from before the last run train with the next one, and don't start it."""
    decision = decide(fresh(23, 22), 5, NOON, Training())

    assert Decision(False, "27 more ratings") == decision


@pytest.mark.parametrize(
    ("num_rejected", "num_new", "expected"),
    [
        (1, 31, "1 more rating, since the last run was rejected"),
        (1, 32, ""),
        (2, 32, "32 more ratings, since the last 2 runs were rejected"),
        (2, 64, ""),
        (4, 64, "192 more ratings, since the last 4 runs were rejected"),
    ],
)
def test_each_rejection_doubles_what_the_next_run_waits_for(
    num_rejected: int, num_new: int, expected: str
) -> None:
    """Whatever is tried again takes longer each time; so it is tried half as often."""
    decision = decide(fresh(200, 200), num_new, NOON, Training(), num_rejected=num_rejected)

    assert Decision(not expected, expected or "400 ratings to learn from") == decision


def test_a_correction_counts_as_a_good_one() -> None:
    """An answer that should have been given is something to like, beside a bad rating."""
    assert decide(fresh(0, 40, corrections=1), 40, NOON, Training()).is_due


@pytest.mark.parametrize(
    ("objective", "fresh_ones", "expected"),
    [
        ("sft", fresh(40, 0), ""),
        ("sft", fresh(0, 40), "0 good still to learn from: rate some good ones too"),
        ("sft", fresh(0, 40, corrections=1), ""),
        ("dpo", fresh(40, 0), "0 bad still to learn from: rate some bad ones too"),
        ("dpo", fresh(40, 0, corrections=1), ""),
        ("dpo", fresh(0, 40), "0 good still to learn from: rate some good ones too"),
        ("dpo", fresh(20, 20), ""),
        ("kto", fresh(40, 0), "0 bad still to learn from: rate some bad ones too"),
        ("kto", fresh(40, 0, corrections=1), "0 bad still to learn from: rate some bad ones too"),
    ],
)
def test_it_waits_for_what_the_objective_learns_from(
    objective: Any, fresh_ones: FreshCounts, expected: str
) -> None:
    """Some learn from what is liked alone, and some from pairs, which a correction makes too."""
    decision = decide(fresh_ones, 40, NOON, Training(objective=objective))

    assert Decision(not expected, expected or "40 ratings to learn from") == decision


@pytest.mark.parametrize(
    ("settings", "moment", "reason"),
    [
        (Training(hours="22-6"), NOON, "training.hours"),
        (Training(idle_s=60), NOON, "training.idle_s"),
        (Training(enabled=False), NOON, "training.enabled"),
    ],
)
def test_it_waits_for_the_hour_and_for_rest(
    settings: Training, moment: Moment, reason: str
) -> None:
    """Each rule that holds a run back names its setting."""
    decision = decide(fresh(20, 20), 40, moment, settings)

    assert not decision.is_due
    assert reason in decision.says


@pytest.mark.parametrize(
    ("hours", "hour", "is_due"),
    [
        ("22-6", 23, True),
        ("22-6", 5, True),
        ("22-6", 6, False),
        ("9-17", 9, True),
        ("9-17", 17, False),
        ("0-24", 12, True),
    ],
)
def test_hours_may_pass_midnight(hours: str, hour: int, is_due: bool) -> None:
    """The first hour counts, the last doesn't, and midnight may lie between them."""
    at = Moment(NOON.now.replace(hour=hour), idle_s=0.0)

    decision = decide(fresh(20, 20), 40, at, Training(hours=hours))

    assert is_due is decision.is_due


@pytest.mark.parametrize("text", ["22", "22-", "a-b", "24-6", "22-25", "-1-6"])
def test_hours_that_are_none_are_refused(text: str) -> None:
    """What can't be read as two hours of the day is a ValueError, for the settings to explain."""
    with pytest.raises(ValueError, match=text):
        parse_hours(text)
