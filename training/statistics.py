"""How sure a mean is, what hits that hang together tell, and how much answers repeat themselves.

Pure. Knows nothing of ratings, versions or models. How sure a share is, is in `adapters.rates`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strop.adapters.rates import CONFIDENCE, Interval

NUM_RESAMPLES: Final = 2000

# Resamples are drawn in blocks of about this many counts, to bound memory.
_BLOCK: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Group:
    """What one session or prompt adds to a mean: the sum of its values and how many they are."""

    total: float
    num: int


def bootstrap_mean(groups: Sequence[Group], *, seed: int = 0) -> Interval:
    """Return the percentile bootstrap interval of the mean over all values of `groups`.

    Whole groups are drawn, as values of one session hang together (Davison & Hinkley 1997, §3.8).

    Raises:
        ValueError: there is no value.
    """
    return bootstrap_difference(groups, None, seed=seed)


def bootstrap_difference(
    first: Sequence[Group], second: Sequence[Group] | None, *, seed: int = 0
) -> Interval:
    """Return the interval of the mean of `first` less that of `second`, drawing whole groups.

    Args:
        first: one entry per session.
        second: one entry for each of the same sessions; None for zero.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: there is no value, or the two don't have the same sessions.
    """
    sides = [first] if second is None else [first, second]
    if any(len(side) != len(first) for side in sides):
        raise ValueError(f"expected as many groups on both sides, got {[*map(len, sides)]}")
    if any(not sum(group.num for group in side) for side in sides):
        raise ValueError("expected at least one value on each side, got none")
    totals = [np.array([group.total for group in side], float) for side in sides]
    nums = [np.array([group.num for group in side], float) for side in sides]
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [_differences(counts, totals, nums) for counts in _draws(rng, len(first))]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def _draws(rng: np.random.Generator, num_groups: int) -> Iterable[NDArray[np.float64]]:
    """Yield how often each group is in each resample, (resamples, groups)."""
    rows = max(1, min(NUM_RESAMPLES, _BLOCK // num_groups))
    shares = np.full(num_groups, 1 / num_groups)
    for start in range(0, NUM_RESAMPLES, rows):
        size = min(rows, NUM_RESAMPLES - start)
        yield rng.multinomial(num_groups, shares, size=size).astype(float)


def _differences(
    counts: NDArray[np.float64],
    totals: Sequence[NDArray[np.float64]],
    nums: Sequence[NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return each resample's difference; a resample without a value on one side is left out."""
    sizes = [counts @ num for num in nums]
    is_whole = np.logical_and.reduce([size > 0 for size in sizes])
    means = [
        (counts[is_whole] @ total) / size[is_whole]
        for total, size in zip(totals, sizes, strict=True)
    ]
    return means[0] if len(means) == 1 else means[0] - means[1]


def worth(groups: Sequence[Group]) -> float:
    """Return how many independent trials tell as much of a share as those of `groups` together.

    Groups are a sample of many, each with its hits as `total` and at least one trial. The trials
    are divided by the design effect: the share's variance between groups over that of independent
    trials (Rao & Scott 1992, Biometrics 48, 577). At least as many as there are groups; just that
    many where there is no spread to tell it by: one group, only hits, or none.
    """
    totals = np.array([group.total for group in groups], float)
    nums = np.array([group.num for group in groups], float)
    num_groups, num = len(groups), float(nums.sum())
    share = float(totals.sum()) / num if num else 0.0
    if num_groups < 2 or share in (0.0, 1.0):
        return float(num_groups)
    spread = float(np.square(totals - share * nums).sum()) * num_groups / (num_groups - 1)
    independent = share * (1 - share) * num
    return max(float(num_groups), num * min(1.0, independent / spread)) if spread else num


def distinct(sequences: Iterable[Sequence[int]], n: int) -> float:
    """Return distinct-n: different n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055).

    The n-grams of all sequences are counted together; 0 where no sequence is `n` long.
    """
    seen: set[tuple[int, ...]] = set()
    num = 0
    for ids in sequences:
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        seen.update(grams)
        num += len(grams)
    return len(seen) / num if num else 0.0
