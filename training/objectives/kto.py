"""KTO: answers are moved until they are clearly better, or worse, than a reference point.

    r_i = sum_t(log pi - log pi_base)         over the kept tokens of all answers of the turn
    z   = max(0, mean of r over the step's rated units)                              detached
    L_i = lambda_i (1 - sigmoid(s_i kto_beta (r_i - z)))     s_i = 1 if liked or a correction, -1

A step's loss is the mean over its units; a unit with no kept token gives 0, and does not enter z.
lambda makes both sides weigh the same over the run, and 1 on average: n / (2 n_liked) and
n / (2 n_disliked); 1 where there is one side only. Ratings of exactly 0 are left out.

z stands for KL(pi || pi_base) on this step's prompts. The paper estimates it with answers to other
prompts, since its data were sampled by others; ours were sampled by the model itself a few steps
ago, so their own mean is nearer.

Source: arXiv 2402.01306; TRL's KTOTrainer for weights that balance by numbers.
"""

from collections.abc import Sequence

import numpy as np

from strop.training.objectives.base import R, Settings
from strop.training.objectives.terms import Kept
from strop.training.sequences import Floats, Loss, Unit


class Kto:
    """See the module."""

    name = "kto"
    needs_step = True

    def __init__(self, settings: Settings) -> None:
        self._beta = settings.kto_beta
        self._lambdas = {True: 1.0, False: 1.0}
        self._point = 0.0

    def select(self, rated: Sequence[R]) -> list[R]:
        """Return corrections and all ratings but 0, and weigh the two sides by their numbers."""
        selected = [one for one in rated if one.kind != "pair" and one.rating != 0]
        num_liked = sum(one.rating > 0 for one in selected)
        sides = {True: num_liked, False: len(selected) - num_liked}
        for is_liked, number in sides.items():
            is_balanced = 0 < number < len(selected)
            self._lambdas[is_liked] = len(selected) / (2 * number) if is_balanced else 1.0
        return selected

    def prepare(self, units: Sequence[Unit], logprobs: Sequence[tuple[Floats, ...]]) -> None:
        """Set the reference point z of this step."""
        kept = [
            Kept.of(unit, policy)
            for unit, policy in zip(units, logprobs, strict=True)
            if unit.kind == "rating"
        ]
        rewards = [_reward(one) for one in kept if len(one)]
        self._point = max(0.0, float(np.mean(rewards))) if rewards else 0.0

    def __call__(self, unit: Unit, logprobs: tuple[Floats, ...]) -> Loss:
        """Return one unit's loss."""
        kept = Kept.of(unit, logprobs)
        sign = 1.0 if unit.rating > 0 else -1.0
        scale = self._lambdas[unit.rating > 0]
        reward = _reward(kept)
        # tanh doesn't overflow where exp does.
        value = (1 + np.tanh(sign * self._beta * (reward - self._point) / 2)) / 2
        slope = -scale * sign * self._beta * value * (1 - value)
        gradient = np.full(len(kept), slope)
        loss = float(scale * (1 - value))
        return kept.loss(unit, loss, gradient, kto_reward=reward, kto_point=self._point)


def _reward(kept: Kept) -> float:
    return float((kept.policy - kept.base).sum())
