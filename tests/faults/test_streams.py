"""Clients that leave and engines that break, hundreds at once: each request ends as one row."""

import asyncio
import gc
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from faults_client import Answer, Plan, ask
from faults_engine import (
    WAY_HEADER,
    FaultyEngine,
)
from faults_process import behind, database, serving
from faults_report import Reached, scaled
from faults_storm import check_answer, check_rows, plans
from running import running, settings_for
from waiting import until

pytestmark = pytest.mark.faults

# How many idle connections the proxy keeps to its engine.
MAX_IDLE = 64
NUM_ROUNDS = 5
OF_ONE_REQUEST = (
    "strop.proxy.relay.Call",
    "strop.proxy.relay.Incoming",
    "strop.proxy.upstream.exchange.Exchange",
    "strop.proxy.wire.tap.Tap",
    "strop.proxy.recording.Draft",
    "strop.proxy.store.records.Completion",
)
# Of the second half; SQLite fills its cache, and what malloc holds back varies.
MAX_GROWTH_MIB = 24.0


async def only_idle_left(engine: FakeEngine) -> None:
    """Return once the engine has no connections but those that the proxy keeps for later."""
    for connection in engine.open:
        # Where it read nothing, it has not seen the end either.
        connection.transport.resume_reading()
    await engine.until(lambda: engine.num_open <= MAX_IDLE)


