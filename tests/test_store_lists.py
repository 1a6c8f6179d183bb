"""Lists: filters, order, pages; and that every query of the store finds its rows by an index."""

import inspect
import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from store_values import (
    KEY,
    MODEL,
    NOON_MS,
    OTHER_KEY,
    choice,
    completion,
    database_in,
    rate,
    rating,
    record,
)

from strop.proxy.errors import BadRequest, StoreUnavailable
from strop.proxy.store import (
    activations,
    completion_queries,
    completions,
    database,
    feedback,
    feedback_queries,
    run_queries,
    runs,
    training_queries,
    version_queries,
    versions,
)
from strop.proxy.store.database import Query
from strop.proxy.store.records import (
    CompletionFilter,
    FeedbackFilter,
    Revision,
)
from strop.proxy.store.run_records import RunUpdate
from strop.proxy.store.store import Store
from strop.proxy.store.training_queries import Fresh, Rated
from strop.proxy.store.version_records import Pairing

# A row without a table, what a query itself has put together, and the indexes of what waits, of
# what stands and of what runs.
WALKED = (
    "CONSTANT ROW", "SCAN lineage", "SCAN heirs", "SCAN stack", "SCAN steps",
    "USING INDEX feedback_pending", "INDEX feedback_standing", "INDEX runs_unfinished",
)  # fmt: skip


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = database.connect(database_in(tmp_path), synchronous="off")
    yield made
    made.close()


async def listed(store: Store, wanted: CompletionFilter) -> list[str]:
    return [one.id for one in (await store.list_completions(wanted)).data]


async def rated(store: Store, wanted: FeedbackFilter) -> list[str]:
    return [one.completion for one in (await store.list_feedback(wanted)).data]


async def test_completions_are_listed_newest_first(store: Store) -> None:
    """By the time of creation, and by the order of recording within a millisecond."""
    await record(store, "cmp_b", created_ms=NOON_MS)
    await record(store, "cmp_c", created_ms=NOON_MS + 1)
    await record(store, "cmp_a", created_ms=NOON_MS)

    assert ["cmp_c", "cmp_a", "cmp_b"] == await listed(store, CompletionFilter())


async def test_a_listed_completion_says_what_it_is(store: Store) -> None:
    """A summary has the row's head, and counts choices and standing feedback."""
    await record(
        store, "cmp_1", session="mine", stream=True, delivered=False, status=None,
        prompt_tokens=3, completion_tokens=5, total_ms=9.5, choices=(choice(0), choice(1)),
    )  # fmt: skip
    await rate(store, "cmp_1")
    await rate(store, "cmp_1", -1.0)
    await rate(store, "cmp_1", choice=1)

    page = await store.list_completions()
    (found,) = page.data

    assert ("cmp_1", "mine", "cmp_1", None, "complete") == (
        found.id, found.session, found.turn, found.parent, found.state,
    )  # fmt: skip
    assert (True, False, None, 3, 5, 9.5) == (
        found.stream, found.delivered, found.status, found.prompt_tokens,
        found.completion_tokens, found.total_ms,
    )  # fmt: skip
    assert (2, 2, False) == (found.num_choices, found.num_feedback, page.has_more)


async def test_completions_are_filtered(store: Store) -> None:
    """Each filter keeps what it names, and all of them together keep what all name."""
    await record(store, "cmp_1", session="mine", model="m")
    await record(store, "cmp_2", session="mine", model="n", state="upstream_error", choices=())
    await record(store, "cmp_3", session="other", model="m", created_ms=NOON_MS + 10)
    await record(store, "cmp_4", session="mine", model="m", key_id=OTHER_KEY)
    await rate(store, "cmp_1")
    await rate(store, "cmp_1", rater="ann")
    withdrawn = await rate(store, "cmp_3")
    await store.withdraw(withdrawn.feedback.id, KEY)

    expected = {
        CompletionFilter(session="mine"): ["cmp_4", "cmp_2", "cmp_1"],
        CompletionFilter(state="upstream_error"): ["cmp_2"],
        CompletionFilter(state="complete"): ["cmp_3", "cmp_4", "cmp_1"],
        CompletionFilter(model="n"): ["cmp_2"],
        CompletionFilter(key_id=OTHER_KEY): ["cmp_4"],
        CompletionFilter(since_ms=NOON_MS + 10): ["cmp_3"],
        CompletionFilter(is_rated=True): ["cmp_1"],
        CompletionFilter(is_rated=True, session="other"): [],
        CompletionFilter(is_rated=False): ["cmp_3", "cmp_4", "cmp_2"],
        CompletionFilter(is_rated=False, session="mine", model="m"): ["cmp_4"],
    }

    assert expected == {wanted: await listed(store, wanted) for wanted in expected}


