"""How far a policy is from the one that sampled, estimated from the sampled tokens alone.

Pure. Knows no model; docs/learning.md, "The KL stop", says how sure the estimate is.
"""

from typing import Final

import numpy as np

from strop.training.sequences import Doubles

_MAX_LOG_RATIO: Final = 20.0


def kl_of(log_ratios: Doubles) -> Doubles:
    """Return exp(d) - d - 1 of each d = log pi - log pi_parent, at tokens that the parent sampled.

    Its mean estimates KL(parent || pi), never below 0 ("Approximating KL divergence", Schulman,
    2020: k3). d is clamped at 20.
    """
    clamped = np.minimum(log_ratios, _MAX_LOG_RATIO)
    return np.expm1(clamped) - clamped