async def test_hundreds_of_broken_streams_at_once_leave_nothing_behind(
    tmp_path: Path, reached: Reached
) -> None:
    """Rows are the requests that reached the relay; sockets and memory return to where they were.

    Engines that die by FIN and RST, answer 500, hang or never read; clients that leave at any
    point, the held-back end included; streams and JSON mixed, in rounds.
    """
    engine_side = FaultyEngine(seed=1)
    async with (
        FakeEngine(engine_side, reads_body=False) as engine,
        serving(tmp_path / "home", *behind(engine.url)) as proxy,
    ):
        num_sockets = proxy.num_sockets
        asked: list[tuple[Plan, Answer]] = []
        rss = []
        for number in range(scaled(NUM_ROUNDS)):
            wave = plans(number, 500)
            answers = await asyncio.gather(*(ask(proxy.url, plan) for plan in wave))
            asked += zip(wave, answers, strict=True)
            await proxy.wait_until_idle()
            await only_idle_left(engine)
            rss.append(proxy.rss_mib)

        for plan, answer in asked:
            check_answer(plan, answer)
        with database(tmp_path / "home") as opened:
            rows = opened.execute("SELECT id, request_id, state FROM completions").fetchall()
        states = check_rows(asked, rows, set(engine_side.tags))
        assert len(rows) == await proxy.metric("strop_completions_total")
        assert 0 == await proxy.metric("strop_completions_lost_total")
        await until(
            lambda: num_sockets is None or (proxy.num_sockets or 0) <= num_sockets + engine.num_open
        )
        assert (await ask(proxy.url, Plan({"model": "tiny", "messages": []}))).is_answered
        reached(
            requests=len(asked),
            reached_the_relay=len(rows),
            answered_whole=sum(answer.is_answered for _, answer in asked),
            **states,
            rss_mib_half_way=rss[len(rss) // 2],
            rss_mib_at_the_end=rss[-1],
        )
        assert rss[-1] - rss[len(rss) // 2] < MAX_GROWTH_MIB


@pytest.fixture
def empty_heap() -> Iterator[None]:
    """Hides what other tests left from the garbage collector: all the objects that there are."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def kept_objects() -> dict[str, list[object]]:
    """Return the objects that the collector knows, garbage collected, by the name of their type."""
    gc.collect()
    kept: dict[str, list[object]] = {}
    for one in gc.get_objects():
        kept.setdefault(f"{type(one).__module__}.{type(one).__name__}", []).append(one)
    return kept


def left_over() -> dict[str, list[str]]:
    """Return what holds what of finished requests; the sweeper's loop holds the last it saw."""
    kept = kept_objects()
    return {
        name: [repr(holder)[:300] for one in kept[name] for holder in gc.get_referrers(one)]
        for name in OF_ONE_REQUEST
        if len(kept.get(name, ())) > 1
    }


async def nothing_left_over() -> None:
    """Wait until finished requests have left nothing: a batch is the writer's a moment longer."""
    await until(left_over, lambda left: not left)


@pytest.mark.usefixtures("empty_heap")
@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "storm"])
async def test_no_lease_task_or_connection_outlives_its_request(
    is_silent: bool, tmp_path: Path, reached: Reached
) -> None:
    """The same seen from inside: all counts are back at zero."""
    engine_side = FaultyEngine(seed=2)
    # One that only has much to do is not given up.
    settings = {"first_byte_timeout_s": 1.0 if is_silent else 600.0}
    async with (
        FakeEngine(engine_side, reads_body=False) as engine,
        running(settings_for(engine.url, engine=settings), tmp_path / "home") as proxy,
    ):
        hung = Plan({"model": "tiny", "messages": []}, {WAY_HEADER: "hang"})
        # More than the kernel takes in: the proxy can't even send it.
        huge: dict[str, object] = {"model": "tiny", "messages": [], "user": "x" * 16_000_000}
        unread = Plan(huge, {WAY_HEADER: "deaf"})
        waves = [[hung, unread]]
        if not is_silent:
            waves = [plans(seed, scaled(120), large_bytes=300_000) for seed in (77, 78, 79)]
        num_tasks = len(asyncio.all_tasks())
        num_served = len(proxy.server.server_state.connections)

        services = proxy.services
        upstream = services.serving.engine.upstream
        for wave in waves:
            answers = await asyncio.gather(*(ask(proxy.url, plan) for plan in wave))
            await until(lambda: services.relay.num_calls == 0)
            # Recorded a moment before its task ends.
            await until(lambda: not proxy.server.server_state.tasks)
            await only_idle_left(engine)
            await until(lambda: upstream.num_connections == upstream.num_idle)
            await until(lambda: len(proxy.server.server_state.connections) <= num_served)
            await until(lambda: len(asyncio.all_tasks()) <= num_tasks + engine.num_open)
            for plan, answer in zip(wave, answers, strict=True):
                check_answer(plan, answer)
            await nothing_left_over()
            served = kept_objects().get("strop.proxy.client_connection.ClientConnection", [])
            assert len(served) == len(proxy.server.server_state.connections)
            del served
        rows = await proxy.rows()
        states: Counter[str] = Counter(row.completion.state for row in rows)
        assert 2 * is_silent == states["upstream_timeout"]
        assert 0 == services.serving.leases.count("base")
        assert 0 == services.metrics.registry.get_sample_value("strop_in_flight")
        assert upstream.num_idle <= MAX_IDLE
        reached(requests=sum(map(len, waves)), rows=len(rows), **states)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_restarted_engine_costs_only_what_was_in_flight(
    stream: bool, tmp_path: Path, reached: Reached
) -> None:
    """Requests that were begun before the stop or during it may fail; later ones are served."""
    engine = FakeEngine(FaultyEngine(seed=3, pause_s=0.01), reads_body=False)
    fields: dict[str, object] = {"model": "tiny", "messages": [], "stream": stream}
    plan = Plan(fields, {WAY_HEADER: "slow"})
    phases = {"before": Counter[bool](), "down": Counter[bool](), "after": Counter[bool]()}
    running_since = Counter[str]()
    phase = "before"

    async def work() -> None:
        while phase != "over":
            begun = phase
            running_since[begun] += 1
            answer = await ask(proxy.url, plan)
            running_since[begun] -= 1
            phases[begun][answer.is_answered] += 1
            assert answer.is_whole

    async def reach(phase: str, count: int) -> None:
        await until(lambda: phases[phase].total() >= count)

    await engine.start()
    settings = settings_for(engine.url, engine={"health_interval_s": 0.1})
    async with running(settings, tmp_path / "home") as proxy:
        workers = [asyncio.create_task(work()) for _ in range(32)]
        for cycle in itertools.count(1):
            await reach("before", 40 * cycle)
            # Else the next stop would cut off what the last start was to serve.
            await until(lambda: not running_since["after"])
            phase = "down"
            await engine.stop()
            await reach("down", 20 * cycle)
            await engine.start()
            await proxy.services.serving.wait_until_ready()
            phase = "after"
            await reach("after", 40 * cycle)
            phase = "over" if cycle == scaled(3) else "before"
            if phase == "over":
                break
        await asyncio.gather(*workers)

        assert 0 == phases["after"][False]
        assert 0 == proxy.services.serving.leases.count("base")
        rows = Counter(row.completion.state for row in await proxy.rows())
        served = sum(counts[True] for counts in phases.values())
        assert served == rows["complete"]
        assert {"complete", "upstream_error"} == set(rows)
        reached(restarts=cycle, served=served, failed=rows["upstream_error"])
    await engine.stop()


async def test_connections_that_a_restart_closed_cost_no_request(
    tmp_path: Path, reached: Reached
) -> None:
    """Kept connections to the old engine are replaced without an error to anyone."""
    engine = FakeEngine(FaultyEngine(seed=4), reads_body=False)
    plan = Plan({"model": "tiny", "messages": []}, {WAY_HEADER: "slow"})
    await engine.start()
    async with running(settings_for(engine.url), tmp_path / "home") as proxy:
        for _ in range(3):
            answers = await asyncio.gather(*(ask(proxy.url, plan) for _ in range(40)))
            assert all(answer.is_answered for answer in answers)
            await engine.stop()
            await engine.start()
        answers = await asyncio.gather(*(ask(proxy.url, plan) for _ in range(40)))

        assert all(answer.is_answered for answer in answers)
        assert 160 == len(await proxy.rows())
        reached(restarts=3, requests=160)
    await engine.stop()
