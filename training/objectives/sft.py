"""SFT: maximum likelihood on liked answers and corrections ("rejection sampling").

    L_i = -mean_t(log pi)

`t` runs over the kept tokens of all answers of the turn. A step's loss is the mean over its units;
a unit with no kept token gives 0. Learns nothing from what is disliked, and has no anchor: the KL
stop of the run is what bounds it, and on corrections alone the gate.

Source: the supervised step of InstructGPT, arXiv 2203.02155, section 3.5, on the model's own liked
answers as in RAFT, arXiv 2304.06767.
"""

from collections.abc import Sequence

import numpy as np

from strop.training.objectives.base import R, Settings, UnitByUnit
from strop.training.objectives.terms import Kept
from strop.training.sequences import Floats, Loss, Unit


class Sft(UnitByUnit):
    """See the module."""

    name = "sft"

    def __init__(self, settings: Settings) -> None:
        """Take no setting."""

    def select(self, rated: Sequence[R]) -> list[R]:
        """Return what is liked, and the corrections."""
        return [one for one in rated if one.kind != "pair" and one.rating > 0]

    def __call__(self, unit: Unit, logprobs: tuple[Floats, ...]) -> Loss:
        """Return one unit's loss."""
        kept = Kept.of(unit, logprobs)
        if not len(kept):
            return kept.loss(unit, 0.0, np.zeros(0))
        gradient = np.full(len(kept), -1 / len(kept))
        return kept.loss(unit, -float(kept.policy.mean()), gradient)
