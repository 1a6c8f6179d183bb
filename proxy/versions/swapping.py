"""Activation: puts the store, the files, the engine and the traffic behind the steps of a switch.

One at a time. The order of the steps, and what is undone where one fails, is `strop.adapters.swap`;
what the engine holds is `residents`. Knows no HTTP.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import orjson

from strop.adapters.swap import Done, Release, Step
from strop.proxy.alias import BASE
from strop.proxy.errors import (
    ActivationFailed,
    Conflict,
    EngineNotReady,
    StoreUnavailable,
    StropError,
)
from strop.proxy.metrics import Metrics
from strop.proxy.serving import Serving
from strop.proxy.store.clock import now_ms
from strop.proxy.store.version_records import Version
from strop.proxy.versions.activation import Loaded, Progress, Switched, Wish
from strop.proxy.versions.displaced import displaced
from strop.proxy.versions.keeping import VersionKeeper
from strop.proxy.versions.loading import REASONS, Loader
from strop.proxy.versions.shelf import Shelf
from strop.proxy.versions.traffic import Traffic

log = logging.getLogger(__name__)

T = TypeVar("T")


class Swapper:
    """Makes a version the one that unpinned requests get, and says where each is loaded.

    Args:
        shelf: the versions at rest.
        serving: the engine and its alias.
        metrics: counts activations.
        identify: finds the identity of the base.
        hold_s: how long requests may be held where the engine has one slot.

    Attributes:
        keeper: what the watch and the relay ask for.
        progress: where an activation under way is; None while there is none.
    """

    def __init__(
        self,
        shelf: Shelf,
        serving: Serving,
        metrics: Metrics,
        *,
        identify: Callable[[], Awaitable[str | None]],
        hold_s: float,
    ) -> None:
        self._shelf = shelf
        self._versions = shelf.store.versions
        self._serving = serving
        self._metrics = metrics
        self._loader: Loader | None = None
        if serving.engine.adapters is not None:
            self._loader = Loader(
                shelf,
                serving,
                serving.engine.adapters,
                hold_s=hold_s,
                on_unloaded=self._unloaded,
            )
        self.keeper = VersionKeeper(shelf, serving, self._loader, identify)
        self.progress: Progress | None = None
        self._running: tuple[str, asyncio.Task[Switched]] | None = None
        self._background: set[asyncio.Task[object]] = set()
        self._pruning: asyncio.Task[None] | None = None
        self._is_to_prune = False
        metrics.active_version.set_function(self._active_num)

    @property
    def can_activate(self) -> bool:
        """Whether the engine's base is known, and it answered when it was last looked at."""
        is_known = self.keeper.has_begun and not self._serving.why_unknown
        return is_known and self._serving.is_answering

    async def activate(self, version: str, *, actor: str, force: bool = False) -> Switched:
        """Make `version`, or `base`, what unpinned requests get; return once it serves.

        Goes on when the caller is cancelled; the same version again joins it.

        Args:
            version: its id.
            actor: who wants it.
            force: whether a stale version is accepted, and one that can't be proven.

        Raises:
            NotFound: there is no such version.
            Conflict: another activation runs, or this version can't be activated.
            ActivationFailed: it was tried; the version before serves on.
            StoreUnavailable: it can't be recorded; the version before serves on.
        """
        return await self._join(version, Wish(actor, force, "activated"))

    async def rollback(self, *, actor: str, reason: str = "") -> Switched:
        """Activate what was active before, and note the reason; raises as `activate`.

        Be it stale: who goes back is in haste, and is told.
        """
        before = (await self._versions.activation()).previous
        if before is None:
            raise Conflict("expected a version to go back to, but none was active before")
        # What served once may serve again: that is what a rollback is for.
        return await self._join(before, Wish(actor, True, "rolled_back", reason))

    async def import_adapter(self, folder: Path, *, actor: str) -> Version:
        """Copy a foreign PEFT adapter into a new version, which is then `ready`.

        Takes as long as it takes to load the base and make its probe; without one, its `reason`
        says why. Goes on when the caller is cancelled.

        Raises:
            BadRequest: it is no adapter for this base; the message says why.
            Conflict: the base isn't known, or no version of it could be served.
            EngineNotReady: the engine has not answered yet, which says what the base is.
        """
        if not self._serving.engine.capabilities.is_local:
            raise self._serves_none()
        self._check_begun()
        if self._serving.why_unknown:
            raise Conflict(self._serving.why_unknown)
        work = self._shelf.import_adapter(folder, base=self._serving.base, actor=actor)
        return await asyncio.shield(self._keep(asyncio.create_task(work)))

    async def remove(self, version: str, *, actor: str) -> None:
        """Unload `version` and delete its folder.

        Raises:
            NotFound: there is no such version.
            Conflict: it is active, being activated, kept, or held by a request.
            UpstreamError: the engine can't be asked whether it holds it.
        """
        loader = self._loader
        if self._running is not None and self._running[0] == version:
            raise Conflict(f"{version} is being activated; wait for it, then activate another one")
        if loader is None:
            await self._shelf.remove(version, actor=actor)
            return
        async with loader.residents.lock:
            await self._remove(loader, version, actor)

    async def _remove(self, loader: Loader, version: str, actor: str) -> None:
        # All of it first: what is refused must not have been unloaded.
        await self._versions.refuse_needed(version)
        if version == self._serving.alias.active.version:
            raise Conflict(f"{version} is active; activate another version first")
        num_leases = self._serving.leases.count(version)
        if num_leases:
            raise Conflict(f"{num_leases} requests hold {version}; try again when they ended")
        # An engine that reads the files of a version again, and finds none, may die of it.
        if loader.residents.get(version) is not None:
            await loader.residents.drop(version)
        await loader.reconcile()
        if await loader.residents.has_loaded(self._shelf.path_of(version)):
            raise Conflict(f"a server that fails still lists {version}; end it, or try again later")
        await self._shelf.remove(version, actor=actor)

    def loaded(self, version: str) -> list[Loaded]:
        """Return where `version` is loaded now."""
        resident = self._loader.residents.get(version) if self._loader else None
        if self._loader is None or resident is None:
            return []
        leases = self._serving.leases.count(version)
        # Of several servers one that answers may have been restarted, and have nothing yet.
        is_in = {one.engine.upstream.url: one.is_in for one in self._serving.engine.replicas}
        return [
            Loaded(label, resident.since_ms, leases, resident.is_draining)
            for label in self._loader.residents.control.members()
            if is_in.get(label, True)
        ]

    async def aclose(self) -> None:
        """Stop what runs in the background; the next start goes on from what the store says."""
        tasks: list[asyncio.Task[object]] = [*self._background]
        if self._running is not None:
            tasks.append(self._running[1])
        if self._loader is not None:
            tasks += self._loader.residents.drains
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.keeper.aclose()

    async def _join(self, version: str, wish: Wish) -> Switched:
        if self._running is None:
            task = asyncio.create_task(self._activate(version, wish))
            self._running = version, task
            self.progress = Progress(version, "verifying", now_ms())
            task.add_done_callback(self._over)
        running, task = self._running
        if running != version:
            raise Conflict(f"{running} is being activated; wait for it, then ask again")
        return await asyncio.shield(task)

    def _over(self, task: "asyncio.Task[Switched]") -> None:
        self._running = self.progress = None
        if not task.cancelled():
            # Whoever waited for it may have left.
            task.exception()

    async def _activate(self, version: str, wish: Wish) -> Switched:
        loader, actor, force = self._ready_loader(version), wish.actor, wish.force
        async with loader.residents.lock:
            former = (await self._versions.activation()).version
            release = await loader.release(version, accepts_stale=force, accepts_unproven=force)
            row = await self._versions.get(version)
            stale = None if row is None else row.stale
            detail = orjson.dumps({"from": former})
            if version == former and version in self._serving.alias.versions:
                if version == BASE and await displaced(self._versions):
                    # Until now nobody had chosen it, and it would make way again.
                    await self._versions.add_event(BASE, "activated", actor=actor, detail=detail)
                await self._serving.have_moved()
                return Switched(version, former, {}, None, stale=stale)
            await self._versions.add_event(version, "activating", actor=actor, detail=detail)
            try:
                done = await self._switch(loader, release, wish)
            except REASONS as error:
                await self._look_again(loader)
                if isinstance(error, StoreUnavailable):
                    # That says nothing of the version: another try may well succeed.
                    raise
                reason = await loader.note_failure(version, actor, error)
                raise ActivationFailed(reason) from error
            loader.residents.make_room()
        loader.try_again()
        self._metrics.activations.labels("switched").inc()
        if done.pause_ms:
            self._metrics.pause.observe(done.pause_ms / 1000)
        log.info("version activated", extra={"version": version, "from": former, "actor": actor})
        if stale is not None:
            log.warning("a stale version serves", extra={"version": version, "reason": stale})
        self._is_to_prune = True
        if self._pruning is None or self._pruning.done():
            self._pruning = self._in_background(lambda: self._prune(loader))
        return Switched(version, former, done.timings_ms, done.judgement, done.pause_ms, stale)

    async def _switch(self, loader: Loader, release: Release, wish: Wish) -> Done:
        residents = loader.residents
        # What was proven serves what it was proven to, unless the engine has been started anew.
        await self.keeper.mend(loader)
        targets = residents.targets()
        switch = loader.switch(release, targets, accepts_unproven=wish.force, on_step=self._at)
        done = switch.done

        async def record(activated: Release) -> None:
            probe = None if done.judgement is None else asdict(done.judgement)
            detail: dict[str, object] = {"timings_ms": done.timings_ms, "probe": probe}
            if wish.reason:
                detail["reason"] = wish.reason
            await self._versions.activate(
                activated.version, actor=wish.actor, kind=wish.kind, detail=orjson.dumps(detail)
            )

        traffic = Traffic(self._serving, residents, done, record, hold_s=loader.hold_s)
        resident = residents.get(release.version)
        if resident is not None:
            done.judgement = resident.judgement
            return await switch.flip(traffic)
        if residents.has_one_slot:
            await switch.in_place(traffic, residents.occupant())
        elif release.version == BASE:
            await switch.flip(traffic)
        else:
            await switch.beside(traffic)
        await loader.pairings.note(self._serving.base, done.judgement)
        return done

    async def _look_again(self, loader: Loader) -> None:
        """Find out what an activation that failed has left."""
        self._metrics.activations.labels("failed").inc()
        try:
            await loader.reconcile()
        except StropError as unreachable:
            log.warning("the engine can't be asked", extra={"reason": unreachable.message})
        self._serving.suspect()

    def _ready_loader(self, version: str) -> Loader:
        engine = self._serving.engine
        # The base can be served by what can't serve versions any more.
        can_serve = version == BASE or engine.capabilities.adapters > 0
        if self._loader is None or not can_serve:
            raise self._serves_none()
        self._check_begun()
        return self._loader

    def _serves_none(self) -> Conflict:
        engine = self._serving.engine
        why = "; ".join(engine.shortfalls) or "serve with one that does, for instance vLLM"
        return Conflict(f"the engine {engine.label} serves no adapters: {why}")

    def _check_begun(self) -> None:
        if not self.keeper.has_begun:
            raise EngineNotReady(f"{self._serving.reason}; try again when the engine is ready")

    def _at(self, step: Step) -> None:
        if self.progress is not None:
            self.progress = Progress(self.progress.version, step, now_ms())

    async def _prune(self, loader: Loader) -> None:
        """Delete the versions that need not be kept."""
        while self._is_to_prune:
            self._is_to_prune = False
            # Nothing is activated meanwhile, so that what need not be kept still needn't be.
            async with loader.residents.lock:
                removable = await self._shelf.removable(
                    base=self._serving.base,
                    on_engines=[one.release.version for one in loader.residents.all()],
                )
                for version in removable:
                    # It may have been kept since, or be continued by a run, or held by a request.
                    with contextlib.suppress(Conflict):
                        await self._remove(loader, version, "watch")
                        extra = {"version": version}
                        log.info("deleted a version by adapters.keep", extra=extra)

    def _unloaded(self, version: str) -> None:
        async def note() -> None:
            await self._versions.add_event(version, "unloaded", actor="watch")

        self._in_background(note)

    def _in_background(self, work: Callable[[], Awaitable[None]]) -> "asyncio.Task[None]":
        async def run() -> None:
            try:
                await work()
            except StropError as error:
                log.warning("left undone", extra={"reason": error.message})

        return self._keep(asyncio.create_task(run()))

    def _keep(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Return a task that ends with strop at the latest, and is not lost before."""
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _active_num(self) -> float:
        try:
            version = self._serving.alias.active.version
        except EngineNotReady:
            return 0
        return 0 if version == BASE else int(version[1:])
