"""Whether a promoted version is liked less than what it was trained on from. Pure: decides.

Reads no store and activates nothing; `promotion` does.
"""

from collections.abc import Sequence
from typing import Final

from strop.adapters import rates
from strop.adapters.rates import Rate
from strop.proxy.store.version_records import Activation, Version

MIN_ANSWERS: Final = 20
"""How many of a version's own answers must be rated before it is judged by them."""

MOST_ANSWERS: Final = 200
"""How many rated answers are compared at most: the first of a version's since it was promoted, and
the newest of its parent's before that. What people ask, and expect, changes over weeks, and
that is no fault of a version's; and whoever looks for ever finds a difference at last."""

MIN_SESSIONS: Final = 4
"""In how many sessions its own answers must be rated. Those of one session are liked or not
together, for what was asked there; how much so can't be seen in fewer."""

PROMOTER: Final = "gate"
"""Who activates what passed; a version that a person chose is not taken back from them."""


def is_followed(activation: Activation, active: Version) -> bool:
    """Whether the active version is one to roll back, if it is liked too little.

    It is where the gate promoted it over its parent, and a rollback goes there. What a rollback
    made active isn't, so nothing goes to and fro.
    """
    parent = active.parent or "base"
    return activation.actor == PROMOTER and activation.previous == parent


def complaint(version: str, own: Sequence[Rate], parent: str, before: Sequence[Rate]) -> str | None:
    """Return why `version` should be rolled back to `parent`; None where it should not.

    Args:
        version: the active version.
        own: how its first answers were rated since it was promoted, by session.
        parent: what it was trained on from.
        before: how the last answers of that one were rated before, by session.
    """
    if len(own) < MIN_SESSIONS or _num(own) < MIN_ANSWERS:
        return None
    correlation = rates.correlation((own, before))
    rate, was = rates.pooled(own, correlation), rates.pooled(before, correlation)
    # One session that is much larger than the others would decide alone, and hide how much its
    # answers hang together.
    worst = max(own, key=lambda one: one.num - one.num_hits)
    rest = list(own)
    rest.remove(worst)
    highest = max(one.interval.high for one in (rate, rates.pooled(rest, correlation)))
    if highest >= was.interval.low:
        return None
    return (
        f"its answers are liked less than those of {parent}, surely:"
        f" {_shown(version, rate, len(own))}, and {_shown(parent, was, len(before))}"
    )


def _num(sessions: Sequence[Rate]) -> int:
    return sum(one.num for one in sessions)


def _shown(version: str, rate: Rate, num_sessions: int) -> str:
    interval, plural = rate.interval, "" if num_sessions == 1 else "s"
    return (
        f"{version} {rate.num_hits} of {rate.num} good in {num_sessions} session{plural}"
        f" ({interval.low:.2f} to {interval.high:.2f} at 90 %)"
    )
