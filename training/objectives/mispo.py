"""MIS-PO: REINFORCE on the tokens and answers that are still near the policy that sampled them.

    L_i = -A_i mean_t(log pi) + beta mean_t(k3),   t with x_t in [0.5, 2], of answers whose
                                                   geometric mean of x_t lies in [0.8, 1.25]
    x_t = pi / pi_v                                detached: a mask, never a weight

The masks are binary, and what they drop leaves the denominator too. A step's loss is the mean over
its units; a unit with no kept token gives 0. A correction, which nobody sampled, has no masks.

Source: Step 3.5 Flash, arXiv 2602.10604, equation 2 and section 5.2.3. The paper keeps answers with
a geometric mean in [0.996, 1.001]: there, thousands of fresh answers replace what is dropped. Of 40
ratings that would drop nearly all after the first steps, so the band here is that of
`strop.training.mismatch`. The anchor is ours, at beta 0.05.
"""

from strop.training import mismatch
from strop.training.objectives.base import Settings, UnitByUnit
from strop.training.objectives.terms import Kept, policy_gradient
from strop.training.sequences import Floats, Loss, Unit


class Mispo(UnitByUnit):
    """See the module."""

    name = "mispo"

    def __init__(self, settings: Settings) -> None:
        self._beta = settings.beta

    def __call__(self, unit: Unit, logprobs: tuple[Floats, ...]) -> Loss:
        """Return one unit's loss."""
        masks = None
        if unit.kind == "rating":
            masks = [
                mismatch.keep(answer.sampler, policy)
                for answer, policy in zip(unit.answers, logprobs, strict=True)
            ]
        return policy_gradient(unit, Kept.of(unit, logprobs, masks), 1.0, self._beta)
