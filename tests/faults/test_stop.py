"""The end of the proxy, gentle and not: what runs is recorded, and no child outlives it."""

import asyncio
import functools
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from faults_client import Answer, Plan, ask
from faults_engine import WAY_HEADER, FaultyEngine
from faults_process import behind, database, started
from faults_report import Reached, scaled
from waiting import until
from worked import until_dead

pytestmark = pytest.mark.faults


def question(way: str, stream: bool) -> Plan:
    return Plan({"model": "tiny", "messages": [], "stream": stream}, {WAY_HEADER: way})


def num_asked(engine: FakeEngine) -> int:
    """Return how many of the clients' requests an engine got; strop's own don't count."""
    return sum(request.header(WAY_HEADER) is not None for request in engine.requests)


@pytest.fixture
def _with_a_terminal() -> Iterator[None]:
    """What is started here ends at SIGHUP, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_with_a_terminal")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP], ids=["term", "hup"])
async def test_a_stop_under_load_records_everything(
    sig: signal.Signals, tmp_path: Path, reached: Reached
) -> None:
    """What ends within the drain is complete, the rest `shutdown`, and no row is missing.

    Each client is told which, and the exit status is 0.
    """
    home = tmp_path / "home"
    engine_side = FaultyEngine(seed=10, pause_s=0.1)
    async with (
        FakeEngine(engine_side, reads_body=False) as engine,
        started(home, *behind(engine.url, "server.drain_s=1.5")) as proxy,
    ):
        await proxy.wait_until_ready()
        plans = [
            question(way, stream)
            for _ in range(scaled(20))
            for way in ("slow", "held", "hang")
            for stream in (False, True)
        ]
        asked = [asyncio.create_task(ask(proxy.url, plan)) for plan in plans]
        await until(lambda: num_asked(engine) == len(plans))
        status = await proxy.end(sig)
        answers = await asyncio.gather(*asked)

    assert 0 == status
    said = proxy.log.read_text(encoding="utf-8")
    found = re.search(rf"stopping signal={sig.name} answers_running=(\d+)\n", said)
    assert found is not None
    assert 0 < int(found[1]) <= len(plans)
    with database(home) as opened:
        rows: dict[str, str] = dict(opened.execute("SELECT id, state FROM completions").fetchall())
    states = Counter(rows.values())
    assert len(plans) == len(rows)
    assert {"complete", "shutdown"} == set(states)
    for plan, answer in zip(plans, answers, strict=True):
        assert answer.is_whole
        if plan.headers[WAY_HEADER] == "hang":
            assert (503, b'"shutting_down"' in answer.body) == (answer.status, True)
        assert answer.is_answered == (rows[answer.completion_id] == "complete")
    reached(in_flight=len(plans), **states)


async def test_who_asks_twice_ends_it_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C waits for nothing, and what ran is recorded all the same."""
    home = tmp_path / "home"
    async with (
        FakeEngine(FaultyEngine(seed=12), reads_body=False) as engine,
        started(home, *behind(engine.url, "server.drain_s=3600")) as proxy,
    ):
        await proxy.wait_until_ready()
        asked = [
            asyncio.create_task(ask(proxy.url, question("hang", n % 2 == 0))) for n in range(9)
        ]
        await until(lambda: proxy.get("/health"), lambda health: health["in_flight"] == len(asked))
        proxy.process.send_signal(signal.SIGINT)
        await until(lambda: ask(proxy.url, question("ok", False)), lambda answer: not answer.status)
        status = await proxy.end(signal.SIGINT)
        answers = await asyncio.gather(*asked)

    assert 0 == status
    assert {503} == {answer.status for answer in answers}
    with database(home) as opened:
        assert [("shutdown", 9)] == opened.execute(
            "SELECT state, count(*) FROM completions GROUP BY state"
        ).fetchall()
    assert "Traceback" not in proxy.log.read_text(encoding="utf-8")


async def test_sigterm_while_bodies_are_sent_ends_in_time(tmp_path: Path) -> None:
    """A client that is still sending gets a 503 at the end of the drain."""
    home = tmp_path / "home"
    async with (
        FakeEngine(FaultyEngine(seed=11), reads_body=False) as engine,
        started(home, *behind(engine.url, "server.drain_s=0.5")) as proxy,
    ):
        await proxy.wait_until_ready()
        reader, writer = await asyncio.open_connection(
            *proxy.url.removeprefix("http://").split(":")
        )
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n{"
        )
        await writer.drain()
        await until(lambda: proxy.get("/health"), lambda health: health["uptime_s"])
        status = await proxy.end(signal.SIGTERM)
        said = await reader.read()
        writer.close()

    assert 0 == status
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b'"shutting_down"' in said


async def children_of(pid: int) -> list[int]:
    process = await asyncio.create_subprocess_exec(
        "ps", "-A", "-o", "pid=,ppid=", stdout=asyncio.subprocess.PIPE
    )
    text, _ = await process.communicate()
    pairs = [line.split() for line in text.decode().splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


@pytest.mark.engine
async def test_the_embedded_engine_ends_with_its_proxy(
    qwen3: Path, tmp_path: Path, reached: Reached
) -> None:
    """A killed engine is started again; SIGTERM stops it after the drain; it sees a SIGKILL too."""
    home = tmp_path / "home"
    options = ("--model", str(qwen3), "--model-name", "tiny")
    ended = []
    for sig, status in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        async with started(home, *options) as proxy:
            await proxy.wait_until_ready()
            (engine,) = await children_of(proxy.process.pid)
            if sig == signal.SIGTERM:
                os.kill(engine, signal.SIGKILL)
                await until_dead(engine)
                again = await until(
                    functools.partial(ask, proxy.url, words(4)),
                    lambda answer: answer.status not in (502, 503),
                )
                assert again.is_answered
                (engine,) = await children_of(proxy.process.pid)
            # What a kill is to cut off is far from its end, however late the kill comes.
            num_words = 400 if sig == signal.SIGTERM else 4000
            running = asyncio.create_task(ask(proxy.url, words(num_words)))
            health = functools.partial(proxy.get, "/health")
            await until(health, lambda health: health["in_flight"])
            assert status == await proxy.end(sig)
            answer: Answer = await running
            await until_dead(engine)
            ended.append(answer.is_answered)

    assert [True, False] == ended
    with database(home) as opened:
        rows = opened.execute("SELECT state, count(*) FROM completions GROUP BY state").fetchall()
    assert 2 == dict(rows)["complete"]
    reached(engines_ended=3)


def words(count: int) -> Plan:
    fields: dict[str, object] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": count,
        "ignore_eos": True,
        "stream": True,
    }
    return Plan(fields)
