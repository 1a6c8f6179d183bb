"""Mismatch: where trainer and engine don't agree on what one and the same version says.

Pure. Compares logprobs; doesn't compute them. What training itself moved is not its concern: both
sides are logprobs under the version that sampled.

Shapes: S sampled tokens of one answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from strop.training.sequences import Doubles, Floats, Mask

TOKEN_BAND: Final = (0.5, 2.0)
SEQUENCE_BAND: Final = (0.8, 1.25)
MAX_DROPPED: Final = 0.2


class Mismatch(Exception):
    """Trainer and engine disagree too much for anything to be learned from the ratings."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the trainer's logprobs agree with those the engine gave.

    Attributes:
        keep: for each answer (S,), which tokens count; all of one whose logprobs the engine did not
            give, since there is nothing to compare.
        num_tokens: how many tokens were compared.
        num_dropped: how many of them don't count.
        difference: mean |log ratio| over the compared tokens whose ratio is finite, nats.
        bias: the mean log ratio of the same, trainer over engine.
    """

    keep: tuple[Mask, ...]
    num_tokens: int
    num_dropped: int
    difference: float
    bias: float

    @property
    def dropped(self) -> float:
        """The share of the compared tokens that don't count."""
        return self.num_dropped / self.num_tokens if self.num_tokens else 0.0

    def check(self) -> None:
        """Raise Mismatch if more than a fifth of the tokens don't count."""
        if self.dropped > MAX_DROPPED:
            raise Mismatch(
                f"expected the trainer's logprobs to agree with the engine's; {self.dropped:.0%}"
                f" of {self.num_tokens:,} tokens don't (at most {MAX_DROPPED:.0%} may;"
                f" {self.difference:.2f} nats apart on average, bias {self.bias:+.2f}): the chat"
                " template, the adapter version or the model itself is not the one that the engine"
                " used. Check that `model.base` is the model that the engine serves, with the"
                " engine's own chat template"
            )


def keep(reference: Floats, policy: Floats) -> Mask:
    """Return which tokens of one answer (S,) are near enough to `reference`.

    A token is, if policy / reference lies in [0.5, 2]; none is, if the geometric mean of that ratio
    over the whole answer does not lie in [0.8, 1.25]. A logprob that is not finite is never near.
    """
    log_ratio = _log_ratio(reference, policy)
    if not len(log_ratio) or not _is_in(SEQUENCE_BAND, log_ratio.mean(keepdims=True))[0]:
        return np.zeros(len(log_ratio), np.bool_)
    return _is_in(TOKEN_BAND, log_ratio)


def compare(captured: Sequence[Floats | None], recomputed: Sequence[Floats]) -> Agreement:
    """Return how far `recomputed`, the trainer's, agree with `captured`, the engine's."""
    masks = []
    log_ratios = []
    for engine, trainer in zip(captured, recomputed, strict=True):
        if engine is None:
            masks.append(np.ones(len(trainer), np.bool_))
        else:
            masks.append(keep(engine, trainer))
            log_ratios.append((_log_ratio(engine, trainer), masks[-1]))
    finite = _finite(ratio for ratio, _ in log_ratios)
    return Agreement(
        tuple(masks),
        num_tokens=sum(len(ratio) for ratio, _ in log_ratios),
        num_dropped=sum(int((~mask).sum()) for _, mask in log_ratios),
        difference=float(np.abs(finite).mean()) if len(finite) else 0.0,
        bias=float(finite.mean()) if len(finite) else 0.0,
    )


def distance(reference: Sequence[Floats], policy: Sequence[Floats]) -> float:
    """Return the mean |log ratio| over the tokens whose ratio is finite, in nats; 0 without any."""
    finite = _finite(_log_ratio(*pair) for pair in zip(reference, policy, strict=True))
    return float(np.abs(finite).mean()) if len(finite) else 0.0


def _finite(log_ratios: Iterable[Doubles]) -> Doubles:
    joined = np.concatenate([np.zeros(0), *log_ratios])
    finite: Doubles = joined[np.isfinite(joined)]
    return finite


def _log_ratio(reference: Floats, policy: Floats) -> Doubles:
    # Infinite on both sides is not a number, which is in no band either.
    with np.errstate(invalid="ignore"):
        return policy.astype(np.float64) - reference.astype(np.float64)


def _is_in(band: tuple[float, float], log_ratio: Doubles) -> Mask:
    low, high = np.log(band)
    near: Mask = (low <= log_ratio) & (log_ratio <= high)
    return near
