"""The store, whole: completions and feedback go in durably, and come back as values.

Does not know HTTP, engines, or SQL. Writes go through the process's one writer, reads through a
connection of their own that can't write; neither keeps a transaction open.
"""

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from strop.proxy.errors import StoreUnavailable
from strop.proxy.store import (
    completion_queries,
    completions,
    containing,
    database,
    export,
    feedback,
    feedback_queries,
)
from strop.proxy.store.binding import InFlight
from strop.proxy.store.clock import now_ms
from strop.proxy.store.database import Room, Synchronous
from strop.proxy.store.deletion_store import DeletionStore
from strop.proxy.store.reader import Reader
from strop.proxy.store.records import (
    Completion,
    CompletionFilter,
    CompletionSummary,
    Dialect,
    ExportFormat,
    Feedback,
    FeedbackCounts,
    FeedbackFilter,
    FeedbackOutcome,
    NewFeedback,
    Page,
    Recorded,
    Reply,
    Revision,
    StoredCompletion,
    StoreHealth,
)
from strop.proxy.store.run_store import RunStore
from strop.proxy.store.training_store import TrainingStore
from strop.proxy.store.version_store import VersionStore
from strop.proxy.store.writer import Writer

EVERYTHING: Final = CompletionFilter()
ALL_FEEDBACK: Final = FeedbackFilter()

# Rendered in a thread, between two of the loop's turns: small enough to leave it responsive.
_EXPORT_PAGE: Final = 16
# Held packed, all of them.
_SEARCH_PAGE: Final = 16


