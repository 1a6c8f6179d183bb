"""Logprobs of given tokens and of their best alternatives, from rows of log-softmax.

Letters: T positions (or rows), V vocabulary, K alternatives. Knows no requests.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from strop.proxy.embedded.jobs import Scored


def score(logprobs_TV: mx.array, ids: Sequence[int], num_top: int) -> list[Scored]:
    """Return each id with its logprob at its position, and the `num_top` best alternatives."""
    tops = _best(logprobs_TV, num_top)
    values: Any = _at(logprobs_TV, ids).tolist()
    return [Scored(*scored) for scored in zip(ids, values, tops, strict=True)]


def score_prompt(logits_TV: mx.array, ids: Sequence[int], num_top: int) -> list[Scored]:
    """Return the same from logits, and each id's rank: 1 for the most likely."""
    logprobs_TV = logits_TV - mx.logsumexp(logits_TV, axis=-1, keepdims=True)
    logprobs_T = _at(logprobs_TV, ids)
    values: Any = logprobs_T.tolist()
    ranks: Any = (mx.sum(logprobs_TV > logprobs_T[:, None], axis=-1) + 1).tolist()
    tops = _best(logprobs_TV, num_top)
    return [Scored(*scored) for scored in zip(ids, values, tops, ranks, strict=True)]


def _at(logprobs_TV: mx.array, ids: Sequence[int]) -> mx.array:
    return mx.take_along_axis(logprobs_TV, mx.array(list(ids))[:, None], axis=-1)[:, 0]


def _best(logprobs_TV: mx.array, count: int) -> list[tuple[tuple[int, float], ...]]:
    """Return the `count` most likely ids of each position with their logprobs, best first."""
    count = min(count, logprobs_TV.shape[-1])
    if count == 0:
        return [()] * logprobs_TV.shape[0]
    ids_TK = mx.argpartition(-logprobs_TV, count - 1, axis=-1)[:, :count]
    ids: Any = ids_TK.tolist()
    values: Any = mx.take_along_axis(logprobs_TV, ids_TK, axis=-1).tolist()
    return [
        tuple(sorted(zip(*pair, strict=True), key=lambda scored: -scored[1]))
        for pair in zip(ids, values, strict=True)
    ]
