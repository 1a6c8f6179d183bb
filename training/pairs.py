"""Pairs: which of several rated answers to the same prompt are to be compared.

Pure. Knows token ids and ratings, no store and no loss.
"""

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from strop.training.sequences import Tokens


def comparisons(answers: Sequence[Tokens], ratings: Sequence[float]) -> list[tuple[int, int]]:
    """Return pairs of indices, the preferred answer first.

    Two answers are compared if their prompts are the same ids, one was liked, the other disliked,
    and they differ. Every answer that can be compared is in at least one pair; of m liked and n
    disliked ones that makes max(m, n) pairs, not m x n: a prompt that was asked a hundred times
    would else outweigh all others.
    """
    prompts: dict[bytes, list[int]] = {}
    for index, tokens in enumerate(answers):
        prompts.setdefault(tokens.ids[: tokens.num_prompt].tobytes(), []).append(index)
    found = []
    for same in prompts.values():
        liked = [index for index in same if ratings[index] > 0]
        disliked = [index for index in same if ratings[index] < 0]
        pairs = (
            zip(liked, cycle(disliked), strict=False)
            if len(liked) >= len(disliked)
            else zip(cycle(liked), disliked, strict=False)
        )
        found += [(a, b) for a, b in pairs if differ(answers[a], answers[b])]
    return found


def differ(one: Tokens, other: Tokens) -> bool:
    """Return whether two sequences are not the same ids."""
    return not np.array_equal(one.ids, other.ids)
