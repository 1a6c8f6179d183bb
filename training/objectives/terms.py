"""The terms that losses are made of, over the kept tokens of one unit, in float64.

Knows no objective by name. Shapes: S sampled tokens of one answer, K kept tokens of a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from strop.training.sequences import Doubles, Floats, Loss, Mask, Unit

MAX_LOG_RATIO: Final = 20.0


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept tokens of a unit's answers, one after the other: logprobs (K,).

    `masks` says where they stand: for each answer (S,), True for a kept token.
    """

    policy: Doubles
    base: Doubles
    sampler: Doubles
    masks: tuple[Mask, ...]

    @classmethod
    def of(
        cls, unit: Unit, logprobs: Sequence[Floats], masks: Sequence[Mask] | None = None
    ) -> "Kept":
        """Return those that both the unit's own masks and `masks` keep."""
        kept = [answer.keep for answer in unit.answers]
        if masks is not None:
            kept = [own & other for own, other in zip(kept, masks, strict=True)]
        return cls(
            _joined(logprobs, kept),
            _joined([answer.base for answer in unit.answers], kept),
            _joined([answer.sampler for answer in unit.answers], kept),
            tuple(kept),
        )

    def __len__(self) -> int:
        """Return K."""
        return len(self.policy)

    def loss(self, unit: Unit, value: float, gradient_K: Doubles, **metrics: float) -> Loss:
        """Return a loss with its gradient put back where the kept tokens stand.

        To `metrics` come the share of tokens that is kept and, for a rated answer, its mean
        logprob. Without a kept token there is no loss, and no other metric.
        """
        kept = len(self) / max(1, sum(len(mask) for mask in self.masks))
        if not len(self):
            empty = tuple(np.zeros(len(mask), np.float32) for mask in self.masks)
            return Loss(0.0, empty, {"kept": kept})
        if unit.kind != "pair" and unit.rating:
            side = "liked" if unit.rating > 0 else "disliked"
            metrics[f"logprob_{side}"] = float(self.policy.mean())
        return Loss(value, self._spread(gradient_K), {"kept": kept, **metrics})

    def _spread(self, gradient_K: Doubles) -> tuple[Floats, ...]:
        spread, start = [], 0
        for mask in self.masks:
            end = start + int(mask.sum())
            gradient_S = np.zeros(len(mask), np.float32)
            gradient_S[mask] = gradient_K[start:end]
            spread.append(gradient_S)
            start = end
        return tuple(spread)


def anchor(policy: Doubles, base: Doubles) -> tuple[Doubles, Doubles]:
    """Return the k3 estimate of KL(policy || base) at each token, and its derivative by `policy`.

        k3 = exp(d) - d - 1,   d = base - policy   ("Approximating KL divergence", Schulman, 2020)

    From d = 20 on it goes along its tangent: nothing overflows, and the pull back doesn't vanish
    as it would with a clamped d.
    """
    d = base - policy
    clamped = np.minimum(d, MAX_LOG_RATIO)
    slope = np.expm1(clamped)
    return slope - clamped + (d - clamped) * slope, -slope


def policy_gradient(unit: Unit, kept: Kept, weight: float, beta: float) -> Loss:
    """Return -weight x A x mean_K(log pi) + beta x mean_K(k3); `weight` is a constant (detached).

    Its gradient at each kept token is (-weight x A + beta x k3') / K.
    """
    if not len(kept):
        return kept.loss(unit, 0.0, np.zeros(0))
    pull, slope = anchor(kept.policy, kept.base)
    push = -weight * unit.advantage
    value = push * kept.policy.mean() + beta * pull.mean()
    gradient = (push + beta * slope) / len(kept)
    metrics = {"weight": weight} if unit.advantage < 0 else {}
    return kept.loss(unit, float(value), gradient, kl_base=float(pull.mean()), **metrics)


def _joined(arrays: Sequence[Floats], masks: Sequence[Mask]) -> Doubles:
    return np.concatenate(
        [array[mask] for array, mask in zip(arrays, masks, strict=True)], dtype=np.float64
    )
