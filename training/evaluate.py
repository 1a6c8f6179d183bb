"""Versions side by side: what `strop eval` shows of each, on the same prompts and held-out ratings.

Asks a policy and a rater. Knows no store, and trains nothing.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np

from strop.adapters.rates import Interval, Rate
from strop.training.backends.base import BASE, Policy, Weights
from strop.training.figures import MAX_SAMPLE_TOKENS, Fresh, sample
from strop.training.micro_batch import MicroBatch
from strop.training.raters import Messages, Rater
from strop.training.sequences import Tokens, token_mean
from strop.training.statistics import Group, distinct, worth
from strop.training.training_set import HeldOutTurn

NUM_SAMPLES: Final = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: its messages, for the rater, and their ids, for the model."""

    messages: Messages
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The figures of one version; None where nothing was there to measure it on.

    Attributes:
        version: its id, or `base`.
        good: how many of the fresh samples the rater called good; its interval is over prompts.
        live: how many of the ratings that people gave to this version's own answers were good.
        num_unrated: samples that the rater gave no rating.
        liked, disliked: mean logprob of held-out answers, nats a token.
        margin: liked less disliked.
        perplexity_liked: of held-out liked answers under this version, per token.
        perplexity_base: of its fresh samples under the base, per token.
        distinct_1, distinct_2: different n-grams over all of its fresh samples.
        length: tokens a sample, on average.
        entropy: of its next-token distribution along its samples, nats.
        kl_base: KL to the base along its own samples, nats a token.
        num_samples: how many fresh samples.
        num_held_out: how many held-out turns.
    """

    version: str
    good: Rate | None
    live: Rate | None
    num_unrated: int
    liked: float | None
    disliked: float | None
    margin: float | None
    perplexity_liked: float | None
    perplexity_base: float | None
    distinct_1: float | None
    distinct_2: float | None
    length: float | None
    entropy: float | None
    kl_base: float | None
    num_samples: int
    num_held_out: int

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able object; a rate has its value and its interval."""
        plain: dict[str, object] = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return plain | {"good": _rate(self.good), "live": _rate(self.live)}


@dataclass(frozen=True, slots=True)
class Material:
    """What versions are measured on.

    Attributes:
        prompts: for fresh samples; with none, nothing is sampled.
        held_out: rated turns that no version learned from.
        live: for each version, whether each rating of its own answers was good.
    """

    prompts: tuple[Prompt, ...]
    held_out: tuple[HeldOutTurn, ...] = ()
    live: Mapping[str, Rate] | None = None

    def within(self, longest: int, max_tokens: int) -> "Material":
        """Return the same without what takes more than `longest` tokens.

        That is a held-out turn with a longer sequence, or a prompt that leaves no room for an
        answer of `max_tokens`.
        """
        return replace(
            self,
            prompts=tuple(one for one in self.prompts if len(one.ids) + max_tokens <= longest),
            held_out=tuple(turn for turn in self.held_out if turn.longest <= longest),
        )


def evaluate(
    policy: Policy,
    versions: Mapping[str, Weights],
    material: Material,
    decode: Callable[[Sequence[int]], str],
    micro_batch: MicroBatch,
    *,
    rater: Rater | None = None,
    num_samples: int = NUM_SAMPLES,
    max_tokens: int = MAX_SAMPLE_TOKENS,
    seed: int = 0,
    on_version: Callable[[str], None] = lambda _: None,
) -> list[Evaluated]:
    """Return the figures of each version, on the same prompts with the same seed.

    Args:
        policy: holds the base; its own LoRA isn't used.
        versions: each version's weights, by its id.
        material: what they are measured on.
        decode: ids of an answer, without what ends it, to text.
        micro_batch: how much fits.
        rater: says whether a fresh sample is good; None leaves that out.
        num_samples: of each prompt.
        max_tokens: of a sample.
        seed: of the samples.
        on_version: told before each version is measured.

    Raises:
        RaterFailed: the rater can't rate.
    """
    found = []
    for version, weights in versions.items():
        on_version(version)
        fresh = None
        if material.prompts:
            fresh = sample(
                policy,
                weights,
                [prompt.ids for prompt in material.prompts],
                micro_batch,
                num_samples=num_samples * len(material.prompts),
                seed=seed,
                max_tokens=max_tokens,
            )
        found.append(
            _figures(version, weights, policy, fresh, material, decode, micro_batch, rater)
        )
    return found


