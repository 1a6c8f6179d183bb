"""How much a device takes at once: a number of tokens that halves when that was too much.

Knows no objective. It only ever shrinks, and a resumed run goes on with what it had come to.
"""

import logging
from collections.abc import Callable, Sequence

from strop.training.backends.base import OutOfMemory, Policy, Weights
from strop.training.batching import Rows, pack
from strop.training.sequences import Floats, Tokens

log = logging.getLogger(__name__)


class MicroBatch:
    """The most tokens, padding included, of one call; a longer sequence goes alone.

    Args:
        max_tokens: to begin with.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def halve(self, sequences: Sequence[Tokens], error: OutOfMemory) -> None:
        """Take in that `sequences` didn't fit together.

        Raises:
            OutOfMemory: of the kind of `error`; it is one sequence, which can't be made smaller.
        """
        longest = max(len(tokens.ids) for tokens in sequences)
        if len(sequences) == 1:
            raise error.of(f"one conversation of {longest} tokens {error.excess}")
        self.max_tokens = max(1, min(self.max_tokens, longest * len(sequences)) // 2)
        log.warning("%s; going on with smaller micro-batches", error.what, extra={
            "max_tokens": self.max_tokens,
        })  # fmt: skip

    def logprobs(
        self,
        policy: Policy,
        sequences: Sequence[Tokens],
        weights: Weights,
        on_batch: Callable[[Sequence[Tokens]], None] = lambda _: None,
    ) -> list[Floats]:
        """Return the logprobs of each sequence's answer under `weights`, as many at once as fit.

        `on_batch` is told after each batch what was in it; it may raise.

        Raises:
            OutOfMemory: one sequence alone doesn't fit.
        """
        found: dict[int, Floats] = {}
        while len(found) < len(sequences):
            left = [i for i in range(len(sequences)) if i not in found]
            batches = pack([Rows(len(sequences[i].ids)) for i in left], self.max_tokens)
            for batch in batches:
                indices = [left[i] for i in batch]
                chosen = [sequences[i] for i in indices]
                try:
                    computed = policy.logprobs(chosen, weights)
                except OutOfMemory as error:
                    self.halve(chosen, error)
                    break
                found.update(zip(indices, computed, strict=True))
                on_batch(chosen)
        return [found[i] for i in range(len(sequences))]
