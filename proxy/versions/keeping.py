"""Keeping the engine to what it should serve: after its restart, and when a pin asks for more.

Activates nothing, but at the start: the base where the engine has another one now, and what that
displaced where its own is back.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator

import orjson

from strop.proxy.alias import BASE
from strop.proxy.engines.base import EngineState
from strop.proxy.engines.replica import Replica
from strop.proxy.errors import EngineNotReady, StropError, UnknownModel, VersionNotServed
from strop.proxy.serving import Serving
from strop.proxy.store.version_records import Version
from strop.proxy.versions.displaced import START, displaced
from strop.proxy.versions.loading import REASONS, RETRY_S, Loader
from strop.proxy.versions.shelf import Shelf

log = logging.getLogger(__name__)


class VersionKeeper:
    """What the watch and the relay ask for: see `serving.Keeper`.

    Args:
        shelf: the versions at rest.
        serving: the engine and its alias.
        loader: None where the engine can't serve adapters.
        identify: finds the identity of the base; asked once the engine answers, for what it
            serves may have to be fetched first.

    Attributes:
        has_begun: whether the engine has answered, and its base is known as far as it can be.
    """

    def __init__(
        self,
        shelf: Shelf,
        serving: Serving,
        loader: Loader | None,
        identify: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._shelf = shelf
        self._versions = shelf.store.versions
        self._serving = serving
        self._loader = loader
        self._identify = identify
        self.has_begun = False
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._probing: asyncio.Task[None] | None = None

    async def keep(self, state: EngineState) -> None:
        """Look at what the engine holds, and mend it; see `Keeper.keep`."""
        loader = self._loader
        if not self.has_begun:
            base = None
            if self._serving.engine.capabilities.is_local:
                base = await self._identify()
            if loader is not None:
                # First: who knows the base trains and promotes from what is active.
                await self._agree(loader, base)
            self._serving.identify(base)
            self.has_begun = True
        if self._shelf.awaits_probes and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._make_probes())
        if loader is None:
            await self._shelf.sweep()
            for replica in self._fit():
                replica.enter()
            return
        await loader.pairings.check(state, self._serving.base)
        residents = loader.residents
        # Now: a version may take minutes to be loaded.
        self._leave_out()
        if residents.lock.locked() and self._serving.alias.is_served:
            # Whoever holds it asks the engine too, and finds out as well.
            return
        async with residents.lock:
            # First: without the active version, there is still the base, and what is pinned.
            await self._admit(loader, await loader.reconcile())
            await self._shelf.sweep()
            if not self._serving.alias.is_served:
                await self._restore(loader)

    async def _agree(self, loader: Loader, base: str | None) -> None:
        """Let what is active be of `base`, the engine's; None where that isn't known.

        Raises:
            StoreUnavailable: it can't be recorded.
        """
        alias = self._serving.alias
        version = alias.active.version
        if version == BASE:
            return
        row = await self._versions.existing(version)
        is_displaced = version == await displaced(self._versions)
        if not is_displaced and base in (None, row.base):
            return
        if base == row.base and await self._is_whole(loader, row):
            reason = "the engine serves its base again"
            # As if it had never left: a rollback goes where it went before that.
            await self._versions.activate(
                version, actor=START, kind="rolled_back", detail=orjson.dumps({"reason": reason})
            )
            log.info("a version is active again", extra={"version": version, "reason": reason})
            return
        if base is None:
            reason = f"whether {version} is of the base here isn't known: set model.base"
        elif base == row.base:
            reason = f"{version} is not as it was"
        else:
            reason = (
                f"{version} is of another base than the engine serves now; it serves again at a"
                f" start with its own, unless another is activated before{await self._other(base)}"
            )
        if not is_displaced:
            # Else it is written down already, and serves even where nothing can be.
            detail = orjson.dumps({"reason": reason})
            await self._versions.activate(BASE, actor=START, detail=detail)
        log.warning("the base serves", extra={"reason": reason})
        self._serving.put(alias.serving(alias.versions, alias.base))

    async def _other(self, base: str) -> str:
        """Return what to say of the version of `base` that served last; empty if none did."""
        bases = {row.id: row.base for row in await self._versions.list()}
        below = (await self._versions.activation()).below
        found = next((version for version in below if bases.get(version) == base), None)
        return f"; {found} is of this one (`adapters activate {found}`)" if found else ""

    async def _is_whole(self, loader: Loader, row: Version) -> bool:
        try:
            await self._shelf.check(row, base=row.base, force=True)
            await self._shelf.verify(row.id)
        except REASONS as error:
            await loader.note_failure(row.id, START, error)
            return False
        return True

    async def _make_probes(self) -> None:
        try:
            await self._shelf.make_probes(base=self._serving.base)
        except (StropError, OSError) as error:
            log.warning("a probe was not made", extra={"reason": str(error)})

    async def mend(self, loader: Loader) -> set[str]:
        """Find out what the engine holds; let each of several have what it lacks, or no requests.

        For who is about to load a version: where the active one is gone, no probe can ask for it.
        Returns the labels of those of several that lacked something.
        """
        lacking = await loader.reconcile()
        await self._admit(loader, lacking)
        if not self._serving.alias.is_served:
            # Then the watch restores it, once the lock is free.
            self._serving.suspect()
        return lacking

    def _leave_out(self) -> None:
        """Leave out each of several engines that fails beside one that doesn't.

        Where all fail there is none better, and people see what their engine answers.
        """
        replicas = self._serving.engine.replicas
        if any(one.is_in and not one.failure for one in replicas):
            for replica in replicas:
                if replica.failure and replica.state is not None:
                    replica.leave(replica.failure, answers=True)
                    self._serving.note_change()

    def _fit(self) -> Iterator[Replica]:
        """Give each of several engines that may have requests, and leave out who fails."""
        replicas = [one for one in self._serving.engine.replicas if one.state is not None]
        # Last: the others are in by then, if they can be.
        for replica in sorted(replicas, key=lambda one: bool(one.failure)):
            self._leave_out()
            if not replica.failure or all(one.failure or not one.is_in for one in replicas):
                yield replica

    async def _admit(self, loader: Loader, lacking: set[str]) -> None:
        """Let each of several engines have requests that holds what it should, once it does."""
        for replica in self._fit():
            url = replica.engine.upstream.url
            control = loader.residents.control.members().get(url)
            if control is None or (replica.is_in and url not in lacking):
                continue
            if not replica.is_in and time.monotonic() < replica.retry_at:
                continue
            if replica.is_in:
                replica.leave("it lacks a version", answers=True)
            replica.reason = "it lacks a version"
            try:
                await loader.bring_up(control)
            except StropError as error:
                log.warning("an engine stays out", extra={"engine": url, "reason": error.message})
                replica.reason = error.message
                replica.retry_at = time.monotonic() + RETRY_S
            else:
                replica.enter()
            self._serving.note_change()

    async def _restore(self, loader: Loader) -> None:
        """Load and prove the active version again.

        Raises:
            EngineNotReady: it can't be served.
        """
        version = self._serving.alias.active.version
        try:
            await loader.load(version)
        except StropError as error:
            raise EngineNotReady(
                f"{error.message}; mend that, or activate another version, for instance: strop"
                " adapters activate base"
            ) from error

    async def bring(self, version: str) -> None:
        """Load a pinned version; shared by all requests that wait for it. See `Keeper.bring`."""
        if version not in self._bringing:
            task = asyncio.create_task(self._bring(version))
            self._bringing[version] = task
            task.add_done_callback(lambda task: self._brought(version, task))
        await asyncio.shield(self._bringing[version])

    async def _bring(self, version: str) -> None:
        loader, alias = self._loader, self._serving.alias
        row = None if version == BASE else await self._versions.get(version)
        is_known = version == BASE or (row is not None and row.state != "candidate")
        if loader is None or not is_known:
            removal = await self._versions.removal(version)
            why = "" if removal is None else f" ({removal})"
            raise UnknownModel(
                f"the model '{alias.name}@{version}' does not exist here{why}; the models are: "
                + ", ".join(alias.names()),
                param="model",
            )
        if not self.has_begun:
            # It might be of another base than the engine's.
            raise EngineNotReady("the engine's base is not known yet; try again soon")
        residents = loader.residents
        if residents.has_one_slot and version == alias.active.version:
            raise EngineNotReady(alias.not_served())
        if residents.has_one_slot:
            raise VersionNotServed(
                f"expected a request for {alias.active.version}, the active version, got one for"
                f" {version}; this engine serves one version at a time, so activate it first",
                param="model",
            )
        async with residents.lock:
            if version in self._serving.alias.versions:
                return
            if residents.get(version) is not None:
                residents.keep(version)
            else:
                await self.mend(loader)
                await loader.load(version)
            residents.make_room(version)

    def _brought(self, version: str, task: "asyncio.Task[None]") -> None:
        del self._bringing[version]
        if not task.cancelled():
            # Whoever waited for it may have left.
            task.exception()

    async def reload(self, version: str, asked_at: float) -> bool:
        """Load again what the engine has lost; see `Keeper.reload`."""
        loader = self._loader
        if loader is None or version == BASE:
            return False
        residents = loader.residents
        async with residents.lock:
            resident = residents.get(version)
            entered = (replica.entered_at for replica in self._serving.engine.replicas)
            if resident is not None and max([resident.loaded_at, *entered]) > asked_at:
                return True
            lacking = await self.mend(loader)
            if residents.get(version) is not None:
                return bool(lacking)
            active = self._serving.alias.active.version
            if residents.has_one_slot and version != active:
                raise EngineNotReady(f"{active} has taken its place")
            await loader.load(version)
            residents.make_room(version)
            return True

    async def aclose(self) -> None:
        """Stop what is being loaded."""
        tasks = [*self._bringing.values(), *filter(None, [self._probing])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
