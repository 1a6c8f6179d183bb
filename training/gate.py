"""The gate: figures of a candidate, its parent and the base -> may the candidate serve, and why.

Pure. Samples nothing, computes no logprob, and knows no store; docs/learning.md, "The gate", has
the evidence behind the bounds.

    collapse tests      decide alone, on fresh samples
    preference tests    paired with the parent on held-out ratings; reject only when the whole
                        interval lies below a drop that matters, else pass, or are inconclusive
                        and say so; where there are enough of both signs the margin decides
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

from strop.adapters.rates import Interval
from strop.training.statistics import Group, bootstrap_difference, bootstrap_mean

MIN_SAMPLES: Final = 16
MAX_NLL_RATIO: Final = 1.3
MIN_NLL_ROOM: Final = 0.15
"""How much more a candidate's samples may surprise the base than its own, nats a token, however
little its own do (docs/decisions, 0017)."""
MAX_PARENT_KL: Final = 0.3
# A preference may well ask for terse answers or for long ones: these bounds only see answers that
# end at once or never, and policies that say one thing only or anything at all.
LENGTH_RATIO: Final = Interval(1 / 8, 8.0)
ENTROPY_RATIO: Final = Interval(0.1, 2.5)
MIN_SESSIONS: Final = 8
MIN_OF_EACH: Final = 4
"""Of how many sessions liked answers are needed for a margin, and of how many disliked ones.

An interval knows no spread where there is one session: beside 20 of the other sign, a version that
is no worse than allowed is rejected 37 times of 100, with two 19 times, with four 9 times.
"""
MIN_DROP: Final = 0.02
"""The drop on held-out ratings, nats a token, that a rejection must be sure of.

Whatever a version learns, the answers of its parent lose the KL between the two, on average: up to
.05 at the usual KL stop, and nearly all held-out answers are liked once the parent is good. Reject
below 0, and half of the versions that are as good as their parent are rejected (docs/decisions,
0013).
"""

Outcome = Literal["passed", "inconclusive", "rejected"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What fresh samples of one version at T = 1 look like.

    Attributes:
        num_samples: how many answers.
        num_tokens: how many tokens they have together.
        base_nll: nats a token under the base.
        length: tokens an answer, on average.
        entropy: of the version's own next-token distribution, nats, on average over the tokens.
    """

    num_samples: int
    num_tokens: int
    base_nll: float
    length: float
    entropy: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One held-out rated turn: its session's root, rating in [-1, 1], and mean logprob a token."""

    root: str
    rating: float
    candidate: float
    parent: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All that the gate decides by.

    Attributes:
        candidate, base: samples on the same prompts.
        parent_kl: KL(candidate || parent) on the candidate's samples, nats a token; an estimate,
            so near 0 it may be below.
        held_out: the held-out ratings.
    """

    candidate: Behaviour
    base: Behaviour
    parent_kl: float
    held_out: tuple[HeldOut, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One test: what was measured, the interval where it has one, and what it means, for people."""

    name: str
    outcome: Outcome
    value: float | None
    interval: Interval | None
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says. `rejected` if any check is; `inconclusive` passes too, and says so."""

    outcome: Outcome
    checks: tuple[Check, ...]

    @property
    def is_passed(self) -> bool:
        """Whether the candidate may serve."""
        return self.outcome != "rejected"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What decided: of a rejection, the checks that reject; else each check's sentence."""
        deciding = [check for check in self.checks if check.outcome == "rejected"]
        return tuple(check.reason for check in deciding or self.checks)

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able object; figures that are not finite become null."""
        return {
            "outcome": self.outcome,
            "reasons": list(self.reasons),
            "checks": [_finite_only(asdict(check)) for check in self.checks],
        }


def max_base_nll(base_nll: float) -> float:
    """Return how much a candidate's samples may surprise the base, whose own do by `base_nll`.

    Both in nats a token.
    """
    return max(MAX_NLL_RATIO * base_nll, base_nll + MIN_NLL_ROOM)


def judge(figures: Figures, *, seed: int = 0) -> Verdict:
    """Return the verdict; `seed` is the bootstrap's."""
    checks = [*_collapse(figures), *_preference(figures.held_out, seed)]
    outcomes = {check.outcome for check in checks}
    for outcome in ("rejected", "inconclusive"):
        if outcome in outcomes:
            return Verdict(outcome, tuple(checks))
    return Verdict("passed", tuple(checks))


def _collapse(figures: Figures) -> list[Check]:
    candidate, base = figures.candidate, figures.base
    if fewest := [one.num_samples for one in (candidate, base) if one.num_samples < MIN_SAMPLES]:
        reason = f"expected at least {MIN_SAMPLES} fresh samples, got {min(fewest)}"
        return [Check("samples", "rejected", float(min(fewest)), None, reason)]
    return [
        _bounded_nll(candidate.base_nll, base.base_nll),
        _ratio("length", "length of its samples", "tokens", LENGTH_RATIO,
               candidate.length, base.length),
        _ratio("entropy", "entropy of its samples", "nats a token", ENTROPY_RATIO,
               candidate.entropy, base.entropy),
        _bounded_kl(figures.parent_kl),
    ]  # fmt: skip


