"""What a token costs to train, by the length of the sequence it is in.

Random ids: what they cost doesn't depend on what they say.
"""

import time
from collections.abc import Sequence
from statistics import median
from typing import Final

import numpy as np

from bench.learning.demo import Demo
from strop.training.backends.base import Policy
from strop.training.sequences import Floats, Tokens

LENGTHS: Final = (128, 256, 512, 1024, 2048)
_NUM_TOKENS: Final = 8192  # of each length, in sequences of their own
_NUM_REPEATS: Final = 5
_VOCABULARY: Final = 500


def measure(demo: Demo) -> dict[int, float]:
    """Return CPU milliseconds for 1,000 tokens, forward and backward, by sequence length.

    The median over repeats; lengths take turns, so that what else the machine does hits them alike.
    """
    policy = demo.open(None)
    found: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for repeat in range(_NUM_REPEATS + 1):
        for length in LENGTHS:
            spent_s = _train(policy, length)
            if repeat:  # the first is for warming up
                found[length].append(spent_s)
    policy.close()
    return {length: median(spent) / _NUM_TOKENS * 1e6 for length, spent in found.items()}


def _train(policy: Policy, length: int) -> float:
    rng = np.random.default_rng(length)
    began_s = time.process_time()
    for _ in range(_NUM_TOKENS // length):
        ids = rng.integers(0, _VOCABULARY, length + 1, dtype=np.int32)
        policy.accumulate([Tokens(ids, 1)], _pushes)
    policy.step(1e-6)
    return time.process_time() - began_s


def _pushes(logprobs: Sequence[Floats]) -> list[Floats]:
    return [np.full_like(one, -1 / len(one)) for one in logprobs]
