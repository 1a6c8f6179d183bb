"""How units become steps, and sequences micro-batches; the same for the same seed.

Pure. Knows no policy and no loss.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def plan_steps(
    num_units: int, *, num_steps: int, batch_size: int, seed: int
) -> list[tuple[int, ...]]:
    """Return the units of each step: one shuffled pass after the other, cut into batches.

    Within a pass each unit comes once, and a batch never has a unit twice. Batches have up to
    `batch_size` units, and their sizes differ by one at most: AdamW moves about as far for one unit
    as for eight, so a batch of what is left over would let its few units decide a whole step.

    Raises:
        ValueError: there is no unit.
    """
    if num_units < 1:
        raise ValueError("expected at least one unit to train on, got none")
    rng = random.Random(seed)  # noqa: S311
    num_batches = -(-num_units // batch_size)
    cuts = [num_units * i // num_batches for i in range(num_batches + 1)]
    steps: list[tuple[int, ...]] = []
    while len(steps) < num_steps:
        order = rng.sample(range(num_units), num_units)
        steps += [tuple(order[start:end]) for start, end in pairwise(cuts)]
    return steps[:num_steps]


@dataclass(frozen=True, slots=True)
class Rows:
    """What must be computed in one call: `num` sequences of up to `length` tokens each."""

    length: int
    num: int = 1

    @property
    def num_padded(self) -> int:
        """How many tokens they are, each padded to the longest."""
        return self.length * self.num


def pack(rows: Sequence[Rows], max_tokens: int) -> list[list[int]]:
    """Return indices of `rows` in micro-batches of up to `max_tokens`, padding included.

    The longest come first: what doesn't fit into memory shows at once. What has more than
    `max_tokens` by itself is alone.
    """
    batches: list[list[int]] = []
    longest = num = 0
    for index in sorted(range(len(rows)), key=lambda i: (-rows[i].length, i)):
        num += rows[index].num
        if batches and longest * num <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest, num = rows[index].length, rows[index].num
    return batches


def learning_rate(step: int, num_steps: int, *, peak: float, warmup_steps: int) -> float:
    """Return the rate of a step from 0 on: up to `peak` in a line, then down towards 0 in a line.

    No step has the rate 0.
    """
    rise = (step + 1) / max(1, warmup_steps + 1)
    fall = (num_steps - step) / max(1, num_steps - warmup_steps)
    return peak * min(1.0, rise, fall)
