"""ReinforceClaw's objective as its documentation gives it: a baseline for this benchmark only.

    A_i     = r_i - ema,   ema <- 0.99 ema + 0.01 r_i, rating by rating, from 0
    ratio_t = pi / pi_ref, clipped to [0.5, 2]
    actor   = -mean_t min(ratio A, clipped A)
    rho     = exp(mean_t(log pi - log pi_ref))
    scale   = min(1, rho / 0.996, 1.001 / rho)                          not detached
    L_i     = actor x scale + 0.001 mean_t k3,   k3 = exp(d) - d - 1,   d = log pi_ref - log pi

pi_ref is the base. Only the loss is theirs here: steps, LoRA and optimizer are those of the other
arms, and all ratings train.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from strop.proxy.store.run_records import Prior
from strop.training.examples import Example
from strop.training.objectives.base import R
from strop.training.objectives.terms import Kept, anchor
from strop.training.sequences import Floats, Loss, Unit

CLIP: Final = (0.5, 2.0)
BAND: Final = (0.996, 1.001)
DECAY: Final = 0.99


class MovingBaseline:
    """Ratings less a moving mean of those before them, over all runs of one arm."""

    def __init__(self) -> None:
        self._mean = 0.0

    def __call__(self, examples: Sequence[Example], prior: Prior) -> list[float]:
        """Return each example's advantage; `prior` is not used."""
        del prior
        found = []
        for one in examples:
            found.append(one.rating - self._mean)
            self._mean += (1 - DECAY) * (one.rating - self._mean)
        return found


class ReinforceClaw:
    """See the module."""

    name = "reinforceclaw"
    needs_step = False

    def __init__(self, beta: float = 0.001) -> None:
        self._beta = beta

    def select(self, rated: Sequence[R]) -> list[R]:
        """Return the ratings."""
        return [one for one in rated if one.kind == "rating"]

    def prepare(self, units: Sequence[Unit], logprobs: Sequence[tuple[Floats, ...]]) -> None:
        """Need nothing of the whole step."""

    def __call__(self, unit: Unit, logprobs: tuple[Floats, ...]) -> Loss:
        """Return one unit's loss."""
        kept = Kept.of(unit, logprobs)
        num = len(kept)
        if not num:
            return kept.loss(unit, 0.0, np.zeros(0))
        log_ratio = kept.policy - kept.base
        ratio = np.exp(log_ratio)
        plain = ratio * unit.advantage
        clipped = np.clip(ratio, *CLIP) * unit.advantage
        actor = -float(np.minimum(plain, clipped).mean())
        # Where the clipped one is the smaller, it is a constant.
        actor_slope = -np.where(plain <= clipped, plain, 0.0) / num
        rho = float(np.exp(log_ratio.mean()))
        low, high = BAND
        scale = min(1.0, rho / low, high / rho)
        scale_slope = scale / num * (1 if rho < low else -1 if rho > high else 0)
        pull, pull_slope = anchor(kept.policy, kept.base)
        value = actor * scale + self._beta * float(pull.mean())
        gradient = actor_slope * scale + actor * scale_slope + self._beta * pull_slope / num
        return kept.loss(unit, value, gradient, scale=scale)