@pytest.mark.parametrize("is_rated", [None, True])
async def test_completions_come_in_pages(store: Store, is_rated: bool | None) -> None:
    """Each page goes on after the last id of the one before, also within one millisecond."""
    for number in range(6):
        await record(store, f"cmp_{number}", created_ms=NOON_MS + number // 4)
        await rate(store, f"cmp_{number}")

    seen: list[str] = []
    mores: list[bool] = []
    after = None
    while not mores or mores[-1]:
        page = await store.list_completions(
            CompletionFilter(is_rated=is_rated), limit=3, after=after
        )
        seen += [one.id for one in page.data]
        after = seen[-1]
        mores.append(page.has_more)

    assert [f"cmp_{number}" for number in range(5, -1, -1)] == seen
    assert [True, False] == mores


async def test_a_page_after_nothing_known_is_refused(store: Store) -> None:
    """`after` must be an id of the list."""
    with pytest.raises(BadRequest, match="got 'cmp_9'"):
        await store.list_completions(after="cmp_9")
    with pytest.raises(BadRequest, match="got 'fb_9'"):
        await store.list_feedback(after="fb_9")


async def test_feedback_is_filtered(store: Store) -> None:
    """Each filter keeps what it names, the newest first, as its current revision says."""
    await record(store, "cmp_1", session="mine")
    await record(store, "cmp_2", session="other")
    await record(store, "cmp_3", key_id=OTHER_KEY, session="mine")
    first = (await rate(store, "cmp_1", -1.0)).feedback
    await rate(store, "cmp_1", 1.0, rater="ann")
    second = (await rate(store, "cmp_2", 1.0)).feedback
    await rate(store, "cmp_3", 0.0, key_id=OTHER_KEY)
    await store.withdraw(second.id, KEY)
    await store.revise(first.id, KEY, Revision(0.5, b"0.5"))

    expected = {
        FeedbackFilter(): ["cmp_3", "cmp_2", "cmp_1", "cmp_1"],
        FeedbackFilter(completion="cmp_1"): ["cmp_1", "cmp_1"],
        FeedbackFilter(session="mine"): ["cmp_3", "cmp_1", "cmp_1"],
        FeedbackFilter(rater="ann"): ["cmp_1"],
        FeedbackFilter(state="withdrawn"): ["cmp_2"],
        FeedbackFilter(state="standing"): ["cmp_3", "cmp_1", "cmp_1"],
        FeedbackFilter(key_id=OTHER_KEY): ["cmp_3"],
        FeedbackFilter(sign="good"): ["cmp_2", "cmp_1", "cmp_1"],
        FeedbackFilter(sign="bad"): [],
        FeedbackFilter(sign="good", session="mine", rater="ann"): ["cmp_1"],
        FeedbackFilter(since_ms=second.created_ms + 60_000): [],
        FeedbackFilter(since_ms=first.created_ms, completion="cmp_1", rater=""): ["cmp_1"],
    }

    assert expected == {wanted: await rated(store, wanted) for wanted in expected}


async def test_feedback_comes_in_pages(store: Store) -> None:
    """Each page goes on after the last id of the one before."""
    await record(store, "cmp_1")
    given = [(await rate(store, "cmp_1", rater=str(i))).feedback.id for i in range(5)]

    first = await store.list_feedback(limit=3)
    rest = await store.list_feedback(limit=3, after=first.data[-1].id)

    assert given[::-1] == [one.id for one in (*first.data, *rest.data)]
    assert (True, False) == (first.has_more, rest.has_more)


async def test_a_closed_store_refuses_reads_and_writes(store: Store) -> None:
    """After the close each call says that the store is closed; closing again is quiet."""
    await store.close()
    await store.close()

    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await store.list_completions()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await rate(store, "cmp_1")


def plan(connection: sqlite3.Connection, sql: str, parameters: Sequence[object] = ()) -> list[str]:
    """The steps in which SQLite carries out a statement."""
    return [step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]


def scans(steps: list[str]) -> list[str]:
    """The steps that walk a whole table, or an index that holds more than what is asked for."""
    return [step for step in steps if step.startswith("SCAN") and not step.endswith(WALKED)]


def one_or_two(values: dict[str, object], kind: type) -> Iterator[dict[str, object]]:
    """No filter, each by itself, and each with each other one."""
    assert {field.name for field in fields(kind)} == set(values)
    for num in range(3):
        for names in itertools.combinations(values, num):
            yield {name: values[name] for name in names}


def completion_filters() -> Iterator[CompletionFilter]:
    values = {
        "key_id": KEY, "session": "mine", "model": "m", "since_ms": NOON_MS,
        "state": "upstream_error", "is_rated": True,
    }  # fmt: skip
    for given in one_or_two(values, CompletionFilter):
        yield CompletionFilter(**given)  # type: ignore[arg-type]
    yield CompletionFilter(is_rated=False)
    yield CompletionFilter(state="complete")


def feedback_filters() -> Iterator[FeedbackFilter]:
    values = {
        "key_id": KEY, "completion": "cmp_1", "session": "mine", "rater": "ann",
        "state": "standing", "sign": "bad", "since_ms": NOON_MS,
    }  # fmt: skip
    for given in one_or_two(values, FeedbackFilter):
        yield FeedbackFilter(**given)  # type: ignore[arg-type]


def every_query() -> Iterator[Query[object]]:
    """Every query of the store, under each of its filters."""
    ids = ["cmp_1", "cmp_2"]
    yield completions.reply_by_chain(KEY, b"x")
    yield completions.reply_by_tail(KEY, b"t", NOON_MS)
    yield completion_queries.whole(ids)
    yield completion_queries.choices(ids)
    yield completion_queries.position("cmp_1")
    for wanted in completion_filters():
        yield completion_queries.newest(wanted, 20)
        yield completion_queries.newest(wanted, 20, (NOON_MS, 5))
    yield feedback_queries.by_id("fb_1")
    yield feedback_queries.position("fb_1")
    yield feedback_queries.revisions("fb_1")
    for asked in feedback_filters():
        yield feedback_queries.newest(asked, 20)
        yield feedback_queries.counts(asked)
        yield feedback_queries.rated(asked, 20)
        yield feedback_queries.standing(asked, ids)
    yield version_queries.by_num(1)
    yield version_queries.newest()
    yield version_queries.events(50)
    for version in ("v1", "base"):
        yield version_queries.events_of(version, 50)
    yield version_queries.stack()
    yield version_queries.pairing("vllm")
    yield run_queries.by_id("run_1")
    yield run_queries.position("run_1")
    yield run_queries.newest(20)
    yield run_queries.unfinished()
    yield run_queries.last_finished()
    yield run_queries.steps("run_1")
    for fresh in (Fresh("v1", MODEL, True), Fresh("base", MODEL, False)):
        yield fresh.counts(NOON_MS)
        yield fresh.versions()
        yield fresh.choices(20)
        yield fresh.choices(20, Rated("cmp_1", 0, "cmp_1"))
    yield training_queries.held_out_choices(MODEL, 20)
    yield training_queries.prior(MODEL)
    yield training_queries.live_rates(MODEL, 0)
    yield training_queries.steps(ids)


def test_every_read_finds_its_rows_by_an_index(connection: sqlite3.Connection) -> None:
    """No query walks a table, whatever it is filtered by."""
    found = {
        query.sql: scans(plan(connection, query.sql, query.parameters)) for query in every_query()
    }

    assert {} == {sql: steps for sql, steps in found.items() if steps}


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (CompletionFilter(), "completions_created"),
        (CompletionFilter(session="mine"), "completions_session"),
        (CompletionFilter(state="shutdown"), "completions_unfinished"),
    ],
)
def test_a_list_is_read_in_its_order(
    connection: sqlite3.Connection, wanted: CompletionFilter, index: str
) -> None:
    """The index that filters also sorts, so a page costs what it shows."""
    query = completion_queries.newest(wanted, 20)

    steps = plan(connection, query.sql, query.parameters)

    assert index in steps[0]
    assert [] == [step for step in steps if "TEMP B-TREE" in step]


