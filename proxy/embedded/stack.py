"""Rows that decode in one call of the model: the engine's one file on BatchGenerator.

Written against mlx-lm 0.32.2, whose batch API changes with nearly every minor version. Knows no
other stack: which rows go together is for `batch`.
"""

from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generation_stream

MOST_PROMPTS = 8  # that run at once, beside the rows that decode

# Tokens of padding that are always fine: at 150 kB each they are 2.5 GB, and as long to read as the
# weights of a small model, which a stack of its own would read once more.
_FREE_PADDING = 16_384

_GPU_FAILED = "Command buffer execution failed"  # what Metal says, in front of the reason


class Stack:
    """Rows whose KV caches are one array, as long as the longest of them.

    Args:
        model: gives float32 logits of shape (rows, positions, vocabulary).
        max_rows: how many rows decode at once, if no other stack has any.
        prefill_chunk: prompt tokens per step.
        max_padding: tokens of padding that there is memory for.
    """

    def __init__(
        self, model: Any, *, max_rows: int, prefill_chunk: int, max_padding: float
    ) -> None:
        self._generator = BatchGenerator(
            model,
            completion_batch_size=max_rows,
            prefill_batch_size=min(MOST_PROMPTS, max_rows),
            prefill_step_size=prefill_chunk,
        )
        self._max_rows = max_rows
        self._max_padding = max_padding
        self._lengths: dict[int, int] = {}  # of prompt and answer so far
        self._ends: dict[int, int] = {}  # the most that they may be
        self._decoding: set[int] = set()
        self.num_prompts = 0  # that ran in the last step, and are not done

    @property
    def is_empty(self) -> bool:
        """Whether it has no rows."""
        return not self._lengths

    @property
    def num_decoding(self) -> int:
        """How many rows have drawn a token."""
        return len(self._decoding)

    @property
    def num_waiting(self) -> int:
        """How many rows have drawn nothing yet."""
        return len(self._lengths) - len(self._decoding)

    @property
    def stream(self) -> Any:
        """What it computes on."""
        return self._generator.stream

    def cost_of(self, length: int) -> tuple[bool, int]:
        """Return whether a row of this length would be alone, and how much padding it would add."""
        lengths = [*self._lengths.values()]
        return self.is_empty, self._padding([*lengths, length]) - self._padding(lengths)

    def takes(self, length: int) -> bool:
        """Return whether a row of this length fits: less is padding than not, or little is."""
        lengths = [*self._lengths.values(), length]
        # Of those that wait, as many are padded as decode at once.
        share = min(1.0, self._max_rows / len(lengths))
        allowed = max(share * sum(lengths), _FREE_PADDING)
        return share * self._padding(lengths) <= min(allowed, self._max_padding)

    def lengths(self, ahead: int) -> list[int]:
        """Return how long each row is when it has drawn so many tokens more, or has ended."""
        return [min(length + ahead, self._ends[uid]) for uid, length in self._lengths.items()]

    def insert(self, length: int, end: int, *args: Any, **options: Any) -> int:
        """Add a row whose whole prompt has this length; the rest is BatchGenerator's.

        `end` is the most that it may be long with its answer.
        """
        (uid,) = self._generator.insert(*args, **options)
        self._lengths[uid] = length
        self._ends[uid] = end
        return int(uid)

    def step(self, max_rows: int, chunk: int) -> list[Any]:
        """Return BatchGenerator's responses to one token of each row, and to a chunk of prompts.

        Args:
            max_rows: how many of its rows may decode at once.
            chunk: tokens of each prompt.
        """
        if self.is_empty:
            return []
        self._generator.completion_batch_size = max_rows
        self._generator.prefill_step_size = chunk
        prompts, responses = self._generator.next()
        if prompts:  # Else they wait for a place.
            self.num_prompts = sum(not prompt.end_of_prompt for prompt in prompts)
        for response in responses:
            self._lengths[response.uid] += 1
            self._decoding.add(response.uid)
            if response.finish_reason:
                self._forget(response.uid)
        self._part([each.prompt_cache for each in responses if each.prompt_cache])
        return list(responses)

    def remove(self, uid: int) -> Any:
        """End a row at any stage; return its KV cache and the ids in it, None if there is none."""
        self._forget(uid)
        left = self._generator.remove([uid], return_prompt_caches=True).get(uid)
        if left and left[1]:
            self._part([left[0]])
        return left

    def drop(self, uid: int) -> None:
        """End a row at any stage, and keep nothing of it."""
        self._forget(uid)
        self._generator.remove([uid])

    def close(self) -> None:
        """Give back what it holds of the device; it isn't used after that."""
        self._generator.close()

    def _part(self, caches: list[list[Any]]) -> None:
        """Compute the KV caches of rows that left, and what is left, one layer after another.

        They were one array in each layer, and would all be held twice until both are computed.
        """
        left = self._generator._generation_batch.prompt_cache
        for at in range(len(caches[0]) if caches else 0):
            mx.eval([cache[at].state for cache in caches], [left[at].state] if left else [])

    def _forget(self, uid: int) -> None:
        self._lengths.pop(uid, None)
        self._ends.pop(uid, None)
        self._decoding.discard(uid)
        self.num_prompts = min(self.num_prompts, self.num_waiting)

    @staticmethod
    def _padding(lengths: list[int]) -> int:
        return max(lengths, default=0) * len(lengths) - sum(lengths)


def has_gpu_failed(error: Exception) -> bool:
    """Return whether the GPU failed, at what raised `error` or at anything begun since.

    Metal computes nothing then, and says so late: to who uses the stream next, whoever's work it
    was. So this waits for all that was begun in this thread; what comes after it can be trusted.
    """
    has_failed = _GPU_FAILED in str(error)
    for stream in (mx.default_stream(mx.default_device()), generation_stream):
        try:
            mx.synchronize(stream)
        except RuntimeError:
            has_failed = True
    return has_failed
