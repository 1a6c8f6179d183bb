"""The versions that the engine holds: loaded, proven, kept while there is room, and unloaded.

Does not choose the active version, and writes nothing to the store: `swapping` does. All that
touches the engine happens under one lock.

    resident   loaded and proven; in the alias, so that pins get it
    draining   not in the alias any more; unloaded when the last request that holds it has ended
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from strop.adapters.probe import Judgement
from strop.adapters.swap import Release
from strop.proxy.alias import BASE, Alias, Served
from strop.proxy.engines.base import AdapterControl, AdapterControls
from strop.proxy.errors import Conflict, EngineNotReady, StropError
from strop.proxy.serving import Serving
from strop.proxy.store.clock import now_ms
from strop.proxy.versions.pairing import Pairings
from strop.proxy.versions.target import Target

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Resident:
    """One version that the engine holds, since `loaded_at` (monotonic)."""

    release: Release
    judgement: Judgement | None
    loaded_at: float = field(default_factory=time.monotonic)
    since_ms: int = field(default_factory=now_ms)
    is_draining: bool = False


class Residents:
    """What one engine holds.

    Args:
        serving: the engine that serves, and its alias.
        control: how its versions are loaded.
        pairings: how far the engine's base lies from the one that is trained.
        on_unloaded: told of each version that was unloaded because it was no longer needed.

    Attributes:
        lock: held by whoever changes what the engine holds.
        drains: wait for requests to end, to unload what they hold.
    """

    def __init__(
        self,
        serving: Serving,
        control: AdapterControls,
        pairings: Pairings,
        on_unloaded: Callable[[str], None],
    ) -> None:
        self.control = control
        self.lock = asyncio.Lock()
        self._serving = serving
        self._pairings = pairings
        self._on_unloaded = on_unloaded
        self._held: dict[str, Resident] = {}
        self.drains: set[asyncio.Task[None]] = set()

    @property
    def has_one_slot(self) -> bool:
        """Whether loading a version displaces what was served, be it the base."""
        return self._serving.engine.capabilities.adapters == 1

    def get(self, version: str) -> Resident | None:
        """Return what the engine holds of `version`."""
        return self._held.get(version)

    def all(self) -> tuple[Resident, ...]:
        """Return all that the engine holds, draining ones too."""
        return tuple(self._held.values())

    def occupant(self) -> Release:
        """Return what the one slot of the engine is taken by."""
        held = next(iter(self._held.values()), None)
        return held.release if held is not None else self.base()

    def base(self) -> Release:
        """Return the base as a version that can be activated."""
        return Release(BASE, self._serving.alias.base.name)

    def targets(self) -> list[Target]:
        """Return the engines that a version is loaded on, as a switch sees them.

        Of several, those that get requests; while none does, all that can be asked.

        Raises:
            EngineNotReady: there is none: what is done to all of them would be done to nobody.
        """
        members = self._members()
        are_in = [r.engine.upstream.url for r in self._serving.engine.replicas if r.is_in]
        chosen = [members[url] for url in are_in if url in members]
        return [self.target(control) for control in chosen or members.values()]

    def _members(self) -> Mapping[str, AdapterControl]:
        if members := self.control.members():
            return members
        raise EngineNotReady("no engine answers now, so none can be asked for its versions")

    def target(self, control: AdapterControl) -> Target:
        """Return one engine as a switch sees it."""
        alias, capabilities = self._serving.alias, self._serving.engine.capabilities
        others: dict[str, None] = {}
        if not self.has_one_slot:
            others = dict.fromkeys((alias.base.name, alias.active.name))
            if not alias.is_served:
                del others[alias.active.name]
        return Target(
            control,
            base=alias.base.name,
            others=tuple(others),
            can_score=capabilities.score_tokens,
            dtype=capabilities.dtype,
            pairings=self._pairings,
            has_one_slot=self.has_one_slot,
        )

    async def name_for(self, version: str, folder: Path, suffix: str) -> str:
        """Return the name to load `version` under: with `suffix` where another home has it."""
        name, own = f"{self._serving.alias.name}@{version}", str(folder)
        loaded = (await _loaded(self._members())).values()
        return name if all(held.get(name, own) == own for held in loaded) else f"{name}.{suffix}"

    def add(self, release: Release, judgement: Judgement | None) -> None:
        """Note that the engine holds `release`, proven; at one slot, nothing else any more."""
        if self.has_one_slot:
            self._held.clear()
        if release.folder is not None:
            self._held[release.version] = Resident(release, judgement)

    def alias(self, active: Served | None = None) -> Alias:
        """Return the alias of what is held now; `active` where that is another from here on."""
        alias = self._serving.alias
        versions: dict[str, Served] = {}
        if not (self.has_one_slot and self._held):
            versions[BASE] = alias.base
        for version, resident in self._held.items():
            if not resident.is_draining:
                versions[version] = self.served(resident.release)
        return alias.serving(versions, active)

    def served(self, release: Release) -> Served:
        """Return `release` as requests get it."""
        return Served(release.version, release.name, self._serving.base)

    def keep(self, version: str) -> None:
        """Take back that `version` was to be unloaded."""
        self._held[version].is_draining = False
        self._serving.put(self.alias())

    def make_room(self, wanted: str = BASE) -> None:
        """Let go of those used least recently, above what the engine has room for.

        Not of the active version, and not of `wanted`: nobody holds it yet, but somebody waits.
        """
        kept = [r for r in self._held.values() if not r.is_draining]
        needed = (wanted, self._serving.alias.active.version)
        spare = [r for r in kept if r.release.version not in needed]
        spare.sort(key=self._last_used)
        for resident in spare[: max(0, len(kept) - self._serving.engine.capabilities.adapters)]:
            resident.is_draining = True
            task = asyncio.create_task(self._drain(resident))
            self.drains.add(task)
            task.add_done_callback(self.drains.discard)
        self._serving.put(self.alias())

    def _last_used(self, resident: Resident) -> tuple[bool, float]:
        leases, version = self._serving.leases, resident.release.version
        return leases.count(version) > 0, max(resident.loaded_at, leases.idle_since(version))

    async def _drain(self, resident: Resident) -> None:
        release, leases = resident.release, self._serving.leases
        while True:
            await leases.wait_until_free(release.version)
            async with self.lock:
                await self._serving.have_moved()
                if not resident.is_draining or self._held.get(release.version) is not resident:
                    return
                if leases.count(release.version):
                    # A request gives its hold back for as long as it asks for what was lost.
                    continue
                del self._held[release.version]
                try:
                    await self._unload(release)
                except StropError as error:
                    # What is left there is unloaded when the engine is looked at next.
                    extra = {"version": release.version, "reason": error.message}
                    log.warning("a version could not be unloaded", extra=extra)
                self._on_unloaded(release.version)
                return

    async def drop(self, version: str) -> None:
        """Unload `version`, which nobody may hold.

        Raises:
            Conflict: somebody has come to hold it.
            UpstreamError: the engine can't be asked, or refuses; it is still resident then.
        """
        resident = self._held[version]
        resident.is_draining = True
        self._serving.put(self.alias())
        await self._serving.have_moved()
        try:
            if self._serving.leases.count(version):
                raise Conflict(f"requests hold {version}; try again when they ended")
            await self._unload(resident.release)
        except StropError:
            self.keep(version)
            raise
        del self._held[version]

    async def _unload(self, release: Release) -> None:
        """Unload it wherever it may be."""
        targets = map(self.target, self._members().values())
        await asyncio.gather(*(target.unload(release) for target in targets))

    async def reconcile(self, is_stray: Callable[[str], bool]) -> set[str]:
        """Compare with what the engine says it holds: forget what it lost, unload what is too much.

        Args:
            is_stray: whether what is loaded from a folder is to be unloaded if it isn't resident.

        Returns:
            The labels of those of several engines that lack what others hold.

        Raises:
            UpstreamError: the engine can't be asked.
        """
        # One may leave meanwhile, and can be asked all the same.
        members = self._members()
        loaded = await _loaded(members)
        lacking: set[str] = set()
        for version, resident in [*self._held.items()]:
            release = resident.release
            at = {n for n, held in loaded.items() if held.get(release.name) == str(release.folder)}
            if not at:
                log.warning("the engine has lost a version", extra={"version": version})
                del self._held[version]
            elif not resident.is_draining:
                lacking |= loaded.keys() - at
        # At one slot, what is too much displaces the base: nobody gets that before it is gone.
        if not self.has_one_slot:
            self._show()
        names = {resident.release.name for resident in self._held.values()}
        replicas = self._serving.engine.replicas
        out = {one.engine.upstream.url for one in replicas if not one.is_in}
        for label, held in loaded.items():
            strays = [n for n, folder in held.items() if n not in names and is_stray(folder)]
            for name in strays:
                log.info("unloading a version that is not wanted", extra={"served": name})
                try:
                    await members[label].unload(name)
                except StropError as error:
                    if label not in out:
                        raise
                    # It gets no requests, and holds up nobody who does.
                    extra = {"served": name, "engine": label, "reason": error.message}
                    log.warning("a version could not be unloaded", extra=extra)
        self._show()
        return lacking

    async def has_loaded(self, folder: Path) -> bool:
        """Return whether an engine that can be asked lists what lies in `folder`."""
        loaded = await _loaded(self._members())
        return any(str(folder) in held.values() for held in loaded.values())

    def _show(self) -> None:
        """Let the alias say what is held, if it says something else."""
        alias = self.alias()
        if self._serving.alias.versions != alias.versions:
            self._serving.put(alias)


async def _loaded(members: Mapping[str, AdapterControl]) -> dict[str, Mapping[str, str]]:
    """Return what each engine holds, by label; of several, those that answer."""
    asked = (control.loaded() for control in members.values())
    answers = await asyncio.gather(*asked, return_exceptions=True)
    held, error = {}, None
    for label, answer in zip(members, answers, strict=True):
        if isinstance(answer, StropError):
            error = answer
        elif isinstance(answer, BaseException):
            raise answer
        else:
            held[label] = answer
    if not held and error is not None:
        raise error
    return held
