"""How far a policy is from the one that sampled, estimated from the sampled tokens alone.

Pure. Knows no model; docs/learning.md, "The KL stop", says how sure the estimate is.
"""

from typing import Final

import numpy as np

from strop.training.sequences import Doubles

_MAX_LOG_RATIO: Final = 1.5


def kl_of(log_ratios: Doubles) -> Doubles:
    """Return exp(d) - d - 1 of each d = log pi - log pi_parent, with d clamped at 1.5.

    Of tokens that the parent sampled its mean estimates KL(parent || pi), never below 0
    ("Approximating KL divergence", Schulman, 2020: k3). But a logit_bias, a high temperature or
    another version brings tokens that the parent would hardly give, and unclamped, one that is
    learned outweighs a thousand others. A token counts for 1.98 at most where it became likelier;
    where it became rarer there is no bound.
    """
    clamped = np.minimum(log_ratios, _MAX_LOG_RATIO)
    return np.expm1(clamped) - clamped