def test_the_feedback_of_a_listed_completion_is_found_by_the_completion(
    connection: sqlite3.Connection,
) -> None:
    """For each row of a list, its feedback is looked up, and not all feedback of some state."""
    steps = [
        step
        for wanted in completion_filters()
        for query in [completion_queries.newest(wanted, 20)]
        for step in plan(connection, query.sql, query.parameters)
        if step.startswith("SEARCH f ")
    ]

    assert {"SEARCH f USING INDEX feedback_completion (completion=?)"} == set(steps)


@pytest.mark.parametrize("reopen", [True, False])
def test_what_was_learned_is_passed_over_first(
    connection: sqlite3.Connection, reopen: bool
) -> None:
    """The revision of a learned rating is never read.

    Who learned a rating is looked up in the lineage, not each of the lineage for each rating.
    """
    query = Fresh("v1", MODEL, reopen).counts(0)

    steps = plan(connection, query.sql, query.parameters)

    order = [
        "SEARCH f USING INDEX feedback_lessons (base=? AND held_out=?)",
        "SEARCH l USING PRIMARY KEY (feedback=?)",
        "SEARCH r USING INDEX sqlite_autoindex_feedback_revisions_1 (feedback=? AND revision=?)",
    ]
    assert order == [step for step in steps if step in order]


