"""What a run made becomes active, and is taken back where people like it less.

Asks the store and the swapper, which moves the traffic. Starts no run.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final, Protocol

import orjson

from strop.proxy.errors import (
    ActivationFailed,
    Conflict,
    EngineNotReady,
    NotFound,
    StoreUnavailable,
    StropError,
    UpstreamError,
    UpstreamTimeout,
)
from strop.proxy.settings.settings import Training
from strop.proxy.store.run_records import Run
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import BASE, Activation, Version, VersionEvent
from strop.proxy.versions.activation import Progress, Switched
from strop.proxy.versions.displaced import START
from strop.proxy.versions.live_rate import MOST_ANSWERS, PROMOTER, complaint, is_followed
from strop.proxy.versions.loading import BUSY, GONE

log = logging.getLogger(__name__)

FOLLOW_INTERVAL_S: Final = 30.0
RETRY_AFTER_S: Final = 600.0
"""How long what could not be activated is left before it is looked at again: requests may have
been held for it."""

IDLE_S: Final = 10.0
"""How long nobody must have asked until what a busy engine held up is tried again before that."""

MAX_GONE: Final = 3
"""At how many attempts the engine may go away: then it may well be the version that ends it."""

# What says nothing about the version: it was not tried, and may be soon.
_PASSING: Final = (EngineNotReady, StoreUnavailable, UpstreamError, UpstreamTimeout)


class Activates(Protocol):
    """What moves traffic to a version: `Swapper`, as far as it is needed here."""

    progress: Progress | None

    @property
    def can_activate(self) -> bool:
        """Whether the engine is there; before it has been, what is active may be another."""
        ...

    async def activate(self, version: str, *, actor: str) -> Switched:
        """Activate a version."""
        ...

    async def rollback(self, *, actor: str, reason: str = "") -> Switched:
        """Activate the version that was active before."""
        ...


@dataclass(frozen=True, slots=True)
class _Pause:
    """Until when nothing is tried, in monotonic seconds; or until nobody asks for a while."""

    until: float
    ends_idle: bool = False

    def is_over(self, idle_s: float) -> bool:
        """Whether it is over now, where nobody has asked for `idle_s`."""
        return monotonic() >= self.until or (self.ends_idle and idle_s >= IDLE_S)


class Promoter:
    """Activates what passed the gate, once, and follows how it is liked.

    What is decided is in the store, so a strop that was killed in between goes on.

    Args:
        settings: whether it may.
        store: runs, versions, ratings.
        swapper: activates.
        follow_interval_s: seconds between two looks at the ratings of what was promoted.
        retry_after_s: seconds between two attempts to activate a version.
    """

    def __init__(
        self,
        settings: Training,
        store: Store,
        swapper: Activates,
        *,
        follow_interval_s: float = FOLLOW_INTERVAL_S,
        retry_after_s: float = RETRY_AFTER_S,
    ) -> None:
        self._settings = settings
        self._store = store
        self._swapper = swapper
        self._follow_interval_s = follow_interval_s
        self._retry_after_s = retry_after_s
        self._before_follow = self._before_retry = _Pause(monotonic())
        self._settled: set[str] = set()
        self._kept: set[str] = set()

    async def promote(self, *, idle_s: float = 0.0) -> None:
        """Activate what the last run made, if it passed and that is still to be done.

        Where the engine or the store can't be reached, or an activation is under way, the next
        call tries again; later, where answers that took too long held it up, or once nobody has
        asked for a while. `idle_s` says for how long nobody has.
        """
        if not self._swapper.can_activate:
            return
        run = await self._store.runs.last_finished()
        if run is None or run.state != "passed" or run.version is None:
            return
        version = run.version
        if version in self._settled or not self._before_retry.is_over(idle_s):
            return
        made = await self._store.versions.get(version)
        if made is None or made.state != "ready":
            # It was promoted, or it is gone.
            pass
        elif reason := await self._obstacle(run, made):
            log.info("not promoted", extra={"version": version, "reason": reason})
        elif self._swapper.progress is not None:
            return
        else:
            try:
                await self._swapper.activate(version, actor=PROMOTER)
            except _PASSING:
                return
            except ActivationFailed as error:
                log.error("not promoted", extra={"version": version, "reason": error.message})
                # Then its events say whether that was the version's own fault.
                events = await self._store.versions.list_events(version)
                self._before_retry = self._pause(events)
                return
            except StropError as error:
                log.error("not promoted", extra={"version": version, "reason": error.message})
        self._settled.add(version)

    async def _obstacle(self, run: Run, made: Version) -> str | None:
        active = (await self._store.versions.activation()).version
        return await obstacle(self._settings, self._store, run, made, active=active)

    async def follow(self, *, idle_s: float = 0.0) -> None:
        """Roll the active version back if the gate promoted it and people like it less; see there.

        Looks at the ratings only once in a while, however often it is called. Where the engine goes
        away meanwhile, or is busy, it is tried again later, as a promotion is.
        """
        if not (self._swapper.can_activate and self._before_follow.is_over(idle_s)):
            return
        self._before_follow = _Pause(monotonic() + self._follow_interval_s)
        versions = self._store.versions
        activation = await versions.activation()
        active = await versions.get(activation.version)
        if active is None or active.id in self._kept:
            return
        chosen = await _chosen(self._store, activation)
        if not is_followed(chosen, active):
            return
        parent = active.parent or BASE
        before, own = await self._store.training.rates_around(
            chosen.created_ms, parent, active.id, base=active.base, most=MOST_ANSWERS
        )
        reason = complaint(active.id, own, parent, before)
        # A person who has chosen meanwhile would be rolled back in its place.
        is_so_still = activation == await versions.activation()
        if reason is None or not is_so_still or self._swapper.progress is not None:
            return
        log.warning("rolling back", extra={"version": active.id, "reason": reason})
        try:
            await self._swapper.rollback(actor="watch", reason=reason)
        except (ActivationFailed, Conflict, NotFound) as error:
            log.error("not rolled back", extra={"version": active.id, "reason": error.message})
            if self._swapper.progress is not None:
                # A person's began in that moment; it may yet fail, and leave this one active.
                return
            if isinstance(error, ActivationFailed):
                events = await versions.list_events(activation.previous)
                since = [one for one in events if one.created_ms >= activation.created_ms]
                if not _is_refused(since):
                    self._before_follow = self._pause(since)
                    return
            # It would be asked again and again for what can't be served, or is gone.
            self._kept.add(active.id)

    def _pause(self, events: Sequence[VersionEvent]) -> _Pause:
        """Return how long to wait after a failure; `events` are its version's, newest first."""
        failed = [orjson.loads(one.detail) for one in events if one.kind == "activation_failed"]
        was_busy = bool(failed and failed[0].get(BUSY))
        return _Pause(monotonic() + self._retry_after_s, ends_idle=was_busy)


