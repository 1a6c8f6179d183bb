"""Advantages: ratings against what was to be expected, by hand."""

import numpy as np
import pytest
from training_values import BASE, Bytes, completion, feedback, turn

from strop.proxy.store.run_records import Prior
from strop.training.advantages import advantages, baseline
from strop.training.examples import Example, make
from strop.training.rows import Target

TARGET = Target(BASE, context=1000, tokenizer=Bytes())


def rated(*ratings: float) -> list[Example]:
    turns = [turn(given=[feedback(rating, f"fb_{i}")]) for i, rating in enumerate(ratings)]
    return [one for one in make(turns, TARGET).examples if one.kind == "rating"]


@pytest.mark.parametrize(
    ("total", "num_answers", "expected"),
    [(0.0, 0, 0.0), (3.0, 3, 0.6), (-3.0, 3, -0.6), (-32.0, 40, -32 / 42), (0.0, 5, 0.0)],
)
def test_the_baseline_is_the_mean_drawn_towards_zero(
    total: float, num_answers: int, expected: float
) -> None:
    """B = total / (n + 2): as if one good and one bad rating came before the first."""
    assert pytest.approx(expected) == baseline(Prior(total, num_answers, 0))


def test_an_advantage_is_the_rating_less_the_baseline() -> None:
    """4 of 40 good: b = -32 / 42 = -0.762. A good one has 1.762, a bad one -0.238."""
    found = advantages(rated(1.0, -1.0), Prior(-32.0, 40, 40))

    assert pytest.approx([1 + 32 / 42, -1 + 32 / 42]) == found


def test_what_all_like_still_counts() -> None:
    """Three good ratings alone have 0.4 each, and not 0 as with a plain mean."""
    assert pytest.approx([0.4] * 3) == advantages(rated(1.0, 1.0, 1.0), Prior(3.0, 3, 3))


def test_corrections_and_pairs_have_an_advantage_of_one() -> None:
    """Whatever the baseline is: nobody sampled them, so nothing was to be expected."""
    corrected = turn(completion(), given=[feedback(-1.0, correction="better")])
    examples = make([corrected], TARGET).examples

    found = advantages(examples, Prior(30.0, 40, 40))

    assert ["rating", "correction", "pair"] == [one.kind for one in examples]
    assert pytest.approx([-1 - 30 / 42, 1.0, 1.0]) == found


def standardised(values: list[float]) -> list[float]:
    """Advantages as group-relative methods make them."""
    array = np.array(values)
    return [float(value) for value in (array - array.mean()) / array.std()]


def test_standardising_two_valued_advantages_takes_the_baseline_out_again() -> None:
    """Standardised, a good one among 3 bad ones has sqrt(3), whatever came before.

    Here the baseline decides, so it matters whether the model was liked so far.
    """
    batch = rated(1.0, -1.0, -1.0, -1.0)
    liked_before, disliked_before = Prior(50.0, 60, 60), Prior(-50.0, 60, 60)

    ours = [advantages(batch, prior) for prior in (liked_before, disliked_before)]

    assert [pytest.approx([3**0.5, *[-(3**-0.5)] * 3])] * 2 == [standardised(one) for one in ours]
    assert pytest.approx([1 - 50 / 62, *[-1 - 50 / 62] * 3]) == ours[0]
    assert pytest.approx([1 + 50 / 62, *[-1 + 50 / 62] * 3]) == ours[1]
