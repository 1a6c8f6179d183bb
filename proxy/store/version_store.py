"""The store as the swap sees it: adapter versions, their events, the active one, the pairings.

Does not know files, engines, or SQL.
"""

from collections.abc import Sequence
from functools import partial

from strop.proxy import base_names
from strop.proxy.store import activations, version_queries, versions
from strop.proxy.store.clock import now_ms
from strop.proxy.store.reader import Reader
from strop.proxy.store.version_records import (
    BASE,
    Activating,
    Activation,
    EventKind,
    Origin,
    Pairing,
    Verdict,
    Version,
    VersionEvent,
    version_num,
)
from strop.proxy.store.writer import Writer


class VersionStore:
    """Adapter versions. An id is `v` and a number, and is never given again."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def reserve(
        self,
        *,
        base: str,
        parent: str | None = None,
        run: str | None = None,
        origin: Origin = "run",
    ) -> Version:
        """Return a new candidate; see `versions.reserve`."""
        reserve = partial(
            versions.reserve, base=base, parent=parent, run=run, origin=origin, now_ms=now_ms()
        )
        return await self._writer.submit(reserve)

    async def publish(
        self,
        id_: str,
        manifest: bytes,
        feedback: Sequence[tuple[str, int]] = (),
        *,
        state: Verdict,
        actor: str,
        reason: str | None = None,
    ) -> Version:
        """Make a candidate what it was judged to be; see `versions.publish`."""
        publish = partial(
            versions.publish,
            id_=id_,
            manifest=manifest,
            feedback=feedback,
            state=state,
            reason=reason,
            actor=actor,
            now_ms=now_ms(),
        )
        return await self._writer.submit(publish, len(manifest))

    async def amend(self, id_: str, manifest: bytes, *, reason: str | None, actor: str) -> Version:
        """Give a version the manifest with its probe, or say why not; see `versions.amend`."""
        amend = partial(
            versions.amend, id_=id_, manifest=manifest, reason=reason, actor=actor, now_ms=now_ms()
        )
        return await self._writer.submit(amend, len(manifest))

    async def fail(self, id_: str, reason: str, *, actor: str) -> Version:
        """Reject a candidate whose folder was never finished; see `versions.fail`."""
        fail = partial(versions.fail, id_=id_, reason=reason, actor=actor, now_ms=now_ms())
        return await self._writer.submit(fail)

    async def mark_missing(self, id_: str, reason: str, *, actor: str) -> Version:
        """Say that a version's folder is gone or broken; see `versions.mark_missing`."""
        mark = partial(versions.mark_missing, id_=id_, reason=reason, actor=actor, now_ms=now_ms())
        return await self._writer.submit(mark)

    async def mark_found(self, id_: str, *, actor: str) -> Version:
        """Say that a missing version's folder is there again; see `versions.mark_found`."""
        mark = partial(versions.mark_found, id_=id_, actor=actor, now_ms=now_ms())
        return await self._writer.submit(mark)

    async def set_kept(self, id_: str, is_kept: bool) -> Version:
        """Say whether retention must keep a version; see `versions.set_kept`."""
        return await self._writer.submit(partial(versions.set_kept, id_=id_, is_kept=is_kept))

    async def refuse_needed(self, id_: str) -> None:
        """Raise where a version can't be removed; see `versions.refuse_needed`."""
        await self._writer.submit(partial(versions.refuse_needed, id_=id_))

    async def remove(self, id_: str, *, actor: str) -> None:
        """Show a version no more; see `versions.remove`."""
        remove = partial(versions.remove, id_=id_, actor=actor, now_ms=now_ms())
        await self._writer.submit(remove)

    async def clean_ancestor(self, id_: str) -> str:
        """Return the newest of a version and its ancestors that is neither stale nor gone.

        The base where there is none; what was removed on the way is passed over.
        """
        found = await self._reader.all(version_queries.clean_ancestor(version_num(id_)))
        return found[0].id if found else BASE

    async def get(self, id_: str) -> Version | None:
        """Return a version, or None where there is none of this id, or it was removed."""
        num = version_num(id_)
        return None if num is None else await self._reader.first(version_queries.by_num(num))

    async def existing(self, id_: str) -> Version:
        """Return a version.

        Raises:
            NotFound: there is none of this id, or it was removed, and when.
        """
        row = await self.get(id_)
        if row is None:
            raise versions.no_such(id_, await self.removal(id_))
        return row

    async def removal(self, id_: str) -> str | None:
        """Return when a version was removed, for people; None where it wasn't, or never was."""
        return versions.removal(id_, await self.list_events(id_, limit=1))

    async def list(self) -> tuple[Version, ...]:
        """Return all versions that weren't removed, newest first."""
        return tuple(await self._reader.all(version_queries.newest()))

    async def base_names(self) -> dict[str, str]:
        """Return what to call the bases of all versions that weren't removed, by their identity."""
        paths: dict[str, str | None] = {}
        for base, path in await self._reader.all(version_queries.base_paths()):
            # The newest that is known; an imported version's base has none.
            paths[base] = path or paths.get(base)
        return {base: base_names.shown(base, path) for base, path in paths.items()}

    async def add_event(
        self, id_: str, kind: EventKind, *, actor: str, detail: bytes = b"{}"
    ) -> VersionEvent:
        """Write down what happened to a version, or to `base`; see `versions.add_event`."""
        add = partial(
            versions.add_event, id_=id_, kind=kind, actor=actor, detail=detail, now_ms=now_ms()
        )
        return await self._writer.submit(add, len(detail))

    async def list_events(
        self, id_: str | None = None, *, limit: int = 50
    ) -> tuple[VersionEvent, ...]:
        """Return the newest events of a version, of `base`, or of all, newest first."""
        if id_ is None:
            return tuple(await self._reader.all(version_queries.events(limit)))
        return tuple(await self._reader.all(version_queries.events_of(id_, limit)))

    async def switch_to(self, id_: str, *, besides: str = "") -> VersionEvent | None:
        """Return the newest event that made a version, or `base`, active; None where there is none.

        Those of the actor `besides` don't count.
        """
        return await self._reader.first(version_queries.switch_to(id_, besides))

    async def activation(self) -> Activation:
        """Return which version is active, and where a rollback goes."""
        return version_queries.activation(await self._reader.all(version_queries.stack()))

    async def activate(
        self, id_: str, *, actor: str, detail: bytes = b"{}", kind: Activating = "activated"
    ) -> Activation:
        """Make a version, or `base`, the active one; see `activations.activate`."""
        activate = partial(
            activations.activate, id_=id_, kind=kind, actor=actor, detail=detail, now_ms=now_ms()
        )
        return await self._writer.submit(activate, len(detail))

    async def pairing(self, engine: str) -> Pairing | None:
        """Return the pairing of an engine, or None."""
        return await self._reader.first(version_queries.pairing(engine))

    async def set_pairing(self, new: Pairing) -> None:
        """Remember an engine's pairing, in the place of an earlier one."""
        await self._writer.submit(partial(activations.set_pairing, new=new))

    async def remove_pairing(self, engine: str) -> None:
        """Forget an engine's pairing, if it has one."""
        await self._writer.submit(partial(activations.remove_pairing, engine=engine))