async def _chosen(store: Store, activation: Activation) -> Activation:
    """Return `activation` as it was before the version left for another base, if it did."""
    if activation.actor != START:
        return activation
    chosen = await store.versions.switch_to(activation.version, besides=START)
    if chosen is None:
        return activation
    return replace(activation, actor=chosen.actor, created_ms=chosen.created_ms)


async def obstacle(
    settings: Training, store: Store, run: Run, made: Version, *, active: str
) -> str | None:
    """Return why the version `made`, which passed in `run`, isn't activated by itself, or None.

    `active` is the version that is active, or will be when strop serves the base of `made`.
    """
    if settings.promote != "auto":
        return "training.promote is manual"
    if made.stale is not None:
        return f"it is stale: {made.stale}"
    if _is_refused(await store.versions.list_events(made.id)):
        return "an activation of it failed"
    parent = run.parent or BASE
    # Where a stale version is active, what was relearned takes its place.
    if active != made.id and parent not in (active, await store.versions.clean_ancestor(active)):
        return f"it was made from {parent}, and {active} is active now"
    return None


def _is_refused(events: Sequence[VersionEvent]) -> bool:
    """Return whether the events of a version say that the engine can't serve it.

    Not where it was busy, or went away fewer than `MAX_GONE` times.
    """
    details = [orjson.loads(e.detail) for e in events if e.kind == "activation_failed"]
    tried = [detail for detail in details if not detail.get(BUSY)]
    return len(tried) >= MAX_GONE or not all(detail.get(GONE) for detail in tried)
