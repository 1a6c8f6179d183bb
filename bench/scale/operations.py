"""What strop asks of its store while it serves: each operation, as the proxy and the CLI do it.

Measures nothing.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from bench.scale.filling import BASE, KEY, MODEL, RARE, Filled, Spot
from strop.proxy.ids import new_id
from strop.proxy.store.records import (
    Choice,
    Completion,
    CompletionFilter,
    ExportFormat,
    FeedbackFilter,
    NewFeedback,
    Revision,
)
from strop.proxy.store.store import Store
from strop.proxy.versions.live_rate import MOST_ANSWERS

Run = Callable[[Store, Filled, Spot], Awaitable[object]]

_LINES: Final = 100
_numbers = count()


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to ask: what it is called, and how it is asked, at a spot of the store."""

    title: str
    run: Run


def everything() -> Iterator[Operation]:
    """Yield each operation; the reads first, which leave the stores as they are."""
    yield from _LOOKUPS
    for title, wanted in _completion_filters():
        yield Operation(f"completions, {title}", _completions(wanted))
    for title, asked in _feedback_filters():
        yield Operation(f"ratings, {title}", _feedback(asked))
        # What a client's own key asks for.
        own = replace(asked, key_id=RARE if asked.rater == RARE else KEY)
        yield Operation(f"ratings, {title}, of one key", _feedback(own))
    yield from _OTHER_LISTS
    for title, exported in _exports():
        yield Operation(f"export, {title}", _export(exported, "kto"))
    yield Operation(f"export raw, {_LINES} answers", _export(FeedbackFilter(), "raw"))
    yield from _WRITES


def _completions(wanted: CompletionFilter) -> Run:
    async def run(store: Store, filled: Filled, spot: Spot) -> None:
        del filled
        await store.list_completions(_there(wanted, spot))

    return run


def _there(wanted: CompletionFilter, spot: Spot) -> CompletionFilter:
    return wanted if wanted.session is None else replace(wanted, session=spot.session)


def _feedback(wanted: FeedbackFilter) -> Run:
    async def run(store: Store, filled: Filled, spot: Spot) -> None:
        del filled
        await store.list_feedback(_of_spot(wanted, spot))

    return run


def _of_spot(wanted: FeedbackFilter, spot: Spot) -> FeedbackFilter:
    if wanted.session is not None:
        wanted = replace(wanted, session=spot.session)
    return replace(wanted, completion=spot.id) if wanted.completion is not None else wanted


def _export(wanted: FeedbackFilter, format_: ExportFormat) -> Run:
    async def run(store: Store, filled: Filled, spot: Spot) -> None:
        del filled
        num_lines = 0
        lines = store.export(format_, _of_spot(wanted, spot))
        async for _ in lines:
            num_lines += 1
            if num_lines == _LINES:
                break
        await lines.aclose()  # type: ignore[attr-defined]  # an async generator has it

    return run


# Newer than all but the newest few of the store.
_RECENT_MS: Final = 10 * 20_000


def _completion_filters() -> Iterator[tuple[str, CompletionFilter]]:
    yield "of a key", CompletionFilter(key_id=KEY)
    yield "of a key seen long ago", CompletionFilter(key_id=RARE)
    yield "of a model", CompletionFilter(model=MODEL)
    yield "of a model used long ago", CompletionFilter(model=RARE)
    yield "of a session", CompletionFilter(session="")
    yield "that are complete", CompletionFilter(state="complete")
    yield "that were cancelled", CompletionFilter(state="client_cancelled")
    yield "that a shutdown cut off", CompletionFilter(state="shutdown")
    yield "rated", CompletionFilter(is_rated=True)
    yield "not rated", CompletionFilter(is_rated=False)
    yield "rated, of a session", CompletionFilter(session="", is_rated=True)
    yield "since long ago", CompletionFilter(since_ms=1)