class Store:
    """Everything durable, behind one door. Made by `Store.open`; belongs to the running loop.

    Completions and feedback are asked for here, the rest in its parts.

    Attributes:
        versions: adapter versions, and which one is active.
        runs: training runs.
        training: what there is to learn from.
        deletion: what is no longer to be kept.
    """

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader
        self.versions = VersionStore(writer, reader)
        self.runs = RunStore(writer, reader)
        self.training = TrainingStore(reader)
        self.deletion = DeletionStore(writer)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        synchronous: Synchronous = "full",
        busy_timeout_s: float = 5.0,
        is_server: bool = False,
    ) -> "Store":
        """Open the database at `path`, made if missing; its folder must exist.

        Args:
            path: the database file.
            synchronous: `full` keeps what was acknowledged through a power cut, `normal` through a
                killed process.
            busy_timeout_s: how long a write waits for another program's lock.
            is_server: whether completions come through here, and through nobody else: then what
                waits for one now waits for one that was lost, and is withdrawn.

        Raises:
            ConfigError: the file is another program's, or a newer strop's.
            StoreUnavailable: it can't be opened.
        """
        writer = Writer(
            path, synchronous=synchronous, busy_timeout_s=busy_timeout_s, is_server=is_server
        )
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(writer.aclose)
            await writer.open()
            reader = await Reader.open(path, busy_timeout_s=busy_timeout_s)
            undo.push_async_callback(reader.close)
            if is_server:
                # Whether the store takes writes is asked of its health, not found out here.
                with contextlib.suppress(StoreUnavailable):
                    await writer.submit(feedback.withdraw_lost)
            undo.pop_all()
        return cls(writer, reader)

    @property
    def reason(self) -> str | None:
        """Why the store takes no writes, None while it does; cheaper to ask than its health."""
        return self._writer.reason

    @property
    def health(self) -> StoreHealth:
        """Whether the store takes writes, and what waits."""
        return self._writer.health

    def stall(self, reason: str) -> None:
        """Count as a failure of the store that a write takes too long, until one succeeds."""
        self._writer.stall(reason)

    def commit_completion(
        self, build: Callable[[], Completion], size: int
    ) -> "asyncio.Future[Recorded]":
        """Record a completion; the future is done once it is durable.

        `build` runs in the writer's thread, and so does packing. Cancelling the future cancels
        nothing. The future fails with StoreUnavailable if the store does, with Conflict if the
        completion is recorded already, and with what `build` raises.

        Args:
            build: returns the completion.
            size: about how many bytes `build` holds.

        Raises:
            StoreUnavailable: too much waits already, or the store is closed.
        """
        return self._writer.submit_prepared(partial(_prepared, build), size)

    async def note_prompt(self, id_: str, text: str) -> None:
        """Keep the prompt of a completion whose engine gave no ids of it, as that shows it."""
        await self._writer.submit(partial(completions.note_prompt, id_=id_, text=text), len(text))

    async def add_feedback(
        self,
        new: NewFeedback,
        is_in_flight: Callable[[str], bool],
        called: Sequence[InFlight] = (),
    ) -> FeedbackOutcome:
        """Store a rating durably; see `feedback.add` for how it is bound, and its errors.

        Args:
            new: the rating.
            is_in_flight: whether a completion of this id is running; must say so until its commit
                is done.
            called: those that are, where this is known.
        """
        is_running = is_in_flight(new.completion)
        size = len(new.original) + len(new.comment or "") + len(new.correction or "")
        add = partial(
            feedback.add, new=new, is_in_flight=is_running, called=called, now_ms=now_ms()
        )
        return await self._writer.submit(add, size)

    async def revise(self, id_: str, key_id: str | None, new: Revision) -> Feedback:
        """Replace what a feedback says by a new revision; see `feedback.revise`."""
        revise = partial(feedback.revise, id_=id_, key_id=key_id, new=new, now_ms=now_ms())
        return await self._writer.submit(revise, len(new.correction or ""))

    async def withdraw(self, id_: str, key_id: str | None) -> Feedback:
        """Take a feedback back; see `feedback.withdraw`."""
        withdraw = partial(feedback.withdraw, id_=id_, key_id=key_id, now_ms=now_ms())
        return await self._writer.submit(withdraw)

    async def withdraw_lost(self, ids: Sequence[str]) -> int:
        """Withdraw the feedback among `ids` that waits; see `feedback.withdraw_lost`."""
        return await self._writer.submit(partial(feedback.withdraw_lost, ids=tuple(ids)))

    async def undo(self, session: str, key_id: str, rater: str) -> Feedback | None:
        """Withdraw the rater's newest standing rating in a session; see `feedback.undo`."""
        undo = partial(feedback.undo, session=session, key_id=key_id, rater=rater, now_ms=now_ms())
        return await self._writer.submit(undo)

    async def undo_answer(
        self, completion: str, choice: int, key_id: str, rater: str, *, or_above: bool
    ) -> Feedback | None:
        """Withdraw the rater's rating of an answer; see `feedback.undo_answer`."""
        undo = partial(
            feedback.undo_answer,
            completion=completion,
            choice=choice,
            key_id=key_id,
            rater=rater,
            or_above=or_above,
            now_ms=now_ms(),
        )
        return await self._writer.submit(undo)

    async def find_reply(
        self,
        key_id: str,
        after: bytes | None,
        after_tail: bytes | None,
        session: str | None = None,
        follows: str | None = None,
    ) -> Reply | None:
        """Return the recorded choice that a history ends in; see `completions.find_reply`."""
        search = completions.find_reply(key_id, after, after_tail, session, follows, now_ms())
        try:
            query = next(search)
            while True:
                query = search.send(await self._reader.all(query))
        except StopIteration as end:
            found: Reply | None = end.value
            return found

    async def id_of(self, name: str, key_id: str | None = None) -> str:
        """Return the id of the one completion whose answer the engine called `name`.

        Where there is none such, or several, it is `name` itself, which may be strop's own.

        Args:
            name: what a person calls a completion.
            key_id: the key that it must have been asked with; None for any.
        """
        found = await self._reader.all(completion_queries.called(name, key_id))
        return found[0] if len(found) == 1 else name

    async def get_completion(self, id_: str) -> StoredCompletion | None:
        """Return a completion, whole, or None."""
        return (await self._completions([id_])).get(id_)

    async def list_completions(
        self, wanted: CompletionFilter = EVERYTHING, *, limit: int = 20, after: str | None = None
    ) -> Page[CompletionSummary]:
        """Return up to `limit` completions, newest first, from the one after the id `after` on.

        Where they must contain a text, the others are read too, a few at a time.

        Raises:
            BadRequest: there is no completion `after`.
        """
        if wanted.containing is not None:
            return await self._search(wanted, wanted.containing, limit, after)
        newest = partial(completion_queries.newest, wanted)
        return await self._reader.page(
            newest, completion_queries.position, limit=limit, after=after
        )

    async def list_latest(
        self, *, limit: int = 20, before: int | None = None
    ) -> list[tuple[int, str]]:
        """Return `num` and id of the last answers that ended, from the one before `before` on.

        In the order in which they were committed, whatever the clock said.
        """
        return await self._reader.all(completion_queries.latest(limit, before))

    async def count_by_key(self, session: str) -> Counter[str]:
        """Return how many completions of the sessions called `session` each key has."""
        return Counter(await self._reader.all(completion_queries.keys_of(session)))

    async def get_feedback(self, id_: str) -> Feedback | None:
        """Return a feedback as its current revision says, or None."""
        return await self._reader.first(feedback_queries.by_id(id_))

    async def list_revisions(self, id_: str) -> tuple[Feedback, ...]:
        """Return every revision of a feedback, the first one first; the state is today's."""
        return tuple(await self._reader.all(feedback_queries.revisions(id_)))

    async def list_feedback(
        self, wanted: FeedbackFilter = ALL_FEEDBACK, *, limit: int = 20, after: str | None = None
    ) -> Page[Feedback]:
        """Return up to `limit` feedback, newest first, from the one after the id `after` on.

        Raises:
            BadRequest: there is no feedback `after`.
        """
        newest = partial(feedback_queries.newest, wanted)
        return await self._reader.page(newest, feedback_queries.position, limit=limit, after=after)

    async def feedback_counts(
        self, session: str | None = None, key_id: str | None = None
    ) -> FeedbackCounts:
        """Return how many ratings stand; in one session, of one key, or of all."""
        if session is None and key_id is None:
            counts = feedback_queries.standing_counts()
        else:
            wanted = FeedbackFilter(session=session, key_id=key_id, state="standing")
            counts = feedback_queries.counts(wanted)
        ((good, bad, total),) = await self._reader.all(counts)
        return FeedbackCounts(good, bad, total)

    async def room(self) -> Room:
        """Return how much room the database takes."""
        (room,) = await self._reader.all(database.ROOM)
        return room

    async def export(
        self,
        format_: ExportFormat,
        wanted: FeedbackFilter = ALL_FEEDBACK,
        *,
        dialect: Dialect = "chat",
    ) -> AsyncIterator[bytes]:
        """Yield the rated completions as JSON lines, oldest first; see `export`.

        Only standing feedback that `wanted` asks for counts. Between two lines the store may
        change: what is rated meanwhile may or may not be there.
        """
        if format_ == "turns":
            # One at a time: a line can hold a hundred long requests.
            async for turn in self.training.turns(wanted):
                yield await asyncio.to_thread(export.turn_line, turn)
            return
        after = ""
        while ids := await self._reader.all(feedback_queries.rated(wanted, _EXPORT_PAGE, after)):
            given = await self._reader.all(feedback_queries.standing(wanted, ids))
            stored = await self._completions(ids)
            rated = [
                export.Rated(stored[id_], tuple(f for f in given if f.completion == id_))
                for id_ in ids
                # What is rated has choices, unless it was deleted before they were read.
                if id_ in stored and stored[id_].completion.choices
            ]
            for line in await asyncio.to_thread(_render, rated, format_, dialect):
                yield line
            after = ids[-1]

    async def close(self) -> None:
        """Write what waits and close the database; may be called again."""
        try:
            await self._reader.close()
        finally:
            await self._writer.aclose()

    async def _completions(self, ids: list[str]) -> dict[str, StoredCompletion]:
        rows = await self._reader.all(completion_queries.whole(ids))
        choices = await self._reader.all(completion_queries.choices(ids))
        return await asyncio.to_thread(completion_queries.assemble, rows, choices)

    async def _search(
        self, wanted: CompletionFilter, text: str, limit: int, after: str | None
    ) -> Page[CompletionSummary]:
        page = partial(self._reader.page, position=completion_queries.position, limit=_SEARCH_PAGE)
        newest = partial(completion_queries.newest_placed, wanted)
        some = await page(newest, after=after)
        found: list[CompletionSummary] = []
        while True:
            holding = await self._holding(text, [one.id for _, one in some.data])
            found += [one for _, one in some.data if one.id in holding]
            if not some.has_more or len(found) > limit:
                return Page(tuple(found[:limit]), len(found) > limit)
            # By its place: meanwhile the last of these may have been deleted.
            before, _ = some.data[-1]
            some = await page(partial(newest, before=before), after=None)

    async def _holding(self, text: str, ids: list[str]) -> set[str]:
        if not ids:
            return set()
        rows = await self._reader.all(containing.requests(ids))
        choices = await self._reader.all(containing.answers(ids))
        ratings = await self._reader.all(containing.ratings(ids))
        return await asyncio.to_thread(containing.holding, text, rows, choices, ratings)


def _prepared(build: Callable[[], Completion]) -> Callable[[sqlite3.Connection], Recorded]:
    packed = completions.pack_completion(build())
    return lambda connection: completions.insert(connection, packed)


def _render(rated: list[export.Rated], format_: ExportFormat, dialect: Dialect) -> list[bytes]:
    return [line for one in rated for line in export.lines(one, format_, dialect)]
