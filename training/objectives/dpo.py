"""DPO: of two answers to one prompt, the preferred one gains on the other.

    r(y) = sum_t(log pi - log pi_base)                     over the kept tokens of the answer
    L_i  = -log sigmoid(dpo_beta (r(preferred) - r(other)))

Pairs are corrections over the answers they correct, and of two answers to the same prompt the liked
one over the disliked one; ratings alone don't train. A step's loss is the mean over its pairs; one
with an answer of which no token is kept compares nothing, and gives 0.

Source: arXiv 2305.18290, equation 7.
"""

from collections.abc import Sequence

import numpy as np

from strop.training.objectives.base import R, Settings, UnitByUnit
from strop.training.objectives.terms import Kept
from strop.training.sequences import Floats, Loss, Unit


class Dpo(UnitByUnit):
    """See the module."""

    name = "dpo"

    def __init__(self, settings: Settings) -> None:
        self._beta = settings.dpo_beta

    def select(self, rated: Sequence[R]) -> list[R]:
        """Return the pairs."""
        return [one for one in rated if one.kind == "pair"]

    def __call__(self, unit: Unit, logprobs: tuple[Floats, ...]) -> Loss:
        """Return one pair's loss."""
        kept = Kept.of(unit, logprobs)
        num_preferred, num_other = (int(mask.sum()) for mask in kept.masks)
        signs = np.repeat([1.0, -1.0], [num_preferred, num_other])
        if not num_preferred or not num_other:
            return kept.loss(unit, 0.0, 0 * signs)
        margin = float((signs * (kept.policy - kept.base)).sum())
        value = float(np.logaddexp(0.0, -self._beta * margin))
        slope = self._beta * np.expm1(-value)
        return kept.loss(
            unit, value, slope * signs, dpo_margin=margin, dpo_accuracy=float(margin > 0)
        )
