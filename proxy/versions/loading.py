"""Getting a version into the engine: what to load, whether it may be, and what came of it.

Moves no traffic by itself; `swapping` and `keeping` do. Its caller holds `residents.lock`.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import orjson

from strop.adapters.peft import InvalidAdapter
from strop.adapters.swap import NotProven, Release, Step, Switch
from strop.proxy.alias import BASE
from strop.proxy.engines.base import AdapterControl, AdapterControls
from strop.proxy.errors import (
    ActivationFailed,
    Conflict,
    EngineNotReady,
    StropError,
    SwitchingVersions,
    UpstreamDied,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from strop.proxy.serving import Serving
from strop.proxy.store.version_records import Version
from strop.proxy.versions.pairing import Pairings
from strop.proxy.versions.residents import Residents
from strop.proxy.versions.shelf import Shelf
from strop.proxy.versions.target import Target
from strop.proxy.versions.traffic import Traffic

log = logging.getLogger(__name__)

RETRY_S = 60.0
"""How long a version that the engine does not serve is not loaded again, unless it is activated."""

BUSY: Final = "busy"
"""In the detail of a failure: the version was not tried, since other answers took too long."""

GONE: Final = "engine_gone"
"""In the detail of a failure: the engine went away meanwhile, be it for this version or not."""

# What an effect of a switch may fail with, and a person has to be told.
REASONS = (StropError, NotProven, InvalidAdapter, OSError)
# Of these, what says nothing about the version: the engine is gone, and may be back at once, or
# requests hold it up.
_GONE = (UpstreamUnreachable, UpstreamDied, UpstreamTimeout, EngineNotReady)
_PASSING = (*_GONE, SwitchingVersions)


class Loader:
    """Loads versions from the shelf into one engine.

    Args:
        shelf: the versions at rest.
        serving: the engine and its alias.
        control: how the engine's versions are loaded.
        hold_s: how long requests may be held where the engine has one slot.
        on_unloaded: told of each version that was unloaded because it was no longer needed.
    """

    def __init__(
        self,
        shelf: Shelf,
        serving: Serving,
        control: AdapterControls,
        *,
        hold_s: float,
        on_unloaded: Callable[[str], None],
    ) -> None:
        self.shelf = shelf
        self.serving = serving
        self.pairings = Pairings(shelf.store, serving.engine.label)
        self.residents = Residents(serving, control, self.pairings, on_unloaded)
        self.hold_s = hold_s
        self._versions = shelf.store.versions
        # Until when, and how. No errors: one that is raised again holds all that it went through.
        self._failed: dict[str, tuple[float, type[StropError], str]] = {}

    def try_again(self) -> None:
        """Load versions again that failed before."""
        self._failed.clear()

    async def reconcile(self) -> set[str]:
        """Compare what is known of the engine with what it says; see `Residents.reconcile`."""
        return await self.residents.reconcile(self._is_stray)

    def _is_stray(self, folder: str) -> bool:
        """Whether what is loaded from `folder` is of this home, and not about to be needed.

        A home that was here before is this one too: its versions had other folders.
        """
        active = self.serving.alias.active.version
        is_awaited = active != BASE and self.residents.get(active) is None
        is_needed = is_awaited and folder == str(self.shelf.path_of(active))
        return self.shelf.is_ours(folder) and not is_needed

    async def release(
        self, version: str, *, accepts_stale: bool, accepts_unproven: bool
    ) -> Release:
        """Return what is to be loaded.

        Raises:
            NotFound: there is no such version.
            Conflict: it is not to be served.
            ActivationFailed: its manifest is broken, or can't be read.
        """
        if version == BASE:
            return self.residents.base()
        row = await self._found(version)
        return await self._release_of(
            row, accepts_stale=accepts_stale, accepts_unproven=accepts_unproven
        )

    async def _found(self, version: str) -> Version:
        """Return a version's row; if its folder was missing, and is back, as it was before."""
        return await self.shelf.look_for(await self._versions.existing(version), actor="watch")

    async def _release_of(
        self, row: Version, *, accepts_stale: bool, accepts_unproven: bool
    ) -> Release:
        version = row.id
        await self.shelf.check(row, base=self.serving.base, force=accepts_stale)
        try:
            probe = await self.shelf.probe_of(version)
        except InvalidAdapter as error:
            raise ActivationFailed(await self.note_failure(version, "watch", error)) from error
        except OSError as error:
            raise ActivationFailed(reason_of(version, error)) from error
        if probe is None and not accepts_unproven:
            why = f" ({row.reason})" if row.origin == "import" and row.reason else ""
            raise Conflict(
                f"{version} has no probe{why}, so nothing can show that an engine serves it;"
                " activate it with --force (over HTTP, force) if you know that it does"
            )
        folder = self.shelf.path_of(version)
        suffix = hashlib.sha256(row.manifest).hexdigest()[:8]
        name = await self.residents.name_for(version, folder, suffix)
        return Release(version, name, folder, probe)

    def switch(
        self,
        release: Release,
        targets: list[Target],
        *,
        accepts_unproven: bool,
        on_step: Callable[[Step], None] = lambda _: None,
    ) -> Switch:
        """Return the steps that get `release` onto `targets`."""

        async def verify() -> None:
            if release.folder is not None:
                await self.shelf.verify(release.version)

        return Switch(release, verify, targets, may_be_unproven=accepts_unproven, on_step=on_step)

    async def load(self, version: str) -> None:
        """Load and prove `version`, beside the others or in the one slot; let pins reach it.

        Raises:
            NotFound, Conflict: as `release`.
            ActivationFailed: it can't be served.
        """
        known = self._failed.get(version)
        if known is not None and time.monotonic() < known[0]:
            raise known[1](known[2])
        row = await self._found(version)
        # What a person once made active knowingly needs no second word.
        was_active = row.state in ("active", "retired")
        try:
            release = await self._release_of(row, accepts_stale=True, accepts_unproven=was_active)
        except Conflict as error:
            if row.state == "missing" and self.shelf.path_of(version).exists():
                # Who asks again and again would have its files hashed each time.
                self._failed[version] = time.monotonic() + RETRY_S, Conflict, error.message
            raise
        targets = self.residents.targets()
        switch = self.switch(release, targets, accepts_unproven=was_active)
        try:
            if self.residents.has_one_slot:
                traffic = Traffic(self.serving, self.residents, switch.done, hold_s=self.hold_s)
                await switch.in_place(traffic, self.residents.occupant())
            else:
                done = await switch.load()
                self.residents.add(release, done.judgement)
                self.serving.put(self.residents.alias())
        except _PASSING as error:
            raise ActivationFailed(reason_of(version, error)) from error
        except REASONS as error:
            reason = await self.note_failure(version, "watch", error)
            self._failed[version] = time.monotonic() + RETRY_S, ActivationFailed, reason
            raise ActivationFailed(reason) from error
        timings = {f"{step}_ms": round(ms, 1) for step, ms in switch.done.timings_ms.items()}
        log.info("version loaded", extra={"version": version, **timings})
        await self.pairings.note(self.serving.base, switch.done.judgement)

    async def bring_up(self, control: AdapterControl) -> None:
        """Load and prove on one engine of several what the others hold.

        Raises:
            ActivationFailed: it can't serve a version that the others serve.
        """
        active = self.serving.alias.active.version
        kept = [resident for resident in self.residents.all() if not resident.is_draining]
        # The active version first: each probe asks for it too, to see that no cache is shared.
        for resident in sorted(kept, key=lambda one: one.release.version != active):
            targets = [self.residents.target(control)]
            known = resident.judgement
            # The others may have been made to serve it all the same, and then so may this one.
            is_unproven = known is None or known.outcome == "unproven"
            try:
                await self.switch(resident.release, targets, accepts_unproven=is_unproven).load()
            except REASONS as error:
                reason = reason_of(resident.release.version, error)
                raise ActivationFailed(reason) from error

    async def note_failure(self, version: str, actor: str, error: BaseException) -> str:
        """Write down that a version could not be served, and return why."""
        reason = reason_of(version, error)
        if self.serving.engine.replicas and isinstance(error, UpstreamUnreachable | UpstreamDied):
            reason += "; or ask again: the others can serve it without one that is gone"
        log.warning("version not served", extra={"version": version, "reason": reason})
        said: dict[str, object] = {"reason": reason}
        if isinstance(error, SwitchingVersions):
            said[BUSY] = True
        elif isinstance(error, _GONE):
            said[GONE] = True
        if isinstance(error, NotProven):
            said["probe"] = asdict(error.judgement)
        detail = orjson.dumps(said)
        await self._versions.add_event(version, "activation_failed", actor=actor, detail=detail)
        if isinstance(error, InvalidAdapter):
            await self._versions.mark_missing(version, str(error), actor=actor)
        return reason


def reason_of(version: str, error: BaseException) -> str:
    """Return why `version` can't be served, for people."""
    said = error.message if isinstance(error, StropError) else str(error)
    if isinstance(error, NotProven):
        said = f"the engine was asked, and does not serve it: {said}"
    return f"{version} can't be served: {said}"