def _feedback_filters() -> Iterator[tuple[str, FeedbackFilter]]:
    yield "first page", FeedbackFilter()
    yield "of an answer", FeedbackFilter(completion="")
    yield "of a session", FeedbackFilter(session="")
    yield "of a rater", FeedbackFilter(rater="")
    yield "of a rater seen long ago", FeedbackFilter(rater=RARE)
    yield "standing", FeedbackFilter(state="standing")
    yield "withdrawn", FeedbackFilter(state="withdrawn")
    yield "pending", FeedbackFilter(state="pending")
    yield "good", FeedbackFilter(sign="good")
    yield "bad", FeedbackFilter(sign="bad")
    yield "since long ago", FeedbackFilter(since_ms=1)


def _exports() -> Iterator[tuple[str, FeedbackFilter]]:
    yield f"first {_LINES} lines", FeedbackFilter()
    yield f"first {_LINES} lines, of a key", FeedbackFilter(key_id=KEY)
    yield "of a session", FeedbackFilter(session="")
    yield "of a rater seen long ago", FeedbackFilter(rater=RARE)


async def _completions_deep(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    await store.list_completions(after=spot.id)


async def _completions_since(store: Store, filled: Filled, spot: Spot) -> None:
    del spot
    since_ms = filled.newest_ms - _RECENT_MS
    await store.list_completions(CompletionFilter(since_ms=since_ms))


async def _feedback_deep(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    await store.list_feedback(after=spot.feedback)


async def _feedback_since(store: Store, filled: Filled, spot: Spot) -> None:
    del spot
    since_ms = filled.newest_ms - _RECENT_MS
    await store.list_feedback(FeedbackFilter(since_ms=since_ms))


async def _export_since(store: Store, filled: Filled, spot: Spot) -> None:
    since_ms = filled.newest_ms - _RECENT_MS
    await _export(FeedbackFilter(since_ms=since_ms), "kto")(store, filled, spot)


async def _runs_deep(store: Store, filled: Filled, spot: Spot) -> None:
    del spot
    await store.runs.list(limit=20, after=filled.run)


async def _run_steps(store: Store, filled: Filled, spot: Spot) -> None:
    del spot
    await store.runs.get(filled.run)
    await store.runs.list_steps(filled.run)


async def _live_rates(store: Store, filled: Filled, spot: Spot) -> None:
    del spot
    await store.training.rates_around(
        filled.newest_ms - _RECENT_MS, "base", "v1", base=BASE, most=MOST_ANSWERS
    )


async def _status(store: Store, filled: Filled, spot: Spot) -> None:
    del filled, spot
    await store.feedback_counts()
    await store.list_completions(limit=1)
    await store.runs.unfinished()
    await store.versions.activation()


async def _trigger(store: Store, filled: Filled, spot: Spot) -> None:
    del filled, spot
    await store.runs.unfinished()
    active = (await store.versions.activation()).version
    await store.training.fresh_counts(active, base=BASE)
    await store.runs.last_finished()


async def _fresh_versions(store: Store, filled: Filled, spot: Spot) -> None:
    del filled, spot
    active = (await store.versions.activation()).version
    await store.training.fresh_versions(active, base=BASE)


async def _first_turns(store: Store, filled: Filled, spot: Spot) -> None:
    del filled, spot
    active = (await store.versions.activation()).version
    turns = store.training.fresh_turns(active, base=BASE)
    await anext(turns, None)
    await turns.aclose()  # type: ignore[attr-defined]  # an async generator has it


_LOOKUPS: Final = (
    Operation("session by the whole history", lambda s, _, at: s.find_reply(KEY, at.chain, None)),
    Operation("session by its end", lambda s, _, at: s.find_reply(KEY, b"?", at.tail)),
    Operation("session of another key", lambda s, _, at: s.find_reply("?", at.chain, at.tail)),
    Operation("session, nothing known", lambda s, _, __: s.find_reply(KEY, b"?", b"?")),
    Operation("an answer, whole", lambda s, _, at: s.get_completion(at.id)),
    Operation("a rating", lambda s, _, at: s.get_feedback(at.feedback)),
    Operation("a rating's revisions", lambda s, _, at: s.list_revisions(at.feedback)),
    Operation("completions, first page", lambda s, _, __: s.list_completions()),
    Operation("completions, a page deep in", _completions_deep),
    Operation("completions, since a moment ago", _completions_since),
)
_OTHER_LISTS: Final = (
    Operation("ratings, a page deep in", _feedback_deep),
    Operation("ratings, since a moment ago", _feedback_since),
    Operation("ratings of a session, counted", lambda s, _, at: s.feedback_counts(at.session, KEY)),
    Operation("runs, first page", lambda s, _, __: s.runs.list()),
    Operation("runs, a page deep in", _runs_deep),
    Operation("a run and its steps", _run_steps),
    Operation("versions", lambda s, _, __: s.versions.list()),
    Operation("events, newest", lambda s, _, __: s.versions.list_events()),
    Operation("events of a version", lambda s, f, __: s.versions.list_events(f.version)),
    Operation("events of the base", lambda s, _, __: s.versions.list_events("base")),
    Operation("`strop status`", _status),
    Operation("the trigger's look", _trigger),
    Operation("whose answers are freshly rated", _fresh_versions),
    Operation("the newest fresh turn", _first_turns),
    Operation("how the newest version is liked", _live_rates),
    Operation("export, since a moment ago", _export_since),
)


def _new(spot: Spot, rating: float = 1.0) -> NewFeedback:
    return NewFeedback(spot.id, KEY, rating, b'"good"', rater="bench")


def _not_in_flight(_: str) -> bool:
    return False


async def _rate(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    await store.add_feedback(_new(spot, 1.0 - next(_numbers) % 3 / 2), _not_in_flight)


async def _rate_by_alias(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    found = await store.get_completion(spot.id)
    assert found is not None
    assert found.completion.upstream_id is not None
    new = replace(_new(spot), completion=found.completion.upstream_id)
    await store.add_feedback(new, _not_in_flight)


async def _revise(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    new = Revision(1.0, b'"good"', comment=f"now {next(_numbers)}")
    await store.revise(spot.feedback, KEY, new)


async def _undo(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    await store.undo(spot.session, KEY, "bench")


async def _rate_and_withdraw(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    outcome = await store.add_feedback(_new(spot), _not_in_flight)
    await store.withdraw(outcome.feedback.id, KEY)


def _completion(spot: Spot, after: bytes | None = None, tail: bytes | None = None) -> Completion:
    made = new_id("cmp")
    return Completion(
        made, spot.created_ms, KEY, "chat", "vllm", MODEL, MODEL, "base", "complete", True, False,
        b'{"messages": []}', base=BASE, after=after, after_tail=tail,
        choices=(Choice(0, b'{"role": "assistant", "content": "hi"}'),),
    )  # fmt: skip


async def _record(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    made = _completion(spot)
    await store.commit_completion(lambda: made, 100)


async def _record_by_chain(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    made = _completion(spot, after=spot.chain)
    await store.commit_completion(lambda: made, 100)


async def _record_by_tail(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    made = _completion(spot, after=b"?", tail=spot.tail)
    await store.commit_completion(lambda: made, 100)


async def _rate_in_flight(store: Store, filled: Filled, spot: Spot) -> None:
    del filled
    made = _completion(spot)
    await store.add_feedback(replace(_new(spot), completion=made.id), lambda _: True)
    await store.commit_completion(lambda: made, 100)


_WRITES: Final = (
    Operation("record an answer", _record),
    Operation("record an answer, parent by its history", _record_by_chain),
    Operation("record an answer, parent by its end", _record_by_tail),
    Operation("rate an answer", _rate),
    Operation("rate an answer by the engine's id", _rate_by_alias),
    Operation("revise a rating", _revise),
    Operation("rate, and take it back", _rate_and_withdraw),
    Operation("undo the last rating of a session", _undo),
    Operation("rate what is in flight, then record it", _rate_in_flight),
)
