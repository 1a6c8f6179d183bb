"""What breaks while 64 connections are busy: theirs go on, and rows and answers stay equal."""

import asyncio
import contextlib
import random
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from fake_engine import FakeEngine
from faults_client import Answer, Client, Plan, ask
from faults_clock import HOUR_NS, Clock, clock
from faults_disk import BREAKS, MODES, Breaks, Mode, check_withheld, until_store_is
from faults_engine import TAG_HEADER, FaultyEngine
from faults_load import CONNECTIONS, SteadyLoad
from faults_process import Serve, behind, database, serving
from faults_report import Reached, scaled
from faults_storm import check_rows, plans
from running import running, settings_for
from waiting import until

__all__ = ["clock"]

pytestmark = pytest.mark.faults

LOST: Final = "strop_completions_lost_total"


def states_in(home: Path) -> dict[str, str]:
    """Return the state of each completion, from a database that is whole."""
    with database(home) as opened:
        assert [("ok",)] == opened.execute("PRAGMA integrity_check").fetchall()
        assert [] == opened.execute("PRAGMA foreign_key_check").fetchall()
        return dict(opened.execute("SELECT id, state FROM completions").fetchall())


def check_parity(load: SteadyLoad, states: dict[str, str]) -> None:
    """Every answer that a client has is one complete row, and of each kind all are the same."""
    assert len(load.answered) == len(set(load.answered))
    assert set() == set(load.answered) - {id_ for id_, s in states.items() if s == "complete"}
    assert {True, False} == {is_stream for is_stream, _ in load.bodies}
    assert 2 == len(load.bodies)