def test_rated_choices_are_read_in_their_order(connection: sqlite3.Connection) -> None:
    """A page costs what it shows, and what it passes over."""
    for query in (
        Fresh("v1", MODEL, True).choices(20),
        training_queries.held_out_choices(MODEL, 20),
    ):
        steps = plan(connection, query.sql, query.parameters)

        assert any("SEARCH f USING INDEX feedback_standing (" in step for step in steps)
        assert [] == [step for step in steps if "TEMP B-TREE" in step]


def test_every_query_is_among_those_checked() -> None:
    """A query that is added must be added to the check too."""
    checked = inspect.getsource(every_query)
    places = [
        completions, completion_queries, feedback_queries, version_queries, run_queries,
        training_queries, Fresh,
    ]  # fmt: skip
    made = [
        f"{place.__name__.rpartition('.')[2].lower()}.{name}("
        for place in places
        for name, function in inspect.getmembers(place, inspect.isfunction)
        if "Query[" in str(inspect.signature(function).return_annotation)
    ]

    assert 32 == len(made)
    assert [] == [name for name in made if name not in checked]


def test_every_write_finds_its_rows_by_an_index(connection: sqlite3.Connection) -> None:
    """No statement of any operation walks a table."""
    statements: list[str] = []
    connection.set_trace_callback(statements.append)

    def insert(id_: str, **changes: object) -> None:
        completions.insert(connection, completions.pack_completion(completion(id_, **changes)))

    def add(id_: str, **changes: object) -> str:
        new = rating(id_, **changes)  # type: ignore[arg-type]
        return feedback.add(connection, new, is_in_flight=True, now_ms=NOON_MS).feedback.id

    add("cmp_1", idempotency="a")
    add("cmp_1", idempotency="a")
    insert("cmp_1", choices=(choice(chain=b"x", tail=b"t"),), upstream_id="c", session="mine")
    insert("cmp_2", after=b"x")
    insert("cmp_3", after=b"cut", after_tail=b"t")
    given = add("c")
    feedback.revise(connection, given, KEY, Revision(-1.0, b'"bad"'), now_ms=NOON_MS)
    feedback.undo(connection, "mine", KEY, "", now_ms=NOON_MS)
    feedback.withdraw(connection, add("cmp_1"), KEY, now_ms=NOON_MS)
    feedback.withdraw_lost(connection)
    _make_versions(connection, given)
    connection.set_trace_callback(None)

    written = {verb for verb, *_ in (sql.split() for sql in statements)}
    found = {sql: scans(plan(connection, sql)) for sql in statements}
    assert {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"} == written
    assert {} == {sql: steps for sql, steps in found.items() if steps}


def _make_versions(connection: sqlite3.Connection, learned: str) -> None:
    """Do with versions and runs all that can be done."""
    told = {"base": MODEL, "now_ms": NOON_MS}
    said = {"actor": "api", "now_ms": NOON_MS}
    run = runs.create(
        connection, objective="topr", preset="balanced", parent=None, requested_by="cli",
        config=b"{}", **told,
    )  # fmt: skip
    runs.update(connection, run.id, RunUpdate(state="running", num_steps=3), now_ms=NOON_MS)
    runs.add_step(connection, run.id, 1, b"{}", eta_s=None, now_ms=NOON_MS)
    for _ in range(2):
        versions.reserve(connection, parent=None, run=run.id, origin="run", **told)
    versions.publish(
        connection, "v1", manifest=b"{}", feedback=[(learned, 1)], state="ready", reason=None,
        **said,
    )  # fmt: skip
    runs.cancel(connection, run.id, now_ms=NOON_MS)
    runs.update(connection, run.id, RunUpdate(state="cancelled"), now_ms=NOON_MS)
    for state in ("ready", "rejected"):
        made = versions.reserve(connection, parent="v1", run=None, origin="import", **told)
        versions.publish(
            connection, made.id, manifest=b"{}", feedback=[], state=state, reason="no", **said
        )
    activations.activate(connection, "v1", kind="activated", detail=b"{}", **said)
    activations.activate(connection, "v2", kind="activated", detail=b"{}", **said)
    activations.activate(connection, "v1", kind="rolled_back", detail=b"{}", **said)
    versions.set_pinned(connection, "v2", True)
    versions.mark_missing(connection, "v2", "gone", **said)
    versions.add_event(connection, "v2", "unloaded", detail=b"{}", **said)
    versions.remove(connection, "v2", **said)
    feedback.withdraw(connection, learned, KEY, now_ms=NOON_MS)
    activations.set_pairing(connection, Pairing("vllm", "sha256:1", MODEL, 0.1, NOON_MS))
    activations.remove_pairing(connection, "vllm")
