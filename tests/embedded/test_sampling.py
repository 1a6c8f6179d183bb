"""Samplers and logits processors of the embedded engine, on distributions small enough to check."""

import math
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx

from strop.proxy.embedded.jobs import Sampling
from strop.proxy.embedded.sampling import Keys, Samplers, Tap, draw, greedy, processors

PROBABILITIES = (0.5, 0.25, 0.15, 0.07, 0.03)
NUM_DRAWS = 4000


def frequencies(**parameters: Any) -> list[float]:
    """Return how often each token is drawn from `PROBABILITIES`."""
    rows = mx.log(mx.array([PROBABILITIES] * NUM_DRAWS))
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    tokens: Any = draw(rows, keys=Keys(0), **{**neutral, **parameters}).tolist()
    counts = Counter(tokens)
    return [counts[token] / NUM_DRAWS for token in range(len(PROBABILITIES))]


def normalised(values: list[float]) -> list[float]:
    """Return the values divided by their sum."""
    return [value / sum(values) for value in values]


@pytest.mark.parametrize("top_k", [0, 3])
def test_the_best_token_stays_however_little_is_kept(top_k: int) -> None:
    """Wherever it stands; in float32 no sum of probabilities is over 1 - 1e-9."""
    rows = mx.log(mx.array([PROBABILITIES[::-1]] * 9))

    drawn = draw(rows, keys=Keys(0), temperature=1.0, top_p=1e-9, top_k=top_k, min_p=0.0)

    assert [4] * 9 == drawn.tolist()


@pytest.mark.parametrize(
    ("parameters", "weights"),
    [
        ({}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        ({"temperature": 0.5}, [p**2 for p in PROBABILITIES]),
        ({"top_k": 2}, [0.5, 0.25, 0, 0, 0]),
        ({"top_k": 99}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        # Kept until the mass reaches 0.8: 0.5, 0.75, 0.9.
        ({"top_p": 0.8}, [0.5, 0.25, 0.15, 0, 0]),
        ({"top_p": 1e-9}, [1, 0, 0, 0, 0]),
        # At least a fifth of the best: 0.1.
        ({"min_p": 0.2}, [0.5, 0.25, 0.15, 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0, 0]),
        # Temperature first: the squares normalised are 0.73, 0.18, 0.07, ...; 0.73 + 0.18 > 0.9.
        ({"temperature": 0.5, "top_p": 0.9}, [0.25, 0.0625, 0, 0, 0]),
        # The cut to two comes first: of 0.67 and 0.33 the first alone has the mass.
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_vllm_draws_them(
    parameters: dict[str, Any], weights: list[float]
) -> None:
    """Temperature, then min_p, top_k and top_p; what is cut off is never drawn."""
    drawn = frequencies(**parameters)

    for expected, frequency in zip(normalised(weights), drawn, strict=True):
        if expected == 0:
            assert 0 == frequency
        else:
            # Five standard deviations of the mean of so many draws.
            deviation = math.sqrt(expected * (1 - expected) / NUM_DRAWS)
            assert abs(expected - frequency) <= 5 * deviation


def test_equal_unseeded_requests_share_a_sampler() -> None:
    """Rows that hold one sampler are drawn in one call; seeded ones have their own."""
    samplers = Samplers(0)
    warm, seeded = Sampling(temperature=0.7, top_p=0.9), Sampling(temperature=0.7, seed=1)

    assert samplers.sampler(warm, 0) is samplers.sampler(Sampling(temperature=0.7, top_p=0.9), 1)
    assert samplers.sampler(warm, 0) is not samplers.sampler(Sampling(temperature=0.8), 0)
    assert samplers.sampler(seeded, 0) is not samplers.sampler(seeded, 0)
    assert greedy is samplers.sampler(Sampling(temperature=0), 0)
    assert greedy is samplers.sampler(Sampling(temperature=0, seed=1), 0)


@pytest.mark.parametrize("seed", [0, 1, -1, (1 << 63) - 1, -(1 << 63)])
def test_a_seed_gives_the_same_draws_whatever_else_is_drawn(seed: int) -> None:
    """A seeded sampler depends on nothing but its seed and its choice."""
    row = mx.log(mx.array([[1 / 50] * 50]))

    def draws(choice: int, *, disturb: bool) -> list[int]:
        sampler = Samplers(99).sampler(Sampling(seed=seed), choice)
        other = Samplers(5).sampler(Sampling(), 0)
        drawn = []
        for _ in range(12):
            if disturb:
                other(row)
            drawn.append(sampler(row))
        tokens: Any = mx.concatenate(drawn).tolist()
        return list(tokens)

    assert draws(0, disturb=False) == draws(0, disturb=True)
    assert draws(0, disturb=False) != draws(1, disturb=False)


def processed(sampling: Sampling, prompt: list[int], generated: list[int]) -> list[float]:
    """Return the logits 2, -2, 0.5, 0 after all processors."""
    logits = mx.array([[2.0, -2.0, 0.5, 0.0]])
    chain = processors(sampling, prompt_length=len(prompt), stop_ids=frozenset({3}), vocab_size=4)
    for process in chain:
        logits = process(mx.array(prompt + generated), logits)
    values: Any = logits[0].tolist()
    return list(values)


@pytest.mark.parametrize(
    ("sampling", "generated", "expected"),
    [
        (Sampling(), [0, 0], [2, -2, 0.5, 0]),
        # Presence and frequency count what was generated, not the prompt's 0 and 1.
        (Sampling(presence_penalty=0.5), [], [2, -2, 0.5, 0]),
        (Sampling(presence_penalty=0.5), [2, 2], [2, -2, 0, 0]),
        (Sampling(frequency_penalty=0.5), [2, 2], [2, -2, -0.5, 0]),
        (Sampling(presence_penalty=-1, frequency_penalty=0.25), [2, 2, 3], [2, -2, 1, 0.75]),
        # Repetition counts the prompt too: positive logits are divided, negative multiplied.
        (Sampling(repetition_penalty=2), [2], [1, -4, 0.25, 0]),
        (Sampling(logit_bias={1: 5, 3: -1}), [], [2, 3, 0.5, -1]),
        # The bias comes before the penalty.
        (Sampling(logit_bias={1: 5}, repetition_penalty=2), [], [1, 1.5, 0.5, 0]),
        (Sampling(min_tokens=2), [0], [2, -2, 0.5, -math.inf]),
        (Sampling(min_tokens=2), [0, 0], [2, -2, 0.5, 0]),
    ],
)
def test_processors_change_logits_as_vllm_does(
    sampling: Sampling, generated: list[int], expected: list[float]
) -> None:
    """Penalties, bias and min_tokens by their definitions, on the prompt 0, 1."""
    assert expected == pytest.approx(processed(sampling, [0, 1], generated))


def test_neutral_parameters_need_no_processor() -> None:
    """A plain request is not slowed down by processors."""
    chain = processors(Sampling(), prompt_length=1, stop_ids=frozenset({3}), vocab_size=4)

    assert [] == chain


def test_the_tap_keeps_raw_logprobs_in_order() -> None:
    """Each kept row is the log-softmax of the logits as they came, and leaves once."""
    tap = Tap()
    first, second = mx.array([[0.0, math.log(3)]]), mx.array([[0.0, 0.0]])

    assert first is tap(mx.array([0]), first)
    tap(mx.array([0]), second)

    assert [math.log(0.25), math.log(0.75)] == pytest.approx(tap.take().tolist())
    assert [math.log(0.5)] * 2 == pytest.approx(tap.take().tolist())
