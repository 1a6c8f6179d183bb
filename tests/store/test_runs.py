"""Training runs: one at a time, through their states, resumable until they are over."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from store_values import MODEL, OTHER_MODEL, database_in, version
from waiting import until

from strop.proxy.errors import BadRequest, Conflict, NotFound
from strop.proxy.store.clock import now_ms
from strop.proxy.store.run_records import UNFINISHED, Run, RunState, RunUpdate
from strop.proxy.store.store import Store

STATES: tuple[RunState, ...] = get_args(RunState)
WAYS: dict[RunState, tuple[RunState, ...]] = {
    "queued": (),
    "running": ("running",),
    "gating": ("running", "gating"),
    "passed": ("running", "gating", "passed"),
    "rejected": ("running", "rejected"),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def create(store: Store, *, parent: str | None = None, base: str = MODEL) -> Run:
    return await store.runs.create(
        objective="topr", preset="balanced", parent=parent, base=base, requested_by="cli"
    )


async def bring(store: Store, *states: RunState) -> Run:
    """Make a run and bring it through `states`."""
    made = await create(store)
    for state in states:
        made = await store.runs.update(made.id, RunUpdate(state=state))
    return made


async def test_a_new_run_is_queued(store: Store) -> None:
    """It says what was asked for, and is read back equal."""
    await version(store)

    made = await store.runs.create(
        objective="kto", preset="careful", parent="v1", base=MODEL, requested_by="api",
        config=b'{"device":"cpu"}',
    )  # fmt: skip

    expected = Run(
        made.id, made.created_ms, "queued", "kto", "careful", "v1", MODEL, "api",
        config=b'{"device":"cpu"}',
    )  # fmt: skip
    assert made.id.startswith("run_")
    assert expected == made
    assert expected == await store.runs.get(made.id)
    assert await store.runs.get("run_none") is None


async def test_one_run_at_a_time(store: Store) -> None:
    """Another one is refused until the first is over, and told which it is."""
    first = await create(store)

    with pytest.raises(Conflict, match=f"{first.id} is queued; wait for it, or cancel it"):
        await create(store)
    await store.runs.cancel(first.id)

    assert "queued" == (await create(store)).state


async def test_of_runs_asked_for_at_once_one_is_made(store: Store) -> None:
    """The check and the row are one transaction."""
    found = await asyncio.gather(*(create(store) for _ in range(5)), return_exceptions=True)

    assert 1 == sum(isinstance(one, Run) for one in found)
    assert 4 == sum(isinstance(one, Conflict) for one in found)


async def test_a_run_of_another_base_does_not_continue_a_version(store: Store) -> None:
    """Refused where it is asked for, not after training."""
    await version(store)

    with pytest.raises(Conflict, match=r"set model\.base"):
        await create(store, parent="v1", base=OTHER_MODEL)
    with pytest.raises(NotFound):
        await create(store, parent="v2")


async def test_what_a_run_continues_is_not_removed_before_it_is_over(store: Store) -> None:
    """The run compares with it to the end, and what it makes is its child."""
    for _ in range(2):
        await version(store)
    run = await create(store, parent="v1")

    with pytest.raises(Conflict, match=f"{run.id} continues v1"):
        await store.versions.remove("v1", actor="cli")
    await store.versions.remove("v2", actor="cli")
    made = await store.versions.reserve(base=MODEL, parent="v1", run=run.id)
    await store.runs.update(run.id, RunUpdate(state="failed"))
    await store.versions.remove("v1", actor="cli")

    assert "v1" == made.parent


async def test_an_update_changes_what_it_has(store: Store) -> None:
    """All else stays; the times come from the states."""
    made = await bring(store, "running")
    first = await store.runs.update(
        made.id, RunUpdate(num_steps=24, counts=b'{"rating":32}', config=b'{"lr":1}')
    )
    second = await store.runs.update(
        made.id, RunUpdate(state="gating", metrics=b'{"kl":0.1}', reasons=b'["fine"]')
    )

    assert (24, b'{"rating":32}', b'{"lr":1}', "running") == (
        first.num_steps, first.counts, first.config, first.state,
    )  # fmt: skip
    assert (24, b'{"rating":32}', b'{"kl":0.1}', b'["fine"]', "gating") == (
        second.num_steps, second.counts, second.metrics, second.reasons,
        second.state,
    )  # fmt: skip
    assert made.started_ms is not None
    assert (made.started_ms, None) == (second.started_ms, second.finished_ms)


async def test_what_is_left_of_its_steps_says_nothing_of_the_gate(store: Store) -> None:
    """A run whose steps are done isn't over in no time; nor is it known of one that is resumed."""
    made = await bring(store, "running")
    learning = await store.runs.add_step(made.id, 1, b'{"loss":3}', eta_s=20.0)

    resumed = await store.runs.update(made.id, RunUpdate(state="running"))
    await store.runs.add_step(made.id, 2, b'{"loss":3}', eta_s=10.0)
    judged = await store.runs.update(made.id, RunUpdate(state="gating"))

    assert (20.0, None, None) == (learning.eta_s, resumed.eta_s, judged.eta_s)


