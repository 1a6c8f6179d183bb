"""Samplers and logits processors for BatchGenerator, from validated sampling parameters.

mlx-lm's own apply top-p before the temperature, and penalties to the prompt; these follow vLLM.
Checks no ranges: the protocol does, because an exception in here ends every request of a batch.
"""

import functools
import math
from collections import deque
from collections.abc import Callable

import mlx.core as mx

from strop.proxy.embedded.grammar import Follower
from strop.proxy.embedded.jobs import Sampling

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]

_GREEDY_BELOW = 1e-5  # vLLM's limit
_MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # spreads the seeds of neighbouring choices


class Keys:
    """A chain of random keys of its own, so that a seed gives the same draws in any batch."""

    def __init__(self, seed: int) -> None:
        self._state = mx.random.key(seed & _MASK_64)

    def __call__(self) -> mx.array:
        """Return the next key."""
        self._state, key = mx.random.split(self._state)
        return key


class Samplers:
    """Hands out samplers; unseeded requests with equal parameters share one.

    BatchGenerator samples all rows in one call only where they hold the same object.

    Args:
        seed: of the draws of unseeded requests.
    """

    def __init__(self, seed: int) -> None:
        keys = Keys(seed)
        self._shared = functools.lru_cache(maxsize=256)(
            lambda temperature, top_p, top_k, min_p: functools.partial(
                draw, keys=keys, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p
            )
        )

    def sampler(self, sampling: Sampling, choice: int, num_drawn: int = 0) -> Sampler:
        """Return the sampler of one answer; `choice` tells the answers of one seed apart.

        `num_drawn` tokens of it were drawn before, by another sampler.
        """
        if sampling.temperature < _GREEDY_BELOW:
            return greedy
        parameters = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        if sampling.seed is None:
            return self._shared(*parameters)
        keys = Keys(sampling.seed + choice * _GOLDEN)
        for _ in range(num_drawn):
            keys()
        return functools.partial(
            draw,
            keys=keys,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
        )


def greedy(logprobs_BV: mx.array) -> mx.array:
    """Return the most likely token of each row."""
    return mx.argmax(logprobs_BV, axis=-1)


def draw(
    logprobs_BV: mx.array,
    *,
    keys: Keys,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
) -> mx.array:
    """Return a random token of each row: temperature, then min_p, top_k and top_p, as vLLM."""
    scaled_BV = logprobs_BV / temperature
    vocab_size = scaled_BV.shape[-1]
    if min_p > 0:
        floor_B1 = mx.max(scaled_BV, axis=-1, keepdims=True) + math.log(min_p)
        scaled_BV = mx.where(scaled_BV < floor_B1, -mx.inf, scaled_BV)
    best_BK = scaled_BV
    least_B1: mx.array | None = None
    if 0 < top_k < vocab_size:
        kth = vocab_size - top_k
        best_BK = mx.partition(scaled_BV, kth, axis=-1)[:, kth:]
        least_B1 = best_BK[:, :1]
    if top_p < 1:
        # Of the best alone, where these are chosen: sorting a whole vocabulary takes long.
        ascending_BK = mx.sort(best_BK, axis=-1)
        mass_BK = mx.cumsum(mx.softmax(ascending_BK, axis=-1), axis=-1)
        # The largest always stays, whatever the rounding of the sum.
        last = ascending_BK.shape[-1] - 1
        is_kept_BK = (mass_BK > 1 - top_p) | (mx.arange(last + 1) == last)
        least_B1 = mx.min(mx.where(is_kept_BK, ascending_BK, mx.inf), axis=-1, keepdims=True)
    if least_B1 is not None:
        scaled_BV = mx.where(scaled_BV < least_B1, -mx.inf, scaled_BV)
    return mx.random.categorical(scaled_BV, key=keys())


