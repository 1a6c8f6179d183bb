"""TOPR: tapered off-policy REINFORCE, with a tempered sequence weight and an anchor at the base.

    L_i = -w_i A_i mean_t(log pi) + beta mean_t(k3)
    w_i = 1                                                     if A_i >= 0
          min(1, exp(min(T_i, 32) mean_t(log pi - log pi_v)))   else; detached

`t` runs over the kept tokens of all answers of the turn, T_i of them; pi_v is the version that
sampled them. A step's loss is the mean over its units; a unit with no kept token gives 0.

An answer that was liked is pulled up however unlikely it has become; one that was disliked is
pushed down only as far as the policy would still say it, so the push ends by itself. Up to 32
tokens w is the paper's sequence ratio, cut at 1. Beyond, it is tempered: on 1,000 tokens a bias of
0.02 nats each, as from a 4-bit engine, would make it e^-20 and no long answer could be disliked.

Source: arXiv 2503.14286, in its canonical form: positives untouched, negatives with their ratio cut
to [0, 1]. The tempering and the anchor are ours.
"""

from typing import Final

import numpy as np

from strop.training.objectives.base import Settings, UnitByUnit
from strop.training.objectives.terms import Kept, policy_gradient
from strop.training.sequences import Floats, Loss, Unit

MAX_LENGTH: Final = 32


class Topr(UnitByUnit):
    """See the module."""

    name = "topr"

    def __init__(self, settings: Settings) -> None:
        self._beta = settings.beta

    def __call__(self, unit: Unit, logprobs: tuple[Floats, ...]) -> Loss:
        """Return one unit's loss."""
        kept = Kept.of(unit, logprobs)
        return policy_gradient(unit, kept, weight(unit.advantage, kept), self._beta)


def weight(advantage: float, kept: Kept) -> float:
    """Return w_i, in [0, 1]."""
    if advantage >= 0 or not len(kept):
        return 1.0
    mean = float((kept.policy - kept.sampler).mean())
    return float(np.exp(min(0.0, min(len(kept), MAX_LENGTH) * mean)))
