"""The gate's figures: what a candidate says by itself, and what it thinks of held-out answers.

Asks a policy; decides nothing. `gate` does that.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from strop.training.backends.base import (
    BASE,
    TRAINED,
    OutOfMemory,
    Policy,
    Sampled,
    Weights,
)
from strop.training.gate import MIN_SAMPLES, Behaviour, Figures, HeldOut
from strop.training.micro_batch import MicroBatch
from strop.training.sequences import Floats, Tokens, token_mean
from strop.training.training_set import HeldOutTurn, TrainingSet

MAX_SAMPLE_TOKENS: Final = 128
MAX_SAMPLES: Final = 128
# Where answers are short, more of them: a mean over fewer tokens is too uncertain to reject by.
_ENOUGH_TOKENS: Final = 2048
# A token that is sampled keeps its keys and values alone, of every block: mostly less than half of
# what a token keeps for the backward pass.
_SAMPLED_TOKENS: Final = 2


@dataclass(frozen=True, slots=True)
class Fresh:
    """Answers that were just sampled, and the prompts that they answer."""

    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[Sampled, ...]

    @property
    def sequences(self) -> list[Tokens]:
        """The answers as sequences."""
        return [
            Tokens.of(prompt, answer.ids)
            for prompt, answer in zip(self.prompts, self.answers, strict=True)
        ]


def sample(
    policy: Policy,
    weights: Weights,
    prompts: Sequence[tuple[int, ...]],
    micro_batch: MicroBatch,
    *,
    num_samples: int,
    seed: int,
    max_tokens: int = MAX_SAMPLE_TOKENS,
    batch_size: int = MIN_SAMPLES,
    check: Callable[[], None] = lambda: None,
) -> Fresh:
    """Return `num_samples` answers at T = 1, the prompts one after the other and over again.

    Args:
        policy: samples.
        weights: of the version that is asked.
        prompts: ids, at least one prompt.
        micro_batch: how much fits.
        num_samples: how many answers.
        seed: the same seed gives the same answers, as long as as many fit.
        max_tokens: of an answer.
        batch_size: how many are sampled at once, where they fit.
        check: called between batches; may raise.

    Raises:
        OutOfMemory: one prompt alone doesn't fit.
    """
    asked = [prompts[i % len(prompts)] for i in range(num_samples)]
    room = _SAMPLED_TOKENS * micro_batch.max_tokens
    answers: list[Sampled] = []
    while len(answers) < num_samples:
        check()
        start = len(answers)
        batch = _fitting(asked[start : start + batch_size], max_tokens, room)
        try:
            answers += policy.sample(
                batch, max_tokens=max_tokens, temperature=1.0, seed=seed + start, weights=weights
            )
        except OutOfMemory:
            if len(batch) == 1:
                raise
            batch_size = len(batch) // 2
    return Fresh(tuple(asked), tuple(answers))


def _fitting(
    prompts: Sequence[tuple[int, ...]], max_tokens: int, room: int
) -> Sequence[tuple[int, ...]]:
    """Return the first of `prompts`, one at least, whose answers take no more than `room` tokens.

    Padded to the longest, as they are sampled.
    """
    longest = 0
    for num, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if num and (num + 1) * (longest + max_tokens) > room:
            return prompts[:num]
    return prompts


def num_samples_for(first: Fresh) -> int:
    """Return how many samples to draw when the first ones are as long as these: 16 to 128."""
    num_tokens = sum(len(answer.ids) for answer in first.answers)
    wanted = math.ceil(_ENOUGH_TOKENS * len(first.answers) / max(1, num_tokens) / MIN_SAMPLES)
    return min(MAX_SAMPLES, max(1, wanted) * MIN_SAMPLES)


def behaviour(fresh: Fresh, base_logprobs: Sequence[Floats]) -> Behaviour:
    """Return what the samples look like, given the base's logprobs of them."""
    num_tokens = sum(len(answer.ids) for answer in fresh.answers)
    return Behaviour(
        num_samples=len(fresh.answers),
        num_tokens=num_tokens,
        base_nll=-token_mean(base_logprobs),
        length=num_tokens / max(1, len(fresh.answers)),
        entropy=token_mean([answer.entropies for answer in fresh.answers]),
    )


def gate_figures(
    policy: Policy,
    parent: Weights,
    whole: TrainingSet,
    micro_batch: MicroBatch,
    *,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Figures:
    """Return what the gate decides by, for the LoRA that `policy` has trained.

    Args:
        policy: holds the candidate.
        parent: the weights of the version it was trained from.
        whole: held-out turns, and prompts.
        micro_batch: how much fits.
        seed: of the samples.
        check: called between batches; may raise.
    """

    def sampled(weights: Weights, num_samples: int) -> Fresh:
        return sample(
            policy,
            weights,
            whole.prompts,
            micro_batch,
            num_samples=num_samples,
            seed=seed,
            check=check,
        )

    def scored(weights: Weights, sequences: Sequence[Tokens]) -> list[Floats]:
        check()
        return micro_batch.logprobs(policy, sequences, weights, lambda _: check())

    base = sampled(BASE, MIN_SAMPLES)
    num = num_samples_for(base)
    if num > MIN_SAMPLES:
        base = sampled(BASE, num)
    candidate = sampled(TRAINED, num)
    candidate_by_base = scored(BASE, candidate.sequences)
    base_by_base = scored(BASE, base.sequences)
    candidate_by_parent = candidate_by_base
    if parent != BASE:
        candidate_by_parent = scored(parent, candidate.sequences)
    turns = [tokens for turn in whole.held_out for tokens in turn.answers]
    now = scored(TRAINED, turns)
    before = scored(parent, turns)
    return Figures(
        candidate=behaviour(candidate, candidate_by_base),
        base=behaviour(base, base_by_base),
        parent_kl=_kl(candidate, candidate_by_parent),
        held_out=tuple(_held_out(whole.held_out, now, before)),
    )


def _kl(fresh: Fresh, others: Sequence[Floats]) -> float:
    """Return KL(who sampled || the other), nats a token, given the other's logprobs.

    The plain mean of log ratios ("Approximating KL divergence", Schulman, 2020: k1). k3 has less
    noise where both are near, but a single token that became rare, and was sampled all the same,
    can outweigh all others in it.
    """
    return token_mean([answer.logprobs for answer in fresh.answers]) - token_mean(others)


def _held_out(
    turns: Sequence[HeldOutTurn], candidate: Sequence[Floats], parent: Sequence[Floats]
) -> list[HeldOut]:
    found = []
    start = 0
    for turn in turns:
        end = start + len(turn.answers)
        found.append(
            HeldOut(
                turn.root,
                turn.rating,
                token_mean(candidate[start:end]),
                token_mean(parent[start:end]),
            )
        )
        start = end
    return found
