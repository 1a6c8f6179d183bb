"""The store as whoever asks for a training run, makes it or watches it sees it.

Does not know what a run does, or SQL.
"""

from functools import partial

from strop.proxy.store import run_queries, runs
from strop.proxy.store.clock import now_ms
from strop.proxy.store.reader import Reader
from strop.proxy.store.records import Page
from strop.proxy.store.run_records import Run, RunStep, RunUpdate
from strop.proxy.store.writer import Writer


class RunStore:
    """Training runs: one at a time, resumable until it is over."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def create(
        self,
        *,
        objective: str,
        preset: str,
        parent: str | None,
        base: str,
        requested_by: str,
        config: bytes = b"{}",
    ) -> Run:
        """Queue a new run; see `runs.create`."""
        create = partial(
            runs.create,
            objective=objective,
            preset=preset,
            parent=parent,
            base=base,
            requested_by=requested_by,
            config=config,
            now_ms=now_ms(),
        )
        return await self._writer.submit(create, len(config))

    async def update(self, id_: str, new: RunUpdate) -> Run:
        """Change what `new` has of a run; see `runs.update`."""
        return await self._writer.submit(partial(runs.update, id_=id_, new=new, now_ms=now_ms()))

    async def begin_anew(self, id_: str) -> Run:
        """Forget how far a run had come; see `runs.begin_anew`."""
        return await self._writer.submit(partial(runs.begin_anew, id_=id_, now_ms=now_ms()))

    async def add_step(
        self, id_: str, step: int, metrics: bytes, *, eta_s: float | None = None
    ) -> Run:
        """Write down a step's metrics; see `runs.add_step`."""
        add = partial(
            runs.add_step, id_=id_, step=step, metrics=metrics, eta_s=eta_s, now_ms=now_ms()
        )
        return await self._writer.submit(add, len(metrics))

    async def cancel(self, id_: str, *, reason: str = "cancelled by request") -> Run:
        """Ask a run to stop; see `runs.cancel`."""
        return await self._writer.submit(
            partial(runs.cancel, id_=id_, reason=reason, now_ms=now_ms())
        )

    async def get(self, id_: str) -> Run | None:
        """Return a run, or None."""
        return await self._reader.first(run_queries.by_id(id_))

    async def list(self, *, limit: int = 20, after: str | None = None) -> Page[Run]:
        """Return up to `limit` runs, newest first, from the one after the id `after` on.

        Raises:
            BadRequest: there is no run `after`.
        """
        return await self._reader.page(
            run_queries.newest, run_queries.position, limit=limit, after=after
        )

    async def list_steps(self, id_: str) -> tuple[RunStep, ...]:
        """Return a run's steps, in order."""
        return tuple(await self._reader.all(run_queries.steps(id_)))

    async def unfinished(self) -> Run | None:
        """Return the run that isn't over, or None; where no process is at it, it can be resumed."""
        return await self._reader.first(run_queries.unfinished())

    async def last_finished(self, *, base: str | None = None) -> Run | None:
        """Return the newest run that is over, however it ended: of any base, or of this one."""
        return await self._reader.first(run_queries.last_finished(base))
