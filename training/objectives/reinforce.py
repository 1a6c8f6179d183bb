"""REINFORCE with a baseline and an anchor at the base: the plain policy gradient.

    L_i = -A_i mean_t(log pi) + beta mean_t(k3)

`t` runs over the kept tokens of all answers of the turn. A step's loss is the mean over its units;
a unit with no kept token gives 0. Nothing but the anchor ends the push on a disliked token: at
(|A| + beta) / beta times less likely than under the base, 3 nats for A = -1 at 0.05.

Source: Williams (1992), "Simple statistical gradient-following algorithms for connectionist
reinforcement learning"; the anchor's estimator is that of `terms.anchor`.
"""

from strop.training.objectives.base import Settings, UnitByUnit
from strop.training.objectives.terms import Kept, policy_gradient
from strop.training.sequences import Floats, Loss, Unit


class Reinforce(UnitByUnit):
    """See the module."""

    name = "reinforce"

    def __init__(self, settings: Settings) -> None:
        self._beta = settings.beta

    def __call__(self, unit: Unit, logprobs: tuple[Floats, ...]) -> Loss:
        """Return one unit's loss."""
        return policy_gradient(unit, Kept.of(unit, logprobs), 1.0, self._beta)
