"""Continuous batching of the requests of one version, and what is asked of its KV caches.

Written against mlx-lm 0.32.2. Every call must come from the thread that made the batch. Knows no
adapters: whoever steps it has set them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import StopSequences
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from strop.proxy.embedded.jobs import Finish
from strop.proxy.embedded.sampling import Processor, Sampler
from strop.proxy.embedded.stack import MOST_PROMPTS, Stack

_UID_BITS = 40  # of a uid that are the stack's own; those above are the stack's number

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

    mlx-lm keeps the KV cache of rows that decode together at the length of the longest. So rows are
    put into several stacks where one would be mostly padding, and the stacks decode in turn.

    Args:
        model: gives float32 logits of shape (rows, positions, vocabulary).
        max_rows: how many rows decode at once; further ones wait their turn.
        prefill_chunk: prompt tokens per step, of all prompts together.
        max_padding: tokens of padding that each stack may have.
    """

    def __init__(
        self, model: Any, *, max_rows: int, prefill_chunk: int, max_padding: float = math.inf
    ) -> None:
        self._model = model
        self._max_rows = max_rows
        self._prefill_chunk = prefill_chunk
        self._max_padding = max_padding
        self._stacks = {0: self._new_stack()}

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
        number = self._stack_for(len(prompt))
        if number not in self._stacks:
            self._stacks[number] = self._new_stack()
        uid = self._stacks[number].insert(
            len(prompt),
            len(prompt) + max_tokens,
            [list(prompt[num_cached:])],
            max_tokens=[max_tokens],
            caches=[cache],
            all_tokens=[list(prompt[:num_cached])],
            samplers=[sampler],
            logits_processors=[processors],
            stop_sequences=[StopSequences([(token,) for token in stop_ids])],
        )
        return number << _UID_BITS | uid

    def step(self) -> list[Drawn]:
        """Decode one token for every running row, and one chunk of the prompts that wait."""
        drawn: list[Drawn] = []
        chunk = self._chunk_of_each_prompt()
        for number, stack in [*self._stacks.items()]:
            num_free = self._max_rows - self._num_decoding() + stack.num_decoding
            drawn += [
                Drawn(
                    number << _UID_BITS | r.uid,
                    r.token,
                    r.logprobs,
                    r.finish_reason,
                    r.prompt_cache,
                    r.all_tokens,
                )
                for r in stack.step(num_free, chunk)
            ]
        # Places that are left go to the first, so that each is the first in turn.
        first = next(iter(self._stacks))
        self._stacks[first] = self._stacks.pop(first)
        self._drop_empty()
        return drawn

    def remove(self, uid: int) -> tuple[KVCache, list[int]] | None:
        """End a row at any stage; return its KV cache and the ids in it, if it had any."""
        stack = self._stacks.get(uid >> _UID_BITS)
        left = stack.remove(uid & (1 << _UID_BITS) - 1) if stack else None
        self._drop_empty()
        return (left[0], left[1]) if left and left[0] and left[1] else None

    def drop(self, uid: int) -> None:
        """End a row at any stage, and keep nothing of it."""
        if stack := self._stacks.get(uid >> _UID_BITS):
            stack.drop(uid & (1 << _UID_BITS) - 1)
        self._drop_empty()

    def extents(self, ahead: int, joining: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return how many rows each stack has, and how long its KV cache is for each of them.

        Args:
            ahead: tokens that each row draws until then.
            joining: rows that are added, all as long: their length, and the most that it may be.
        """
        lengths = {number: stack.lengths(ahead) for number, stack in self._stacks.items()}
        if joining:
            place = lengths.setdefault(self._stack_for(joining[0][0]), [])
            place += [min(length + ahead, end) for length, end in joining]
        return [(len(each), max(each)) for each in lengths.values() if each]

    def close(self) -> None:
        """Give back what the batch holds of the device; it isn't used after that."""
        # The first last: it gives back what there was before it.
        for number in sorted(self._stacks, reverse=True):
            self._stacks[number].close()

    def new_cache(self) -> KVCache:
        """Return an empty KV cache of the model."""
        cache: KVCache = make_prompt_cache(self._model)
        return cache

    def forward(self, ids: Sequence[int], cache: KVCache) -> mx.array:
        """Run `ids` outside the batch; return lazy logits of shape (positions, vocabulary)."""
        with self.stream():
            logits_1TV: mx.array = self._model(mx.array([list(ids)]), cache=cache)
            return logits_1TV[0]

    def stream(self) -> Any:
        """Return the stream that the batch computes on, for operations on what it returns."""
        return mx.stream(next(iter(self._stacks.values())).stream)

    def _new_stack(self) -> Stack:
        return Stack(
            self._model,
            max_rows=self._max_rows,
            prefill_chunk=self._prefill_chunk,
            max_padding=self._max_padding,
        )

    def _stack_for(self, length: int) -> int:
        """Return the number of the stack where a row of this length needs the least padding.

        Where it fits in none, that is the number of a new one.
        """
        fitting = [number for number, stack in self._stacks.items() if stack.takes(length)]
        if fitting:
            return min(fitting, key=lambda number: self._stacks[number].cost_of(length))
        return max(self._stacks) + 1

    def _num_decoding(self) -> int:
        return sum(stack.num_decoding for stack in self._stacks.values())

    def _chunk_of_each_prompt(self) -> int:
        # Shared out, or many prompts would hold up the rows that decode for longer than one does.
        stacks = self._stacks.values()
        num_free = max(1, self._max_rows - self._num_decoding())
        num_waiting = sum(min(stack.num_waiting, MOST_PROMPTS) for stack in stacks)
        num_running = sum(stack.num_prompts for stack in stacks)
        return max(1, self._prefill_chunk // max(num_running, min(num_waiting, num_free), 1))

    def _drop_empty(self) -> None:
        for number, stack in [*self._stacks.items()]:
            if stack.is_empty and number:
                stack.close()
                del self._stacks[number]


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