def _bounded_nll(candidate: float, base: float) -> Check:
    bound = max_base_nll(base)
    # A NaN compares false, and is rejected; so is a base that is itself surprised without end.
    is_sound = math.isfinite(bound) and candidate <= bound
    reason = (
        f"surprise of its samples to the base: {candidate:.3g} nats a token against {base:.3g} of"
        f" the base's own (up to {bound:.3g} is sound)"
    )
    return Check("base_nll", "passed" if is_sound else "rejected", candidate, None, reason)


def _ratio(
    name: str, what: str, unit: str, bounds: Interval, candidate: float, base: float
) -> Check:
    if math.isfinite(candidate) and math.isfinite(base) and base > 0:
        ratio = candidate / base
        is_sound = ratio in bounds
    else:
        ratio, is_sound = math.nan, False
    reason = (
        f"{what}: {candidate:.3g} against the base's {base:.3g} {unit}, {ratio:.2f} times"
        f" ({bounds.low:.3g} to {bounds.high:.3g} is sound)"
    )
    return Check(name, "passed" if is_sound else "rejected", ratio, None, reason)


def _bounded_kl(parent_kl: float) -> Check:
    # A NaN compares false, and is rejected.
    is_sound = parent_kl <= MAX_PARENT_KL
    reason = (
        f"distance from its parent: {parent_kl:.3g} nats a token"
        f" (up to {MAX_PARENT_KL:.3g} is sound)"
    )
    return Check("parent_kl", "passed" if is_sound else "rejected", parent_kl, None, reason)


def _preference(held_out: Sequence[HeldOut], seed: int) -> list[Check]:
    liked = _by_session(held_out, is_liked=True)
    disliked = _by_session(held_out, is_liked=False)
    if any(not math.isfinite(group.total) for group in (*liked.values(), *disliked.values())):
        reason = "held-out answers have logprobs that are not finite"
        return [Check("liked_logprob", "rejected", None, None, reason)]
    sessions = sorted({*liked, *disliked})
    none = Group(0.0, 0)
    first = [liked.get(root, none) for root in sessions]
    second = [disliked.get(root, none) for root in sessions]

    what = "logprob of held-out liked answers against the parent's"
    if len(liked) < MIN_SESSIONS:
        lacks = f"{len(liked)} held-out sessions with such ratings; {MIN_SESSIONS} are needed"
        logprob = _inconclusive("liked_logprob", what, lacks)
    else:
        interval = bootstrap_mean([*liked.values()], seed=seed)
        logprob = _signed("liked_logprob", what, _mean(first), interval, len(liked))

    what = "margin of liked over disliked held-out answers against the parent's"
    if len(sessions) < MIN_SESSIONS or min(len(liked), len(disliked)) < MIN_OF_EACH:
        lacks = (
            f"{len(liked)} held-out sessions with liked answers, {len(disliked)} with disliked"
            f" ones; {MIN_SESSIONS} are needed, {MIN_OF_EACH} of each"
        )
        return [logprob, _inconclusive("margin", what, lacks)]
    interval = bootstrap_difference(first, second, seed=seed)
    difference = _mean(first) - _mean(second)
    margin = _signed("margin", what, difference, interval, len(sessions))
    if logprob.outcome == "rejected":
        # By moving, a version loses on all old answers; only the margin knows which it left.
        reason = f"{logprob.reason}, but the margin decides"
        logprob = replace(logprob, outcome="inconclusive", reason=reason)
    return [logprob, margin]


def _by_session(held_out: Sequence[HeldOut], *, is_liked: bool) -> dict[str, Group]:
    """Return each session's paired differences; a rating of 0 is neither liked nor disliked."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for one in held_out:
        if one.rating and (one.rating > 0) == is_liked:
            found[one.root].append(one.candidate - one.parent)
    return {root: Group(sum(values), len(values)) for root, values in sorted(found.items())}


def _mean(groups: Sequence[Group]) -> float:
    return sum(group.total for group in groups) / sum(group.num for group in groups)


def _signed(name: str, what: str, value: float, interval: Interval, num_sessions: int) -> Check:
    outcome: Outcome = "passed"
    means = "better"
    if interval.high < -MIN_DROP:
        outcome, means = "rejected", "worse"
    elif interval.high < 0:
        outcome, means = "inconclusive", f"worse, but not surely by the {MIN_DROP:g} that matter"
    elif 0 in interval:
        outcome, means = "inconclusive", "could be either way"
    reason = (
        f"{what}: {_shown(value)} nats a token, 90 % interval {_shown(interval.low)} to"
        f" {_shown(interval.high)} over {num_sessions} sessions: {means}"
    )
    return Check(name, outcome, value, interval, reason)


def _shown(nats: float) -> str:
    """Return a difference for people; a small one is not shown as none."""
    return f"{nats:+.3f}" if abs(nats) >= 0.001 or not nats else f"{nats:+.1g}"


def _inconclusive(name: str, what: str, lacks: str) -> Check:
    return Check(name, "inconclusive", None, None, f"{what}: inconclusive, {lacks}")


def _finite_only(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite_only(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
