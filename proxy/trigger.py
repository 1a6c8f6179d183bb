"""When ratings are enough to learn from. Pure: decides, and says in words what it waits for.

Starts nothing and reads no clock, no store and no load; `trainer` does.
"""

from dataclasses import dataclass
from datetime import datetime

from strop.proxy.settings.kinds import parse_hours
from strop.proxy.settings.settings import Training
from strop.proxy.store.run_records import COMPARING, FreshCounts


@dataclass(frozen=True, slots=True)
class Moment:
    """What else counts: the local time, and how long nobody asked."""

    now: datetime
    idle_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a run is due, and what it waits for, for people."""

    is_due: bool
    says: str


def decide(
    fresh: FreshCounts, num_new: int, moment: Moment, settings: Training, *, num_rejected: int = 0
) -> Decision:
    """Return whether a run is due now.

    Args:
        fresh: the ratings that a run could learn from; several of one answer count as one, by
            their mean.
        num_new: how many of them came after the last finished run began: one that was refused is
            not tried again before enough are new.
        moment: what else counts.
        settings: the rules.
        num_rejected: how many runs in a row, from the active version, the gate has rejected.
    """
    if not settings.enabled:
        return Decision(False, "training.enabled is false; `strop train` starts a run")
    if reason := _too_few(fresh, num_new, settings, num_rejected):
        return Decision(False, reason)
    if settings.hours and not _is_within(settings.hours, moment.now):
        return Decision(
            False, f"enough ratings; waits for the hours {settings.hours} (training.hours)"
        )
    if moment.idle_s < settings.idle_s:
        return Decision(
            False,
            f"enough ratings; waits until nobody has asked for {settings.idle_s:g} s"
            " (training.idle_s)",
        )
    return Decision(True, f"{fresh.total} ratings to learn from")


def _too_few(fresh: FreshCounts, num_new: int, settings: Training, num_rejected: int) -> str:
    # What was rejected is learned from again beside what is new, so each try takes longer. With
    # twice as many new ones each time, all tries together cost as much as two of the last.
    wanted = settings.ratings * 2 ** max(0, num_rejected - 1)
    missing = max(0, wanted - num_new)
    parts = [f"{missing} more rating{'s' if missing > 1 else ''}"] if missing else []
    if missing and num_rejected:
        runs = "run was" if num_rejected == 1 else f"{num_rejected} runs were"
        parts[0] += f", since the last {runs} rejected"
    # A correction is an answer to like, and one of a pair, whatever the rating beside it.
    wants_bad = settings.objective in COMPARING or (
        settings.objective == "dpo" and not fresh.corrections
    )
    if wants_bad and not fresh.bad:
        parts.append("0 bad still to learn from: rate some bad ones too")
    elif not fresh.good + fresh.corrections:
        parts.append("0 good still to learn from: rate some good ones too")
    return "; ".join(parts)


def _is_within(hours: str, now: datetime) -> bool:
    first, last = parse_hours(hours)
    if first == last:
        return True
    if first < last:
        return first <= now.hour < last
    return now.hour >= first or now.hour < last
