"""Continuous batching of the requests of one version: the one file that touches BatchGenerator.

Written against mlx-lm 0.32.2, whose batch API changes with nearly every minor version. Every call
must come from the thread that made the batch. Knows no adapters: whoever steps it has set them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from strop.proxy.embedded.jobs import Finish
from strop.proxy.embedded.sampling import Processor, Sampler

KVCache = list[Any]  # one cache object per block, as mlx-lm's models make them

__all__ = ["Batch", "Drawn", "KVCache", "can_trim", "materialise", "num_bytes", "trim"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that a row drew; `logprobs` is after processors. The KV cache comes at the end."""

    uid: int
    token: int
    logprobs: mx.array  # of shape (vocabulary,)
    finish: Finish | None
    cache: KVCache | None
    tokens: list[int] | None


class Batch:
    """The running and waiting rows of one version.

    Args:
        model: gives float32 logits of shape (rows, positions, vocabulary).
        max_rows: how many rows decode at once; further ones wait their turn.
        prefill_chunk: prompt tokens per row and step.
    """

    def __init__(self, model: Any, *, max_rows: int, prefill_chunk: int) -> None:
        self._model = model
        self._generator = BatchGenerator(
            model,
            completion_batch_size=max_rows,
            prefill_batch_size=min(8, max_rows),
            prefill_step_size=prefill_chunk,
        )

    def insert(
        self,
        prompt: Sequence[int],
        *,
        cache: KVCache | None,
        num_cached: int,
        max_tokens: int,
        stop_ids: frozenset[int],
        sampler: Sampler,
        processors: list[Processor],
    ) -> int:
        """Add a row and return its uid.

        Args:
            prompt: the whole prompt; `cache` holds its first `num_cached` ids, fewer than all.
            cache: taken over by the batch.
            num_cached: how many ids the cache holds.
            max_tokens: the row ends after as many.
            stop_ids: the row ends with any of these.
            sampler: draws from logprobs.
            processors: change logits; called once per step, one step ahead of delivery.
        """
        (uid,) = self._generator.insert(
            [list(prompt[num_cached:])],
            max_tokens=[max_tokens],
            caches=[cache],
            all_tokens=[list(prompt[:num_cached])],
            samplers=[sampler],
            logits_processors=[processors],
            stop_sequences=[StopSequences([(token,) for token in stop_ids])],
        )
        return int(uid)

    def step(self) -> list[Drawn]:
        """Decode one token for every running row, and one chunk of the prompts that wait."""
        _, responses = self._generator.next()
        return [
            Drawn(r.uid, r.token, r.logprobs, r.finish_reason, r.prompt_cache, r.all_tokens)
            for r in responses
        ]

    def remove(self, uid: int) -> tuple[KVCache, list[int]] | None:
        """End a row at any stage; return its KV cache and the ids in it, if it had any."""
        left = self._generator.remove([uid], return_prompt_caches=True).get(uid)
        return (left[0], left[1]) if left and left[0] and left[1] else None

    def close(self) -> None:
        """Give back what the batch holds of the device; it isn't used after that."""
        self._generator.close()

    def new_cache(self) -> KVCache:
        """Return an empty KV cache of the model."""
        cache: KVCache = make_prompt_cache(self._model)
        return cache

    def forward(self, ids: Sequence[int], cache: KVCache) -> mx.array:
        """Run `ids` outside the batch; return lazy logits of shape (positions, vocabulary)."""
        with mx.stream(self._generator.stream):
            logits_1TV: mx.array = self._model(mx.array([list(ids)]), cache=cache)
            return logits_1TV[0]

    def stream(self) -> Any:
        """Return the stream that the batch computes on, for operations on what it returns."""
        return mx.stream(self._generator.stream)


def can_trim(cache: KVCache) -> bool:
    """Whether ids can be taken off the end of this cache."""
    return bool(can_trim_prompt_cache(cache))


def trim(cache: KVCache, count: int) -> None:
    """Take the last `count` ids off a cache that can be trimmed."""
    trim_prompt_cache(cache, count)


def materialise(cache: KVCache) -> None:
    """Compute what a cache holds, so that it no longer keeps the batch alive it was cut from."""
    mx.eval([part.state for part in cache])


def num_bytes(cache: KVCache) -> int:
    """Return the memory that a cache takes."""
    return sum(part.nbytes for part in cache)
