"""How sure a share is: of liked answers among the rated ones, of right ones among the sampled ones.

Pure. Knows nothing of ratings or versions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

CONFIDENCE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Rate:
    """A share `num_hits` / `num` with its Wilson interval; of nothing, the share is NaN.

    Where what was counted hangs together, `worth` is how many independent ones tell as much.
    """

    num_hits: int
    num: int
    worth: float | None = None

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.num_hits / self.num if self.num else math.nan

    @property
    def interval(self) -> Interval:
        """Where the true share lies, at `CONFIDENCE`."""
        if self.worth is None or not self.num:
            return wilson(self.num_hits, self.num)
        return wilson(self.worth * self.value, self.worth)


def wilson(num_hits: float, num: float, confidence: float = CONFIDENCE) -> Interval:
    """Return the score interval of a share (Wilson 1927, JASA 22, 209); [0, 1] where `num` is 0.

    Raises:
        ValueError: `num_hits` is not within 0 to `num`.
    """
    if not 0 <= num_hits <= num:
        raise ValueError(f"expected 0 <= hits <= number, got {num_hits} of {num}")
    if num == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num_hits / num
    centre = share + z * z / (2 * num)
    spread = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    scale = 1 + z * z / num
    # At the ends the formula is exactly 0 or 1, which rounding may miss.
    low = 0.0 if num_hits == 0 else (centre - spread) / scale
    high = 1.0 if num_hits == num else (centre + spread) / scale
    return Interval(low, high)


def pooled(groups: Sequence[Rate], correlation: float) -> Rate:
    """Return the rate over all `groups`, which say less, the more each says as a whole.

    N in groups of m are worth N / (1 + (m - 1) correlation) independent ones (Kish 1965, Survey
    Sampling, 5.4). Where groups differ, m is the size of one's group on average.
    """
    num = sum(one.num for one in groups)
    size = sum(one.num**2 for one in groups) / num if num else 1.0
    worth = num / (1 + (size - 1) * correlation)
    return Rate(sum(one.num_hits for one in groups), num, worth)


def correlation(samples: Sequence[Sequence[Rate]]) -> float:
    """Return how much those of a group are hits or not together, in [0, 1].

    The mean product of two such ones' distances from their sample's rate, over the variance of one.
    1 where no sample has both hits and others: nothing can be seen there.

    Args:
        samples: of groups each, which may have different rates.
    """
    covariance = variance = 0.0
    for groups in samples:
        rate = pooled(groups, 0.0).value
        for one in groups:
            together = one.num_hits - rate * one.num
            alone = one.num_hits * (1 - rate) ** 2 + (one.num - one.num_hits) * rate**2
            covariance += together**2 - alone
            variance += one.num * (one.num - 1) * rate * (1 - rate)
    return min(max(covariance / variance, 0.0), 1.0) if variance else 1.0
