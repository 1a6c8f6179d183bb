"""Workers, and the process that decides for them, die or are stopped: nothing answered is lost."""

import asyncio
import functools
import os
import signal
from pathlib import Path

import pytest
from faults_client import Answer, Client, Plan, ask
from faults_process import database, started
from waiting import until
from worked import Worked, ask_on, begin_on, is_alive, question, rate, until_dead, worked

pytestmark = pytest.mark.faults


async def _until_two_serve(it: Worked, gone: int) -> list[int]:
    """Return the pids of the workers, once there are two again."""
    return await until(it.pids, lambda pids: len(pids) == 2 and gone not in pids)


class Load:
    """Clients that ask, each on a connection until that breaks, then on another."""

    def __init__(self, it: Worked) -> None:
        self._it = it
        self._is_over = False
        self.answers: list[Answer] = []
        self.num_broken = 0
        self._clients = [asyncio.create_task(self._ask(number)) for number in range(6)]

    async def stop(self) -> None:
        """Return once each has its last answer."""
        self._is_over = True
        await asyncio.gather(*self._clients)

    async def _ask(self, number: int) -> None:
        while not self._is_over:
            (client,) = await self._it.crowd(1)
            try:
                while not self._is_over:
                    self.answers.append(await ask_on(client, question(stream=number % 2 == 0)))
            except (OSError, EOFError):
                self.num_broken += 1


async def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """The other goes on; the new one serves the active version; nothing answered is lost.

    No counter falls, and a switch is not held up.
    """
    async with worked(tmp_path, num_versions=2, is_steady=False) as it:
        await it.activate("v1")
        load = Load(it)
        await until(lambda: len(load.answers) > 30)
        before = await it.metric("strop_completions_total")
        first = (await it.pids())[0]
        os.kill(first, signal.SIGKILL)
        await it.activate("v2")
        num_answers = len(load.answers)
        pids = await _until_two_serve(it, first)
        after = await it.metric("strop_completions_total")
        await until(lambda: len(load.answers) > num_answers + 30)
        await load.stop()
        served = [await ask_on(one, question()) for one in await it.crowd(4)]

    assert not is_alive(first)
    assert first not in pids
    assert load.num_broken
    assert ["v2"] * 4 == [one.headers["x-strop-adapter"] for one in served]
    assert before <= after
    assert all(one.is_answered for one in load.answers)
    with database(tmp_path) as opened:
        recorded = [id_ for (id_,) in opened.execute("SELECT id FROM completions")]
    answered = [one.completion_id for one in load.answers]
    assert len(recorded) == len({*recorded})
    assert {*answered} <= {*recorded}
    assert len(answered) == len({*answered})


async def test_a_rating_of_what_died_with_its_worker_is_withdrawn(tmp_path: Path) -> None:
    """It waited for a completion that will never be recorded; others still wait."""
    async with worked(tmp_path, is_steady=False) as it:
        opened = asyncio.Event()

        async def hold(_: int) -> None:
            await opened.wait()

        it.fake.before_event = hold
        lost, kept = await it.crowd(2)
        streams = [await begin_on(one, question(stream=True)) for one in (lost, kept)]
        # With one connection each, the worker that has the first is the first that took any.
        (rater,) = await it.crowd(1)
        rated = [await rate(rater, one.completion_id) for one in streams]
        pids = await it.pids()
        os.kill(pids[0], signal.SIGKILL)
        await _until_two_serve(it, pids[0])
        states = await until(lambda: _states(it), lambda states: len(states) == 2)
        opened.set()

    assert [202, 202] == [one.status for one in rated]
    assert ["pending", "withdrawn"] == sorted(states)


async def _states(it: Worked) -> set[str]:
    given = (await it.admin("GET", "/v1/feedback")).json()["data"]
    return {one["state"] for one in given}


async def test_nothing_outlives_the_process_that_decides(tmp_path: Path) -> None:
    """However it dies: its workers end, record what they cut off, and let the port go."""
    async with worked(tmp_path) as it:
        it.fake.before_event = _never
        clients = await it.crowd(4)
        streams = [await begin_on(one, question(stream=True)) for one in clients]
        pids = await it.pids()
        await it.proxy.end(signal.SIGKILL)
        await until_dead(*pids)
        with pytest.raises(OSError, match="Connect"):
            await Client.connect(it.proxy.url)

    with database(tmp_path) as opened:
        rows = dict(opened.execute("SELECT id, state FROM completions").fetchall())
    assert dict.fromkeys((one.completion_id for one in streams), "shutdown") == rows
    said = it.proxy.log.read_text(encoding="utf-8")
    assert 1 == said.count("this worker ends worker=1")
    assert 1 == said.count("this worker ends worker=2")
    assert "graceful shutdown exceeded" not in said


