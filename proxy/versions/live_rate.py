"""Whether a promoted version is liked less than what it was trained on from. Pure: decides.

Reads no store and activates nothing; `promotion` does.
"""

from typing import Final

from strop.adapters.rates import Rate
from strop.proxy.store.version_records import Activation, Version

MIN_RATINGS: Final = 20
"""How many of a version's own answers must be rated before it is judged by them."""

MOST_RATINGS: Final = 200
"""How many ratings are compared at most: the first of a version's answers since it was promoted,
and the newest of its parent's before that. What people ask, and expect, changes over weeks, and
that is no fault of a version's; and whoever looks for ever finds a difference at last."""

PROMOTER: Final = "gate"
"""Who activates what passed; a version that a person chose is not taken back from them."""


def is_followed(activation: Activation, active: Version) -> bool:
    """Whether the active version is one to roll back, if it is liked too little.

    It is where the gate promoted it over its parent, and a rollback goes there. What a rollback
    made active isn't, so nothing goes to and fro.
    """
    parent = active.parent or "base"
    return activation.actor == PROMOTER and activation.previous == parent


def complaint(version: str, own: Rate, parent: str, before: Rate) -> str | None:
    """Return why `version` should be rolled back to `parent`; None where it should not.

    Args:
        version: the active version.
        own: how its first answers were rated since it was promoted.
        parent: what it was trained on from.
        before: how the last answers of that one were rated before.
    """
    if own.num < MIN_RATINGS or own.interval.high >= before.interval.low:
        return None
    return (
        f"its answers are liked less than those of {parent}, surely: {_shown(version, own)}, and"
        f" {_shown(parent, before)}"
    )


def _shown(version: str, rate: Rate) -> str:
    interval = rate.interval
    return (
        f"{version} {rate.num_hits} of {rate.num} good"
        f" ({interval.low:.2f} to {interval.high:.2f} at 90 %)"
    )