class Tap:
    """A processor that changes nothing and keeps the raw logprobs that others then change.

    BatchGenerator computes one step ahead, so rows wait here until their token is delivered.
    """

    def __init__(self) -> None:
        self._rows: deque[mx.array] = deque()

    def __call__(self, _tokens: mx.array, logits_1V: mx.array) -> mx.array:
        """Keep the log-softmax of these logits, and return the logits."""
        self._rows.append((logits_1V - mx.logsumexp(logits_1V, axis=-1, keepdims=True))[0])
        return logits_1V

    def take(self) -> mx.array:
        """Return the oldest kept row, of shape (vocabulary,)."""
        return self._rows.popleft()


def processors(
    sampling: Sampling, *, prompt_length: int, stop_ids: frozenset[int], vocab_size: int
) -> list[Processor]:
    """Return the processors that these parameters need, none if all are neutral.

    Each takes the row's prompt and generated ids, and logits of shape (1, vocabulary).
    """
    chain: list[Processor] = []
    if sampling.min_tokens > 0 and stop_ids:
        chain.append(
            functools.partial(
                _forbid_until,
                end=prompt_length + sampling.min_tokens,
                mask_V=_vector(dict.fromkeys(stop_ids, -math.inf), vocab_size),
            )
        )
    if sampling.logit_bias:
        bias_V = _vector(dict(sampling.logit_bias), vocab_size)
        chain.append(lambda _tokens, logits_1V: logits_1V + bias_V)
    if sampling.repetition_penalty != 1:
        chain.append(functools.partial(_repetition, penalty=sampling.repetition_penalty))
    if sampling.presence_penalty or sampling.frequency_penalty:
        chain.append(
            functools.partial(
                _presence_and_frequency,
                start=prompt_length,
                presence=sampling.presence_penalty,
                frequency=sampling.frequency_penalty,
            )
        )
    if sampling.grammar is not None:
        chain.append(_Bound(Follower(sampling.grammar, stop_ids), prompt_length))
    if sampling.forced:
        chain.append(functools.partial(_force, start=prompt_length, forced=sampling.forced))
    return chain


class _Bound:
    """Leaves only the tokens with which one answer goes on in its grammar."""

    def __init__(self, follower: Follower, start: int) -> None:
        self._follower = follower
        self._num_read = start

    def __call__(self, tokens: mx.array, logits_1V: mx.array) -> mx.array:
        # The newest has just been drawn; what follows depends on it, so it is waited for.
        new: list[int] = tokens[self._num_read :].tolist()  # type: ignore[assignment]
        self._num_read += len(new)
        for token in new:
            self._follower.read(token)
        may_come_V = self._follower.allowed()
        if may_come_V is None:
            return logits_1V
        return mx.where(mx.array(may_come_V), logits_1V, -mx.inf)


def _force(
    tokens: mx.array, logits_1V: mx.array, *, start: int, forced: tuple[int, ...]
) -> mx.array:
    position = tokens.shape[0] - start
    if position >= len(forced):
        return logits_1V
    is_forced_V = mx.arange(logits_1V.shape[-1]) == forced[position]
    return mx.where(is_forced_V, logits_1V, -mx.inf)


def _vector(values: dict[int, float], vocab_size: int) -> mx.array:
    return mx.zeros(vocab_size).at[mx.array([*values])].add(mx.array([*values.values()]))


def _forbid_until(tokens: mx.array, logits_1V: mx.array, *, end: int, mask_V: mx.array) -> mx.array:
    return logits_1V + mask_V if tokens.shape[0] < end else logits_1V


def _repetition(tokens: mx.array, logits_1V: mx.array, *, penalty: float) -> mx.array:
    seen_V = mx.zeros(logits_1V.shape[-1]).at[tokens].add(1) > 0
    penalised = mx.where(logits_1V > 0, logits_1V / penalty, logits_1V * penalty)
    return mx.where(seen_V, penalised, logits_1V)


def _presence_and_frequency(
    tokens: mx.array, logits_1V: mx.array, *, start: int, presence: float, frequency: float
) -> mx.array:
    if tokens.shape[0] <= start:
        return logits_1V
    counts_V = mx.zeros(logits_1V.shape[-1]).at[tokens[start:]].add(1)
    return logits_1V - frequency * counts_V - presence * (counts_V > 0)
