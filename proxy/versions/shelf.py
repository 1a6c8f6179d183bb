"""Adapter versions at rest: their rows and their folders, which must agree.

Knows no engine: whether one holds a version is for its caller to find out first.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from strop.adapters import importing, manifest, retention
from strop.adapters.base_model import InvalidBase
from strop.adapters.library import Library
from strop.adapters.manifest import Manifest
from strop.adapters.peft import AdapterNotFound, InvalidAdapter
from strop.adapters.probe import Probe
from strop.configs import installation
from strop.proxy import base_names
from strop.proxy.errors import BadRequest, Conflict, StropError
from strop.proxy.run_requests import AWAITS_RUN
from strop.proxy.store.clock import now_ms
from strop.proxy.store.database import storable
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import Version
from strop.proxy.versions.displaced import to_serve
from strop.proxy.versions.probe_job import ProbeJob

log = logging.getLogger(__name__)

# Engines have limits of their own, and say so when a version is loaded.
MAX_RANK = 512
_GONE = "its folder is gone"


class Shelf:
    """The versions of one home.

    Args:
        store: their rows.
        library: their folders.
        find_base: returns the folder of the base that they are of, where it is on this machine.
        probes: makes the probes of imported ones.
        num_kept: how many are kept besides those that are needed.
        converted: the folder of what was made of them for an engine; it need not be there.
    """

    def __init__(
        self,
        store: Store,
        library: Library,
        *,
        find_base: Callable[[], Path | None],
        probes: ProbeJob,
        num_kept: int,
        converted: Path,
    ) -> None:
        self.store = store
        self._library = library
        self._find_base = find_base
        self._probes = probes
        self._probing = asyncio.Lock()
        self._num_kept = num_kept
        self._converted = converted
        self._orphans: list[str] = []
        self._awaited: set[str] = set()

    def path_of(self, version: str) -> Path:
        """Return a version's folder."""
        return self._library.path_of(version)

    def is_ours(self, folder: str) -> bool:
        """Whether a folder is in this home's library."""
        return Path(folder).is_relative_to(self._library.folder)

    async def check(self, row: Version, *, base: str | None, force: bool) -> None:
        """Raise Conflict where a version is not to be served; `force` lets a stale one pass."""
        if row.state == "candidate":
            raise Conflict(f"{row.id} is still being made; wait for its run")
        if row.state == "rejected":
            raise Conflict(f"{row.id} is rejected: {row.reason or 'no reason is known'}")
        if row.state == "missing":
            raise Conflict(
                f"{row.id} is missing: {row.reason}; put back its folder as it was, from a copy of"
                " the home's adapters, and ask again, or choose another version"
            )
        if base is not None and row.base != base:
            names = await self.store.versions.base_names()
            raise Conflict(
                f"{row.id} was made for the base {names[row.base]}, and the engine serves"
                f" {base_names.shown(base, self._find_base())}; serve its base, or choose another"
                " version"
            )
        if row.stale is not None and not force:
            raise Conflict(
                f"{row.id} is stale: {row.stale}; activate it with --force (over HTTP, force),"
                " or train anew without that rating (`train --relearn`)"
            )

    async def probe_of(self, version: str) -> Probe | None:
        """Return how to tell a version from others.

        Raises:
            InvalidAdapter: its manifest is broken or gone.
        """
        return (await asyncio.to_thread(self._library.read_manifest, version)).probe

    async def verify(self, version: str) -> None:
        """Raise InvalidAdapter unless every file of a version is as it was written."""
        await asyncio.to_thread(self._library.verify, version)

    async def look_for(self, row: Version, *, actor: str) -> Version:
        """Return a version's row; a missing one is its former self where its folder is back, whole.

        Where it isn't, its `reason` says why.
        """
        if row.state != "missing":
            return row
        try:
            found = await asyncio.to_thread(self._library.verify, row.id)
            # A probe may have come since the row was written.
            kept = manifest.loads(row.manifest)
            if replace(found, probe=None) != replace(kept, probe=None):
                raise InvalidAdapter(
                    f"{self.path_of(row.id)} is another home's {row.id}: its manifest is not the"
                    " one that strop keeps"
                )
            if found.probe is None and kept.probe is not None:
                # A copy from before it was made.
                await asyncio.to_thread(self._library.add_probe, row.id, kept.probe)
        except AdapterNotFound:
            reason = _GONE
        except (InvalidAdapter, OSError) as error:
            reason = str(error)
        else:
            log.info("a version that was missing is there again", extra={"version": row.id})
            return self._noted(await self.store.versions.mark_found(row.id, actor=actor))
        if reason == row.reason:
            return row
        return await self.store.versions.mark_missing(row.id, reason, actor=actor)

    async def settle(self) -> None:
        """Make rows and folders agree again after a strop that was killed; for its start.

        What a run that will be resumed has begun stays. Folders without a row are deleted by
        `sweep`, since an engine that runs on may hold them.
        """
        for name in await asyncio.to_thread(self._library.clean):
            log.info("deleted a version that was never finished", extra={"folder": name})
        on_disk = await asyncio.to_thread(self._library.versions_on_disk)
        versions, run = self.store.versions, await self.store.runs.unfinished()
        rows = await versions.list()
        for row in rows:
            if row.state == "candidate":
                if run is None or row.run != run.id:
                    await versions.fail(row.id, "strop ended while it was made", actor="start")
            elif row.state in ("ready", "active", "retired") and row.id not in on_disk:
                await versions.mark_missing(row.id, _GONE, actor="start")
            else:
                self._noted(row)
                await self.look_for(row, actor="start")
        known = {row.id for row in rows}
        self._orphans = [version for version in on_disk if version not in known]

    async def sweep(self) -> None:
        """Delete the folders that had no row at the start; no engine may hold them any more."""
        while self._orphans:
            version = self._orphans.pop()
            log.info("deleting a version that nobody knows", extra={"version": version})
            await self._delete(version)

    async def import_adapter(self, source: Path, *, base: str | None, actor: str) -> Version:
        """Copy a PEFT adapter into a new version, `ready`, with its probe.

        Where no probe can be made, it has none, and its `reason` says why.

        Raises:
            BadRequest: it is no adapter for this base; the message says why.
            Conflict: the base isn't known, or is broken, or a package is missing.
        """
        if base is None:
            raise Conflict(
                "expected to know the base that the engine serves, to compare the adapter with it;"
                " set model.base to its folder or hub id"
            )
        row = await self.store.versions.reserve(base=base, origin="import")
        made = Manifest(version=row.id, base=base, origin="import", created_ms=now_ms())
        try:
            written, reason = await self._bring_in(source, made)
        except Exception as error:
            await self.store.versions.fail(row.id, str(error), actor=actor)
            if (refusal := _refusal(source, error)) is not None:
                raise refusal from error
            raise
        return self._noted(
            await self.store.versions.publish(
                row.id, written, state="ready", actor=actor, reason=reason
            )
        )

    def _noted(self, row: Version) -> Version:
        if row.reason == AWAITS_RUN:
            self._awaited.add(row.id)
        return row

    @property
    def awaits_probes(self) -> bool:
        """Whether a version waits for its probe, and no run trains any more."""
        return bool(self._awaited) and not self._probes.must_wait

    async def make_probes(self, *, base: str | None) -> None:
        """Make the probes that waited for a run to end; of other bases than `base`, they wait on.

        Raises:
            NotFound, Conflict: a version was removed meanwhile, or is missing.
            StoreUnavailable: it can't be recorded.
            OSError: a probe can't be written.
        """
        for version in sorted(self._awaited):
            row = await self.store.versions.get(version)
            if row is None or row.reason != AWAITS_RUN:
                self._awaited.discard(version)
            elif row.base == base:
                await self._make_probe(row)

    async def _make_probe(self, row: Version) -> None:
        library, versions, reason = self._library, self.store.versions, None
        file = self.path_of(row.id) / manifest.FILE
        try:
            made = await asyncio.to_thread(library.verify, row.id)
            # Else it was written by a strop that was killed before it could say so.
            if made.probe is None:
                with library.scratch() as scratch:
                    async with self._probing:
                        found = await self._probes.make(self._find_base(), file.parent, scratch)
                if found == AWAITS_RUN:
                    return
                if isinstance(found, str):
                    reason = found
                else:
                    await asyncio.to_thread(library.add_probe, row.id, found)
        except InvalidAdapter as error:
            await versions.mark_missing(row.id, str(error), actor="watch")
            return
        written = await asyncio.to_thread(file.read_bytes)
        await versions.amend(row.id, written, reason=reason, actor="watch")
        self._awaited.discard(row.id)
        log.info("made a probe", extra={"version": row.id, "reason": reason})

    async def _bring_in(self, source: Path, made: Manifest) -> tuple[bytes, str | None]:
        """Add the adapter at `source` to the library; return its manifest, and why it has no probe.

        The probe is made of a copy that was checked, not of what may change meanwhile.
        """
        base = self._find_base()
        with self._library.scratch() as scratch:
            copy = scratch / "adapter"
            copy.mkdir()
            await asyncio.to_thread(importing.bring_in, source, copy, base, max_rank=MAX_RANK)
            async with self._probing:
                found = await self._probes.make(base, copy, scratch)
            reason = None
            if isinstance(found, str):
                reason = found
                log.warning("no probe", extra={"version": made.version, "reason": reason})
            else:
                made = replace(made, probe=found)

            def move(folder: Path) -> None:
                for file in copy.iterdir():
                    file.rename(folder / file.name)

            folder = await asyncio.to_thread(self._library.create, made.version, move, made)
        return await asyncio.to_thread((folder / manifest.FILE).read_bytes), reason

    async def remove(self, version: str, *, actor: str) -> None:
        """Delete a version that no engine holds: its row first, so that it is never half there."""
        await self.store.versions.remove(version, actor=actor)
        await self._delete(version)

    async def _delete(self, version: str) -> None:
        """Delete the files of a version without a row; what can't be, the next start tries."""
        try:
            await asyncio.to_thread(self._delete_files, version)
        except OSError as error:
            extra = {"version": version, "reason": str(error)}
            log.warning("a version's folder could not be deleted", extra=extra)

    def _delete_files(self, version: str) -> None:
        # Whichever engine serves now. First: a start finds what is left by the other folder.
        for one in self._converted.glob(f"{version}*"):
            if one.name.partition("-")[0] == version:
                shutil.rmtree(one)
        self._library.remove(version)

    async def removable(self, *, base: str | None, on_engines: Collection[str]) -> tuple[str, ...]:
        """Return the versions that retention lets go, oldest first."""
        versions = self.store.versions
        activation = await versions.activation()
        run = await self.store.runs.unfinished()
        # There it is trained anew, while what serves, or waits for its base, is stale or gone.
        named = {await versions.clean_ancestor(await to_serve(versions))}
        if run is not None and run.parent is not None:
            # Its weights are compared with until the run is over.
            named.add(run.parent)
        if base is not None:
            # They sampled answers whose ratings are still to be learned from.
            named |= await self.store.training.fresh_versions(activation.version, base=base)
        return retention.removable(
            [
                retention.Held(row.id, row.num, row.state, row.is_kept)
                for row in await versions.list()
            ],
            active=activation.version,
            previous=activation.previous,
            named=named,
            on_engines=on_engines,
            keep=self._num_kept,
        )


def _refusal(source: Path, error: Exception) -> StropError | None:
    """Return what to tell who wants to import `source`; None where nothing like that was expected.

    It is sent as UTF-8, which not every path is.
    """
    if isinstance(error, InvalidBase):
        why = f"{source} can't be compared with the base, so it is not imported: {error}"
        return Conflict(storable(why))
    if isinstance(error, ModuleNotFoundError):
        return Conflict(
            f"to read an adapter's weights takes the package {error.name}, which is missing:"
            f" {installation.install_backend()}"
        )
    if isinstance(error, InvalidAdapter | OSError):
        return BadRequest(storable(f"{source} can't be imported: {error}"), param="path")
    return None