async def test_a_run_that_is_over_has_an_end_and_nothing_left_to_do(store: Store) -> None:
    """A resumed one keeps its first start."""
    made = await bring(store, "running", "gating", "running")
    await store.runs.add_step(made.id, 1, b'{"loss":3}', eta_s=5.0)
    await store.runs.update(made.id, RunUpdate(state="gating"))

    over = await store.runs.update(made.id, RunUpdate(state="passed"))

    assert made.started_ms == over.started_ms
    assert over.finished_ms is not None
    assert over.eta_s is None


@pytest.mark.parametrize("state", STATES)
async def test_states_follow_one_another(store: Store, state: RunState) -> None:
    """Each state allows those that may follow; a run that is over allows none, not even itself."""
    follow: dict[RunState, set[RunState]] = {
        "queued": {"queued", "running", "failed", "cancelled"},
        "running": {"running", "gating", "rejected", "failed", "cancelled"},
        "gating": {"gating", "running", "passed", "rejected", "failed", "cancelled"},
    }

    allowed = set()
    for next_state in STATES:
        made = await bring(store, *WAYS[state])
        assert state == made.state
        try:
            await store.runs.update(made.id, RunUpdate(state=next_state))
            allowed.add(next_state)
        except Conflict:
            assert made == await store.runs.get(made.id)
        if unfinished := await store.runs.unfinished():
            await store.runs.update(unfinished.id, RunUpdate(state="failed"))

    assert follow.get(state, set()) == allowed


async def test_an_update_that_is_refused_changes_nothing(store: Store) -> None:
    """Neither the state nor what came with it."""
    made = await create(store)

    with pytest.raises(Conflict, match="expected one of running, failed, cancelled after queued"):
        await store.runs.update(made.id, RunUpdate(state="passed", num_steps=9))
    with pytest.raises(NotFound):
        await store.runs.update("run_none", RunUpdate(num_steps=9))

    assert made == await store.runs.get(made.id)


async def test_steps_are_kept_in_order_and_shown_on_the_run(store: Store) -> None:
    """A step that is done again after a crash replaces what it said."""
    made = await bring(store, "running")

    for step, metrics, eta_s in (
        (1, b'{"loss":3}', 20.0), (2, b'{"loss":2}', 10.0), (2, b'{"loss":1.5}', None),
    ):  # fmt: skip
        shown = await store.runs.add_step(made.id, step, metrics, eta_s=eta_s)

    steps = await store.runs.list_steps(made.id)
    assert [(1, b'{"loss":3}'), (2, b'{"loss":1.5}')] == [(one.step, one.metrics) for one in steps]
    assert (2, b'{"loss":1.5}', None) == (shown.step, shown.metrics, shown.eta_s)
    assert () == await store.runs.list_steps("run_none")


async def test_a_run_that_begins_anew_shows_the_steps_it_takes_then(store: Store) -> None:
    """It may take fewer."""
    made = await bring(store, "running")
    for step in (1, 2, 3):
        await store.runs.add_step(made.id, step, b"{}")

    await store.runs.add_step(made.id, 1, b'{"loss":9}')

    steps = await store.runs.list_steps(made.id)
    assert [(1, b'{"loss":9}')] == [(one.step, one.metrics) for one in steps]


async def test_of_a_run_that_begins_anew_nothing_is_left(store: Store) -> None:
    """It counts from then: what was rated since its first start, it can learn."""
    run = await bring(store, "running")
    assert run.started_ms is not None
    before = await store.runs.update(run.id, RunUpdate(num_steps=9, counts=b'{"examples": 3}'))
    await store.runs.add_step(run.id, 1, b'{"loss": 1}', eta_s=3.0)
    await until(lambda: now_ms() > (run.started_ms or 0))

    anew = await store.runs.begin_anew(run.id)

    assert (anew.started_ms or 0) > run.started_ms
    assert replace(run, started_ms=anew.started_ms) == anew != before
    assert () == await store.runs.list_steps(run.id)


