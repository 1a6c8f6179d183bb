"""Whether a model's answers in a batch are those that it gives alone.

Some of mlx-lm's models are written for one sequence at a time: with several they fail, or attend to
padding, and say nothing. Knows no requests; may be asked once, before there are any.
"""

import logging
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from strop.proxy.embedded.batch import Batch
from strop.proxy.embedded.sampling import greedy

_TOLERANCE = 1.0  # nats: more than bf16 rounds, less than what a wrong mask does
_LIKELY = 10.0  # nats below the likeliest token; beyond that roundings are larger
_SHORT, _LONG = 3, 24  # tokens: the short one is padded

_log = logging.getLogger(__name__)


def rows_are_independent(model: Any, vocab_size: int) -> bool:
    """Return whether the tokens after a prompt are as likely beside longer prompts as alone.

    Raises:
        Exception: whatever the model raises on one sequence.
    """
    short, long = (
        [(7 * at * at + 3 * at) % vocab_size for at in range(1, length + 1)]
        for length in (_SHORT, _LONG)
    )
    alone_V = _first(model, [short])
    # A mask that is spread over the wrong axis fits where there are as many rows as heads.
    for others in ([long], [long, long]):
        try:
            beside_V = _first(model, [short, *others])
        except Exception as error:  # noqa: BLE001 - the edge of what a model can do
            _log.warning("the model can't run several answers at once: %s", error)
            return False
        is_likely_V = alone_V > alone_V.max() - _LIKELY
        difference: Any = mx.where(is_likely_V, mx.abs(alone_V - beside_V), 0).max()
        if not difference.item() < _TOLERANCE:
            return False
    return True


def _first(model: Any, prompts: Sequence[list[int]]) -> mx.array:
    """Return the logprobs of the first token after the first prompt."""
    batch = Batch(model, max_rows=len(prompts), prefill_chunk=_LONG)
    uids = [
        batch.insert(
            prompt,
            cache=None,
            num_cached=0,
            max_tokens=1,
            stop_ids=frozenset(),
            sampler=greedy,
            processors=[],
        )
        for prompt in prompts
    ]
    while True:
        for drawn in batch.step():
            if drawn.uid == uids[0]:
                batch.close()
                return drawn.logprobs
