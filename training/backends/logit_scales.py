"""What a model may make of its head's logits: nothing else, or capped or scaled ones.

Pure: makes candidates, by the names that configs have for these. Whoever has the model tries which
of them gives its own logits.
"""

from collections.abc import Callable, Iterator
from typing import Any

Head = Callable[[Any], Any]


def heads(head: Head, config: object, tanh: Callable[[Any], Any]) -> Iterator[Head]:
    """Yield what a model with this config may have for a head, the plain one first.

    Args:
        head: from hidden states (..., H) to logits (..., V).
        config: has what the model's config has, as attributes.
        tanh: the framework's own.
    """
    cap, factor, divisor = (
        _number(config, name)
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    yield head
    if cap:
        # Gemma 2, arXiv 2408.00118, section 2.
        yield lambda hidden: tanh(head(hidden) / cap) * cap
    if factor:
        yield lambda hidden: head(hidden) * factor
    if divisor:
        yield lambda hidden: head(hidden) / divisor


def _number(config: object, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else None
