"""What a probe asks, what an engine did with it, and what that amounts to. Pure values."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["proven", "indistinguishable", "unproven", "failed"]


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt and its greedy continuation under the candidate, S tokens long.

    Attributes:
        prompt_ids: what the engine is given.
        ids: the candidate's greedy continuation, (S,).
        margins: at each step, the candidate's best logprob less its second best, in nats, (S,).
        candidate: the candidate's logprobs of `ids`, raw log-softmax at T = 1, (S,).
        parent: the parent's logprobs of the same ids; None where the parent is the base.
        base: the base's logprobs of the same ids.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    margins: tuple[float, ...]
    candidate: tuple[float, ...]
    parent: tuple[float, ...] | None
    base: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """The prompts that tell a version from its parent and the base.

    `dtype` is what the trainer computed in: `float32`, `bfloat16` or `float16`.
    """

    items: tuple[Item, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What the engine did with one item, asked with a cold prefix cache and with a warm one.

    Attributes:
        cold, warm: the ids it generated at T = 0 and the logprob of each; empty if not asked.
        scored: its logprobs of the item's own ids, where the engine can score; else None.
        base_scored: the same under the engine's base, which shows a quantised engine's offsets.
    """

    cold: tuple[tuple[int, ...], tuple[float, ...]]
    warm: tuple[tuple[int, ...], tuple[float, ...]]
    scored: tuple[float, ...] | None = None
    base_scored: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the measurement amounts to; `reason` is for people.

    `errors` are mean squared differences in nats² against `candidate`, `parent` and `base`.
    """

    outcome: Outcome
    reason: str
    errors: dict[str, float]
    num_tokens: int
