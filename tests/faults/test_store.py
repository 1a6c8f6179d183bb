"""A disk that is full, and a database that another program holds: served, said, and got over."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from faults_client import Plan, ask
from faults_disk import BREAKS, MODES, Breaks, Mode, check_withheld, locked, until_store_is
from faults_engine import FaultyEngine
from faults_process import Serve, behind, database, serving, started
from faults_report import Reached, scaled
from waiting import until

pytestmark = pytest.mark.faults


def question(stream: bool) -> Plan:
    return Plan({"model": "tiny", "messages": [], "stream": stream})


async def rate(proxy: Serve, completion: str, name: str) -> int:
    """Rate a completion; return the status of the answer."""
    said: dict[str, object] = {"completion_id": completion, "rating": "good", "id": name}
    return (await ask(proxy.url, Plan(said, path="/v1/feedback"))).status


@contextlib.asynccontextmanager
async def proxy_in(home: Path, mode: Mode) -> AsyncIterator[Serve]:
    """A proxy whose store gives up soon, but not on a slow disk that works."""
    async with (
        FakeEngine(FaultyEngine(seed=6), reads_body=False) as engine,
        serving(
            home, *behind(engine.url, f"capture.mode={mode}", "capture.commit_timeout_s=1")
        ) as proxy,
    ):
        yield proxy


@pytest.mark.parametrize("breaks", BREAKS, ids=["locked", "full"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_store_that_takes_no_writes_is_said_and_got_over(
    mode: Mode, breaks: Breaks, tmp_path: Path, reached: Reached
) -> None:
    """best_effort serves and counts what it lost; required refuses. No rating is acknowledged.

    /health and /metrics say so meanwhile; afterwards all is as before, without a restart.
    """
    home = tmp_path / "home"
    async with proxy_in(home, mode) as proxy:
        before = await ask(proxy.url, question(stream=True))
        with breaks(proxy):
            first = await ask(proxy.url, question(stream=True))
            said = await until_store_is(proxy, is_ok=False)
            status = (await proxy.get("/health"))["status"]
            later = [await ask(proxy.url, question(stream=n % 2 == 0)) for n in range(scaled(6))]
            refusals = [await rate(proxy, before.completion_id, f"lost-{n}") for n in range(3)]
            is_ok = await proxy.metric("strop_store_ok")
        await until_store_is(proxy, is_ok=True)
        after = await ask(proxy.url, question(stream=False))
        acknowledged = await rate(proxy, after.completion_id, "kept")
        num_lost = await proxy.metric("strop_completions_lost_total")
        health = await proxy.get("/health")

    served = [before, after, *(later if mode == "best_effort" else [])]
    assert all(answer.is_answered for answer in served)
    assert ("degraded", 0.0, [503] * 3) == (status, is_ok, refusals)
    assert "strop.db" in str(said["reason"])
    assert ("ok", True) == (health["status"], health["capture"]["ok"])
    assert (201, num_lost) == (acknowledged, health["capture"]["lost"])
    if mode == "required":
        check_withheld(first)
        assert {503} == {answer.status for answer in later}
        assert 1 == num_lost
    else:
        assert first.is_answered
        assert 1 <= num_lost <= 1 + len(later)
    with database(home) as opened:
        stored = {id_ for (id_,) in opened.execute("SELECT id FROM completions")}
        names = opened.execute("SELECT idempotency FROM feedback").fetchall()
        assert [("ok",)] == opened.execute("PRAGMA integrity_check").fetchall()
    assert {before.completion_id, after.completion_id} <= stored
    assert [("kept",)] == names
    reached(served_meanwhile=sum(answer.is_answered for answer in later), lost=num_lost)


async def test_a_lock_shorter_than_the_timeout_costs_nothing(tmp_path: Path) -> None:
    """Another program's short transaction is waited for: nothing is lost or refused."""
    home = tmp_path / "home"
    async with (
        FakeEngine(FaultyEngine(seed=7), reads_body=False) as engine,
        serving(home, *behind(engine.url, "capture.commit_timeout_s=30")) as proxy,
    ):
        with locked(proxy):
            asked = [asyncio.create_task(ask(proxy.url, question(n % 2 == 0))) for n in range(8)]
            await until(lambda: proxy.metric("strop_store_queue"))
        answers = await asyncio.gather(*asked)

        assert all(answer.is_answered for answer in answers)
        assert 0 == await proxy.metric("strop_completions_lost_total")
    with database(home) as opened:
        assert (8,) == opened.execute("SELECT count(*) FROM completions").fetchone()


async def test_a_proxy_stops_in_time_while_its_database_is_held(tmp_path: Path) -> None:
    """Nothing that waits for the lock keeps SIGTERM from ending it; the log says what was lost."""
    home = tmp_path / "home"
    async with (
        FakeEngine(FaultyEngine(seed=8), reads_body=False) as engine,
        started(home, *behind(engine.url, "capture.commit_timeout_s=0.3")) as proxy,
    ):
        await proxy.wait_until_ready()
        with locked(proxy):
            answers = await asyncio.gather(*(ask(proxy.url, question(True)) for _ in range(8)))
            status = await proxy.end(signal.SIGTERM)

    assert 0 == status
    assert all(answer.is_answered for answer in answers)
    assert "completion lost" in proxy.log.read_text(encoding="utf-8")