@pytest.mark.parametrize("breaks", BREAKS, ids=["locked", "full"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_store_that_fails_under_load_is_got_over(
    mode: Mode, breaks: Breaks, tmp_path: Path, reached: Reached
) -> None:
    """best_effort serves all the same and counts what it lost; required gives nothing away.

    Afterwards 64 connections are served and recorded as before, and nobody has restarted anything.
    """
    home = tmp_path / "home"
    options = (f"capture.mode={mode}", "capture.commit_timeout_s=0.2")
    async with (
        FakeEngine(FaultyEngine(seed=41), reads_body=False) as engine,
        serving(home, *behind(engine.url, *options)) as proxy,
    ):
        load = SteadyLoad(proxy.url)
        async with load.running():
            for _ in range(scaled(1)):
                await load.more_answers(CONNECTIONS)
                with breaks(proxy):
                    await until_store_is(proxy, is_ok=False)
                    await load.more_asked(2 * CONNECTIONS)
                    await until(lambda: proxy.metric(LOST))
                await until_store_is(proxy, is_ok=True)
                await load.more_answers(2 * CONNECTIONS)
        await proxy.wait_until_idle()
        num_lost = await proxy.metric(LOST)

    states = states_in(home)
    check_kept(load, mode, states, num_lost)
    reached(
        answered=len(load.answered),
        refused=load.refused.total(),
        withheld=len(load.cut_off),
        lost=num_lost,
        rows=len(states),
    )


def check_kept(load: SteadyLoad, mode: Mode, states: dict[str, str], num_lost: float) -> None:
    """Check that what was answered, lost and recorded add up."""
    complete = {id_ for id_, state in states.items() if state == "complete"}
    if mode == "best_effort":
        assert (0, 0) == (load.refused.total(), len(load.cut_off))
        # One that was given up on may have been written all the same.
        assert len(complete) <= len(load.answered) <= len(complete) + num_lost
        return
    check_parity(load, states)
    assert {503} == set(load.refused)
    for answer in load.cut_off:
        check_withheld(answer)
    # One that came too late to be given may have been written all the same, lost or not.
    withheld = [*load.cut_off, *(one for one in load.refusals if b"withheld" in one.body)]
    assert complete <= {*load.answered, *(answer.completion_id for answer in withheld)}


async def test_a_clock_that_jumps_under_load_loses_nothing(
    clock: Clock, tmp_path: Path, reached: Reached
) -> None:
    """Every answer is one row, and a walk through the pages meets each row once."""
    chance = random.Random(42)
    num_jumps = scaled(6)
    async with (
        FakeEngine(FaultyEngine(seed=42), reads_body=False) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        load = SteadyLoad(proxy.url)
        async with load.running():
            for _ in range(num_jumps):
                await load.more_answers(CONNECTIONS)
                clock.offset_ns = chance.choice((0, -HOUR_NS, HOUR_NS, -30 * HOUR_NS))
        await until(lambda: not proxy.services.relay.num_calls)
        walked: list[str] = []
        page = await proxy.services.store.list_completions(limit=100)
        while page.data:
            walked += [one.id for one in page.data]
            page = await proxy.services.store.list_completions(limit=100, after=walked[-1])
        lost = proxy.services.metrics.registry.get_sample_value(LOST)

    assert (0, 0) == (load.refused.total(), len(load.cut_off))
    assert sorted(load.answered) == sorted(walked)
    check_parity(load, states_in(tmp_path / "home"))
    assert not lost
    reached(jumps=num_jumps, answers=len(walked))


async def stalled(proxy: Serve) -> Client:
    """Return a client that has asked for a stream and reads nothing of it."""
    client = await Client.connect(proxy.url)
    head, body = Plan({"model": "tiny", "messages": [], "stream": True}).request()
    client.send(head + body)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's can
    return client


async def test_everything_at_once_costs_the_steady_ones_nothing(
    tmp_path: Path, reached: Reached
) -> None:
    """Idle sockets, half requests, clients that don't read, clients that leave, engines that break.

    Meanwhile each of 64 connections gets every answer whole; rows are what reached the relay.
    """
    home = tmp_path / "home"
    storm_side = FaultyEngine(seed=43)
    num_idle, num_waves = 200, scaled(2)
    async with (
        FakeEngine(storm_side, reads_body=False) as engine,
        serving(home, *behind(engine.url)) as proxy,
    ):
        num_sockets = proxy.num_sockets
        idle = [await Client.connect(proxy.url) for _ in range(num_idle)]
        half = [await Client.connect(proxy.url) for _ in range(50)]
        for client in half:
            client.send(b"POST /v1/chat/completions HTTP/1.1\r\nx-half: ")
        unread = [await stalled(proxy) for _ in range(20)]
        load = SteadyLoad(proxy.url)
        asked: list[tuple[Plan, Answer]] = []
        async with load.running():
            for number in range(num_waves):
                wave = plans(400 + number, 200)
                answers = await asyncio.gather(*(ask(proxy.url, plan) for plan in wave))
                asked += zip(wave, answers, strict=True)
            await load.more_answers(CONNECTIONS)
        for client in (*idle, *half, *unread):
            await client.leave()
        await proxy.wait_until_idle()
        await until(
            lambda: num_sockets is None or (proxy.num_sockets or 0) <= num_sockets + engine.num_open
        )

    with database(home) as opened:
        rows = opened.execute("SELECT id, request_id, state FROM completions").fetchall()
    named = [row for row in rows if row[1] in {plan.headers[TAG_HEADER] for plan, _ in asked}]
    storm = check_rows(asked, named, set(storm_side.tags) - {"load"})
    assert (0, 0) == (load.refused.total(), len(load.cut_off))
    check_parity(load, states_in(home))
    assert len(rows) == len(load.answered) + len(unread) + len(named)
    reached(
        steady_answers=len(load.answered),
        storm_requests=len(asked),
        of_them_recorded=storm.total(),
        idle=num_idle,
        half=len(half),
        unread=len(unread),
    )


async def test_an_engine_that_restarts_under_load_costs_what_was_in_flight(
    tmp_path: Path, reached: Reached
) -> None:
    """64 connections see errors while it is down, whole answers before and after; rows agree."""
    home = tmp_path / "home"
    engine = FakeEngine(FaultyEngine(seed=44), reads_body=False)
    await engine.start()
    num_restarts = scaled(2)
    async with (
        contextlib.AsyncExitStack() as stack,
        serving(home, *behind(engine.url, "engine.health_interval_s=0.1")) as proxy,
    ):
        stack.push_async_callback(engine.stop)
        load = SteadyLoad(proxy.url)
        async with load.running():
            for _ in range(num_restarts):
                await load.more_answers(2 * CONNECTIONS)
                await engine.stop()
                await load.more_asked(CONNECTIONS)
                await engine.start()
                await load.more_answers(2 * CONNECTIONS)

    states = states_in(home)
    check_parity(load, states)
    assert {502, 503} >= set(load.refused)
    assert len(load.answered) == Counter(states.values())["complete"]
    for answer in load.cut_off:
        assert b'"upstream_died"' in answer.body
    reached(
        restarts=num_restarts,
        answered=len(load.answered),
        refused=load.refused.total(),
        cut_off=len(load.cut_off),
    )