@pytest.mark.parametrize("state", ["passed", "rejected", "failed", "cancelled"])
async def test_a_run_that_is_over_does_not_begin_anew(store: Store, state: RunState) -> None:
    """What it did stays."""
    run = await bring(store, *WAYS[state])

    with pytest.raises(Conflict, match="expected a run that isn't over"):
        await store.runs.begin_anew(run.id)


async def test_a_run_that_is_over_takes_no_step(store: Store) -> None:
    """Nor does one that isn't there."""
    made = await bring(store, "failed")

    with pytest.raises(Conflict, match="is failed"):
        await store.runs.add_step(made.id, 1, b"{}")
    with pytest.raises(NotFound):
        await store.runs.add_step("run_none", 1, b"{}")
    assert () == await store.runs.list_steps(made.id)


async def test_cancelling_a_run_that_has_not_begun_ends_it(store: Store) -> None:
    """At once; cancelling it again is the same."""
    made = await create(store)

    first = await store.runs.cancel(made.id, reason="nobody wants it")
    again = await store.runs.cancel(made.id)

    assert ("cancelled", True) == (first.state, first.is_cancelling)
    assert b'["nobody wants it"]' == first.reasons
    assert first.finished_ms is not None
    assert first == again


@pytest.mark.parametrize("states", [("running",), ("running", "gating")])
async def test_cancelling_a_run_at_work_asks_it_to_stop(
    store: Store, states: tuple[RunState, ...]
) -> None:
    """Whoever is at it sees that with its next step, and ends it."""
    made = await bring(store, *states)

    asked = await store.runs.cancel(made.id)
    seen = await store.runs.add_step(made.id, 1, b"{}")
    over = await store.runs.update(made.id, RunUpdate(state="cancelled"))

    assert (states[-1], True, True) == (asked.state, asked.is_cancelling, seen.is_cancelling)
    assert ("cancelled", b'["cancelled by request"]') == (over.state, over.reasons)


@pytest.mark.parametrize("state", ["passed", "rejected", "failed"])
async def test_what_is_over_cannot_be_cancelled(store: Store, state: RunState) -> None:
    """It says how the run ended."""
    made = await bring(store, *WAYS[state])

    with pytest.raises(Conflict, match=f"is {state}"):
        await store.runs.cancel(made.id)
    with pytest.raises(NotFound):
        await store.runs.cancel("run_none")


async def test_a_run_of_a_dead_process_can_be_resumed(tmp_path: Path) -> None:
    """It is found at the next start, as it was, and goes on."""
    first = await Store.open(database_in(tmp_path))
    made = await bring(first, "running", "gating")
    await first.close()

    second = await Store.open(database_in(tmp_path), is_server=True)
    found = await second.runs.unfinished()
    resumed = await second.runs.update(made.id, RunUpdate(state="running"))
    await second.close()

    assert made == found
    assert ("running", made.started_ms) == (resumed.state, resumed.started_ms)


async def test_the_unfinished_and_the_last_finished_run_are_found(store: Store) -> None:
    """At most one of the former; the latter is the newest, however it ended."""
    assert await store.runs.unfinished() is None
    assert await store.runs.last_finished() is None

    for state in STATES:
        made = await bring(store, *WAYS[state])
        unfinished, finished = await store.runs.unfinished(), await store.runs.last_finished()
        assert made == (unfinished if state in UNFINISHED else finished)
        assert (state in UNFINISHED) is (unfinished is not None)
        assert finished is None or finished.state not in UNFINISHED
        if unfinished is not None:
            await store.runs.update(made.id, RunUpdate(state="failed"))


async def test_runs_are_listed_newest_first_in_pages(store: Store) -> None:
    """Each page goes on after the last id of the one before."""
    made = [(await bring(store, "failed")).id for _ in range(5)]

    first = await store.runs.list(limit=3)
    rest = await store.runs.list(limit=3, after=first.data[-1].id)

    assert made[::-1] == [one.id for one in (*first.data, *rest.data)]
    assert (True, False) == (first.has_more, rest.has_more)
    with pytest.raises(BadRequest, match="got 'run_9'"):
        await store.runs.list(after="run_9")
