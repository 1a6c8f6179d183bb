"""Answers of a model in MLX, drawn token by token: the training's one file on BatchGenerator.

Written against mlx-lm 0.32.2, whose batch API changes with nearly every minor version. Knows no
LoRA: whoever calls has chosen the weights. Letters: B sequences, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator, StopSequences

from strop.adapters.mlx_rows import Float32Logits
from strop.training.backends.base import Sampled
from strop.training.sequences import Floats

Sampler = Callable[[mx.array], mx.array]


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    end_ids: frozenset[int],
    is_batched: bool,
) -> list[Sampled]:
    """Return one answer for each prompt, as `Policy.sample` says, all at once if `is_batched`."""
    if not prompts:
        return []
    drawn: list[list[tuple[int, float, float]]] = [[] for _ in prompts]
    num_rows = len(prompts) if is_batched else 1
    for rows, tokens, logprobs_BV in _decode(
        model, prompts, max_tokens, end_ids, _sampler(temperature, seed), num_rows
    ):
        chosen_B = mx.take_along_axis(logprobs_BV, mx.array(tokens)[:, None], axis=-1)[:, 0]
        # Where a token is impossible, 0 times minus infinity counts as 0.
        finite_BV = mx.maximum(logprobs_BV, mx.finfo(mx.float32).min)
        entropies_B = -mx.sum(mx.exp(logprobs_BV) * finite_BV, axis=-1)
        mx.eval(chosen_B, entropies_B)
        steps = zip(tokens, _floats(chosen_B), _floats(entropies_B), strict=True)
        for row, step in zip(rows, steps, strict=True):
            drawn[row].append(step)
    return [Sampled.of(steps) for steps in drawn]


def greedy(
    model: Any, prompt: Sequence[int], num_tokens: int
) -> tuple[tuple[int, ...], Floats, Floats]:
    """Return a greedy continuation, as `Policy.greedy` says."""
    ids, logprobs, margins = [], [], []
    for _, tokens, logprobs_BV in _decode(model, [prompt], num_tokens, frozenset(), _best, 1):
        second, best = _floats(mx.sort(mx.topk(logprobs_BV[0], 2)))
        ids.append(tokens[0])
        logprobs.append(best)
        margins.append(best - second)
    return tuple(ids), np.array(logprobs, np.float32), np.array(margins, np.float32)


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_ids: frozenset[int],
    sampler: Sampler,
    num_rows: int,
) -> Iterator[tuple[list[int], list[int], mx.array]]:
    """Yield, step by step, the rows that drew a token, the tokens, and logprobs (rows, V).

    At most `num_rows` are decoded at once.
    """
    generator = BatchGenerator(
        Float32Logits(model),
        sampler=sampler,
        completion_batch_size=num_rows,
        prefill_batch_size=num_rows,
        # Its own is of the device that was the default when mlx-lm was imported.
        stream=mx.default_stream(mx.default_device()),
    )
    stops = StopSequences([(token,) for token in end_ids])
    with closing(generator):
        uids = generator.insert(
            [[*map(int, prompt)] for prompt in prompts],
            max_tokens=[max_tokens] * len(prompts),
            stop_sequences=[stops] * len(prompts),
        )
        row_of = {uid: row for row, uid in enumerate(uids)}
        left = len(prompts)
        while left:
            _, responses = generator.next()
            if responses:
                left -= sum(response.finish_reason is not None for response in responses)
                yield (
                    [row_of[response.uid] for response in responses],
                    [int(response.token) for response in responses],
                    mx.stack([response.logprobs for response in responses]),
                )


def _sampler(temperature: float, seed: int) -> Sampler:
    if temperature == 0:
        return _best
    key = mx.random.key(seed)

    def draw(logprobs_BV: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        tokens_B: mx.array = mx.random.categorical(logprobs_BV / temperature, key=now)
        return tokens_B

    return draw


def _best(logprobs_BV: mx.array) -> mx.array:
    tokens_B: mx.array = mx.argmax(logprobs_BV, axis=-1)
    return tokens_B


def _floats(values: mx.array) -> list[float]:
    found: Any = values.tolist()
    return [*found]
