"""How far the logprobs of two right implementations of the same weights may lie apart.

Knows no engine and no probe.
"""

import re
from collections.abc import Mapping

# The largest error of one logprob, in nats, between two right implementations of the same weights.
# float32: 1.3e-5 measured on small models; a thousand times the sum of a deep model's roundings.
# float16: what a cache of keys and values in float16 adds (4e-3 on a small model) with room.
# bfloat16: 0.18 at most, 0.04 on average, over 192 tokens of vLLM against transformers.
TOLERANCES: Mapping[str, float] = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.18}

# Weights in so many bits: four times the noise √(2 KL) of Llama 3 8B, whose divergences (q8_0
# .0014, q6_K .0057, q5_K_M .011, q4_K_M .032, q3_K_M .10, q2_K .45) llama.cpp has measured, in the
# README of its tool perplexity.
_OF_BITS: Mapping[int, float] = {8: 0.21, 6: 0.43, 5: 0.6, 4: 1.0, 3: 1.8, 2: 3.8}

_LARGEST_TO_MEAN = 4.5


def tolerance_of(*dtypes: str, base_error: float = 0.0) -> float:
    """Return the tolerance between implementations in these dtypes; an unknown one is bfloat16.

    A dtype may be one of llama.cpp's levels, such as `q4_k_m`. `base_error` is how far the engine's
    own base lies from the probe's, the mean absolute difference in nats, as its pairing measured.
    It can only widen the tolerance: where greedy answers agree, noise is smaller than elsewhere.
    The largest error is some 4.5 times the mean (bfloat16 above).
    """
    return max(*map(_tolerance, dtypes), _LARGEST_TO_MEAN * base_error)


def _tolerance(dtype: str) -> float:
    level = re.match(r"i?q([2-8])_", dtype.lower())
    if level and int(level[1]) in _OF_BITS:
        return _OF_BITS[int(level[1])]
    return TOLERANCES.get(dtype, TOLERANCES["bfloat16"])
