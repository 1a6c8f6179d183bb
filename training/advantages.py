"""Advantages: how much better than expected a rated answer was.

Pure. Knows no loss, and no store: what is expected comes from numbers that it is given.
"""

from collections.abc import Sequence
from typing import Final

from strop.training.examples import Example

# As if one good and one bad rating had been seen before the first (a Beta(1, 1) prior).
PRIOR_RATINGS: Final = 2


def baseline(total: float, num_ratings: int) -> float:
    """Return b = total / (num_ratings + 2), in (-1, 1).

    `total` is the sum of all standing ratings of this model that are not held out, this batch's
    included, and `num_ratings` their number. The prior draws b towards 0: three good ratings make
    it 0.6, not 1, so they still count for something. A b below the mean rating also favours the
    liked answers, which is what off-policy data want (AsymRE, arXiv 2506.20520).
    """
    return total / (num_ratings + PRIOR_RATINGS)


def advantages(examples: Sequence[Example], prior: tuple[float, int]) -> list[float]:
    """Return A_i for each example: r_i - b for a rated turn, 1 for a correction or a pair.

    `prior` is what `baseline` takes. Advantages are not standardised: with two-valued ratings that
    would take the baseline out again (`tests/training/test_advantages.py` shows it).
    """
    b = baseline(*prior)
    return [one.rating - b if one.kind == "rating" else 1.0 for one in examples]
