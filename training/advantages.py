"""Advantages: how much better than expected a rated answer was.

Pure. Knows no loss, and no store: what is expected comes from numbers that it is given.
"""

from collections.abc import Sequence
from typing import Final

from strop.proxy.store.run_records import Prior
from strop.training.examples import Example

# As if one good and one bad answer had been seen before the first (a Beta(1, 1) prior).
PRIOR_ANSWERS: Final = 2


def baseline(prior: Prior) -> float:
    """Return b = total / (num_answers + 2), in (-1, 1).

    Over all standing ratings of this model that are not held out, this batch's included: those of
    one answer count as one, by their mean, as they do in the loss. The Beta prior draws b towards
    0: three good answers make it 0.6, not 1, so they still count for something. A b below the mean
    rating also favours the liked answers, which is what off-policy data want (AsymRE, arXiv
    2506.20520).
    """
    return prior.total / (prior.num_answers + PRIOR_ANSWERS)


def advantages(examples: Sequence[Example], prior: Prior) -> list[float]:
    """Return A_i for each example: r_i - b for a rated turn, 1 for a correction or a pair.

    Advantages are not standardised: with two-valued ratings that would take the baseline out again
    (`tests/training/test_advantages.py` shows it).
    """
    b = baseline(prior)
    return [one.rating - b if one.kind == "rating" else 1.0 for one in examples]