def _figures(
    version: str,
    weights: Weights,
    policy: Policy,
    fresh: Fresh | None,
    material: Material,
    decode: Callable[[Sequence[int]], str],
    micro_batch: MicroBatch,
    rater: Rater | None,
) -> Evaluated:
    liked, disliked = _held_out(policy, weights, material.held_out, micro_batch)
    good, num_unrated, base_nll, kl_base = None, 0, None, None
    ids: list[tuple[int, ...]] = []
    if fresh is not None:
        ids = [answer.ids for answer in fresh.answers]
        base = micro_batch.logprobs(policy, fresh.sequences, BASE)
        own = [answer.logprobs for answer in fresh.answers]
        base_nll = -token_mean(base)
        kl_base = token_mean([mine - its for mine, its in zip(own, base, strict=True)])
        if rater is not None:
            good, num_unrated = _rated(rater, fresh, material.prompts, decode)
    return Evaluated(
        version=version,
        good=good,
        live=(material.live or {}).get(version),
        num_unrated=num_unrated,
        liked=liked,
        disliked=disliked,
        margin=None if liked is None or disliked is None else liked - disliked,
        perplexity_liked=None if liked is None else _perplexity(-liked),
        perplexity_base=None if base_nll is None else _perplexity(base_nll),
        distinct_1=distinct(ids, 1) if ids else None,
        distinct_2=distinct(ids, 2) if ids else None,
        length=sum(map(len, ids)) / len(ids) if ids else None,
        entropy=token_mean([answer.entropies for answer in fresh.answers]) if fresh else None,
        kl_base=kl_base,
        num_samples=len(ids),
        num_held_out=len(material.held_out),
    )


def _rated(
    rater: Rater, fresh: Fresh, prompts: Sequence[Prompt], decode: Callable[[Sequence[int]], str]
) -> tuple[Rate, int]:
    """Return the share of good samples, and how many have no rating.

    Samples of one prompt hang together, and another time it would be other prompts.
    """
    asked = [
        (prompts[i % len(prompts)].messages, decode(answer.ids))
        for i, answer in enumerate(fresh.answers)
    ]
    ratings = rater.rate(asked)
    rated = [
        [one for one in ratings[i :: len(prompts)] if not math.isnan(one)]
        for i in range(len(prompts))
    ]
    groups = [Group(sum(one > 0 for one in of_one), len(of_one)) for of_one in rated if of_one]
    num = sum(group.num for group in groups)
    num_good = sum(rating > 0 for rating in ratings)
    return Rate(num_good, num, worth(groups)), len(ratings) - num


def _held_out(
    policy: Policy, weights: Weights, turns: Sequence[HeldOutTurn], micro_batch: MicroBatch
) -> tuple[float | None, float | None]:
    """Return the mean over turns of their mean logprob, of liked and of disliked ones."""
    flat: list[Tokens] = [tokens for turn in turns for tokens in turn.answers]
    rest = iter(micro_batch.logprobs(policy, flat, weights))
    means = [(turn.rating, token_mean([next(rest) for _ in turn.answers])) for turn in turns]
    liked = [mean for rating, mean in means if rating > 0]
    disliked = [mean for rating, mean in means if rating < 0]
    return (
        float(np.mean(liked)) if liked else None,
        float(np.mean(disliked)) if disliked else None,
    )


def _perplexity(nll: float) -> float:
    # A broken version can be thousands of nats off, where math.exp raises.
    return math.exp(nll) if nll < math.log(sys.float_info.max) else math.inf


def _rate(rate: Rate | None) -> dict[str, object] | None:
    if rate is None:
        return None
    interval: Interval = rate.interval
    value = rate.value if rate.num else None
    return {"value": value, "num_good": rate.num_hits, "num": rate.num, **asdict(interval)}