async def test_a_stop_drains_every_worker(tmp_path: Path) -> None:
    """What runs ends, what comes is refused, and the exit status is 0."""
    async with worked(tmp_path) as it:
        opened = asyncio.Event()

        async def hold(_: int) -> None:
            await opened.wait()

        it.fake.before_event = hold
        clients = await it.crowd(4)
        streams = [await begin_on(one, question(stream=True)) for one in clients]
        pids = await it.pids()
        stopping = asyncio.create_task(it.proxy.end(signal.SIGTERM))
        await until(lambda: _is_turned_away(it.proxy.url))
        opened.set()
        for client, stream in zip(clients, streams, strict=True):
            await client.read_body(stream)
        status = await stopping

    assert 0 == status
    said = it.proxy.log.read_text(encoding="utf-8")
    assert 1 == said.count("stopping signal=SIGTERM answers_running=4\n")
    assert said.endswith("serve: stopped\n")
    assert [True] * 4 == [one.is_answered for one in streams]
    assert [False, False] == [is_alive(pid) for pid in pids]


async def test_a_stop_cuts_off_what_takes_too_long(tmp_path: Path) -> None:
    """All workers have the same time, at once; what they cut off is recorded, and said."""
    async with worked(tmp_path, "server.drain_s=1") as it:
        it.fake.before_event = _never
        clients = await it.crowd(4)
        streams = [await begin_on(one, question(stream=True)) for one in clients]
        status = await it.proxy.end(signal.SIGTERM)
        for client, stream in zip(clients, streams, strict=True):
            await client.read_body(stream)

    assert 0 == status
    assert all(b'"shutting_down"' in one.body for one in streams)
    with database(tmp_path) as opened:
        rows = dict(opened.execute("SELECT id, state FROM completions").fetchall())
    assert dict.fromkeys((one.completion_id for one in streams), "shutdown") == rows


async def test_who_asks_twice_ends_all_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C waits for nothing in any worker, and what ran is recorded all the same."""
    async with worked(tmp_path, "server.drain_s=3600") as it:
        it.fake.before_event = _never
        streams = [await begin_on(one, question(stream=True)) for one in await it.crowd(4)]
        it.proxy.process.send_signal(signal.SIGINT)
        await until(lambda: _is_turned_away(it.proxy.url))
        status = await it.proxy.end(signal.SIGINT)

    assert 0 == status
    with database(tmp_path) as opened:
        rows = dict(opened.execute("SELECT id, state FROM completions").fetchall())
    assert dict.fromkeys((one.completion_id for one in streams), "shutdown") == rows
    assert "Traceback" not in it.proxy.log.read_text(encoding="utf-8")


async def _never(_: int) -> None:
    await asyncio.Event().wait()


async def _is_turned_away(url: str) -> bool:
    try:
        await (await Client.connect(url)).leave()
    except OSError:
        return True
    return False


@pytest.mark.engine
async def test_the_embedded_engine_outlives_the_drain_and_nothing_else(
    qwen3: Path, tmp_path: Path
) -> None:
    """It answers all workers to their last byte, and ends with the process that started it."""
    options = ("--model", str(qwen3), "--model-name", "tiny", "--workers", "2")
    fields: dict[str, object] = {"ignore_eos": True, "stream": True}
    ended: list[bool] = []
    for sig, status in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        async with started(tmp_path, *options) as proxy:
            await proxy.wait_until_ready()
            children = await children_of(proxy.process.pid)
            # What a kill is to cut off is far from its end, however late the kill comes.
            num_tokens = 400 if sig == signal.SIGTERM else 4000
            plan = Plan({**question().fields, **fields, "max_tokens": num_tokens})
            asked = [asyncio.create_task(ask(proxy.url, plan)) for _ in range(2)]
            health = functools.partial(proxy.get, "/health")
            await until(health, lambda health: health["in_flight"] == 2)
            assert status == await proxy.end(sig)
            ended += [one.is_answered for one in await asyncio.gather(*asked)]
            await until_dead(*children)
        assert 3 == len(children)

    assert [True, True, False, False] == ended


async def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    process = await asyncio.create_subprocess_exec(
        "ps", "-A", "-o", "pid=,ppid=", stdout=asyncio.subprocess.PIPE
    )
    text, _ = await process.communicate()
    pairs = [line.split() for line in text.decode().splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]
