"""Several workers over one database: all serve, all follow a switch, all find what they rate."""

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from fake_adapters import FakeAdapters
from fake_engine import Call, FakeEngine
from faults_client import Answer, Client, Plan
from faults_process import database
from waiting import until
from worked import Worked, ask_on, begin_on, question, rate, worked


def rows(home: Path) -> dict[str, str]:
    """Return the state of each completion in a database."""
    with database(home) as opened:
        return dict(opened.execute("SELECT id, state FROM completions").fetchall())


async def in_flight(it: Worked) -> list[int]:
    """Return how many completions each worker relays, by its number."""
    return [one["in_flight"] for one in (await it.health())["workers"]]


class Held:
    """Stops an engine's streams before their first event, until it is opened."""

    def __init__(self, it: Worked) -> None:
        self.opened = asyncio.Event()
        it.fake.before_event = self

    async def __call__(self, _: int) -> None:
        """Wait."""
        await self.opened.wait()


def parsed(answer: Answer) -> Any:
    """Return an answer's JSON body."""
    return orjson.loads(answer.body)


async def test_all_serve_and_each_answer_is_recorded_once(tmp_path: Path) -> None:
    """Connections are dealt evenly, streams and JSON, and the metrics are the sum."""
    async with worked(tmp_path) as it:
        held = Held(it)
        clients = await it.crowd(8)
        streams = [await begin_on(one, question(stream=True)) for one in clients]
        dealt = await in_flight(it)
        held.opened.set()
        await asyncio.gather(*(a.read_body(b) for a, b in zip(clients, streams, strict=True)))
        answers = await asyncio.gather(*(_ask_often(one) for one in clients))
        pids = await it.pids()
        num_complete = await it.metric('strop_completions_total{state="complete"}')
        is_store_ok = await it.metric("strop_store_ok")

    assert [4, 4] == dealt
    assert 3 == len({*pids, it.pid})
    ids = [one.completion_id for one in (*streams, *(a for some in answers for a in some))]
    assert all(one.is_answered for one in streams)
    assert dict.fromkeys(ids, "complete") == rows(tmp_path)
    assert (len(ids), 1) == (num_complete, is_store_ok)


async def test_status_names_the_workers(tmp_path: Path) -> None:
    """Each with its process."""
    async with worked(tmp_path) as it:
        pids = await it.pids()
        status = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "strop.proxy.cli", "status", "--home", str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
        )
        said = (await status.communicate())[0].decode()

    assert [True, True] == [f"process {pid}: 0 in flight" in said for pid in pids]


async def test_an_engine_with_one_slot_is_served_by_one(tmp_path: Path) -> None:
    """Requests would have to be held in all workers while it changes its version."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "strop.proxy.cli", "serve", "--home", str(tmp_path)),
        *("--engine", "ollama", "--engine-url", "http://127.0.0.1:9", "--workers", "2"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()

    assert 2 == process.returncode
    assert b"server.workers = 2 needs engine.kind embedded, vllm or openai, got ollama" in said


async def test_each_worker_sends_to_all_replicas(tmp_path: Path) -> None:
    """One that is gone gets no requests from any, and none fails for it."""
    other = FakeAdapters()
    async with FakeEngine(other) as second:
        replicas = f"engine.replicas={second.url}"
        async with worked(tmp_path, replicas, num_versions=1) as it:
            await until(lambda: it.metric("strop_replica_ready"), lambda num: num == 2)
            await it.activate("v1")
            clients = await it.crowd(4)
            held = Held(it)
            it.fake.before_event = other.before_event = held
            streams = [
                await begin_on(one, question(stream=True, text=f"{n}"))
                for n, one in enumerate(clients)
            ]
            health = await it.health()
            num_in_flight = await it.metric("strop_replica_in_flight")
            held.opened.set()
            await asyncio.gather(*(a.read_body(b) for a, b in zip(clients, streams, strict=True)))
            await second.stop()
            answers = [
                await ask_on(one, question(text=f"{n} {m}"))
                for m in range(4)
                for n, one in enumerate(clients)
            ]
            after = [one["ready"] for one in (await it.health())["engine"]["replicas"]]

    # The engine's own checks may be among them.
    assert all(one["in_flight"] >= 2 for one in health["engine"]["replicas"])
    assert num_in_flight >= 4
    assert [(200, "v1")] * 16 == [(a.status, a.headers["x-strop-adapter"]) for a in answers]
    assert [True, False] == after


class Dead(FakeAdapters):
    """Its engine is dead: its server goes on, and fails at all that it is asked."""

    async def __call__(self, call: Call) -> None:
        """Say that all is well, and answer nothing."""
        if call.request.method == "POST":
            return await call.json({"error": {"message": "EngineCore died"}}, 500)
        return await super().__call__(call)


async def test_an_engine_that_begins_to_fail_is_found_out_by_any_worker(tmp_path: Path) -> None:
    """The process that decides verifies it, as soon as several requests failed."""
    async with worked(tmp_path, "engine.health_interval_s=3600") as it:
        (client,) = await it.crowd(1)
        it.engine.handler = Dead()
        while (health := await it.health())["status"] == "ok":
            await ask_on(client, question())

    assert "EngineCore died" in health["engine"]["reason"]


async def _ask_often(client: Client) -> list[Answer]:
    return [await ask_on(client, question(stream=number % 2 == 0)) for number in range(12)]


async def test_a_switch_is_done_when_every_worker_has_moved(tmp_path: Path) -> None:
    """After it no new request gets the old version, while those that hold it go on with it."""
    async with worked(tmp_path, num_versions=2) as it:
        held = Held(it)
        await it.activate("v1")
        clients = await it.crowd(4)
        streams = [await begin_on(one, question(stream=True)) for one in clients]
        stopped, served = asyncio.Event(), list[list[str]]()
        load = [asyncio.create_task(_versions_until(it, stopped, served)) for _ in range(4)]
        await it.activate("v2")
        after = [await ask_on(one, question()) for one in await it.crowd(4)]
        stopped.set()
        await asyncio.gather(*load)
        held.opened.set()
        await asyncio.gather(*(a.read_body(b) for a, b in zip(clients, streams, strict=True)))

    assert ["v1"] * 4 == [one.headers["x-strop-adapter"] for one in streams]
    assert all(one.is_answered for one in streams)
    assert ["v2"] * 4 == [one.headers["x-strop-adapter"] for one in after]
    assert [sorted(one) for one in served] == served
    assert 4 == len(served)


async def test_a_version_is_unloaded_when_no_worker_holds_it(tmp_path: Path) -> None:
    """One whose requests have all ended does not suffice, and each counts what all hold."""
    async with worked(tmp_path, num_versions=3) as it:
        held = Held(it)
        await it.activate("v1")
        clients = await it.crowd(4)
        for one in clients:
            await begin_on(one, question(stream=True))
        await it.activate("v2")
        later = [await begin_on(one, question(stream=True)) for one in await it.crowd(2)]
        await it.activate("v3")
        leases = await _leases(it, "v1")
        # Dealt by turns: all of one worker's.
        for one in clients[::2]:
            await one.leave()
        await until(lambda: _leases(it, "v1"), lambda num: num <= 2)
        refused = await it.admin("DELETE", "/admin/adapters/v1")
        unloaded = [*it.fake.unloaded]
        for one in clients[1::2]:
            await one.leave()
        await until(lambda: it.fake.unloaded == ["tiny@v1"])
        held.opened.set()

    assert ["v2", "v2"] == [one.headers["x-strop-adapter"] for one in later]
    assert (4, []) == (leases, unloaded)
    assert (409, "conflict") == (refused.status_code, refused.json()["error"]["code"])


async def _versions_until(it: Worked, stopped: asyncio.Event, found: list[list[str]]) -> None:
    """Ask on one connection until told to stop, and note which versions answered, in order."""
    (client,), versions = await it.crowd(1), list[str]()
    while not stopped.is_set():
        versions.append((await ask_on(client, question())).headers["x-strop-adapter"])
    found.append(versions)


async def _leases(it: Worked, version: str) -> int:
    shown = (await it.admin("GET", f"/admin/adapters/{version}")).json()
    return sum(one["leases"] for one in shown["loaded"])


async def test_a_pin_that_one_worker_brings_is_served_by_all(tmp_path: Path) -> None:
    """It is loaded once, however many ask."""
    fake = FakeAdapters()
    async with worked(tmp_path, fake=fake, num_versions=1) as it:
        clients = await it.crowd(4)
        pinned = question(model="tiny@v1")
        answers = await asyncio.gather(*(ask_on(one, pinned) for one in clients))
        unknown = await ask_on(clients[0], question(model="tiny@v9"))

    assert [(200, "v1")] * 4 == [(a.status, a.headers["x-strop-adapter"]) for a in answers]
    assert ["tiny@v1"] == fake.loads
    assert (404, True) == (unknown.status, b"model_not_found" in unknown.body)


@dataclass
class AllAtOnce(FakeAdapters):
    """Says that it lacks a version once all four have asked for it."""

    num_asked: int = 0
    have_asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def _complete(self, call: Call, *, is_chat: bool) -> None:
        if is_chat and call.request.json()["model"] not in (self.base, *self.adapters):
            self.num_asked += 1
            if self.num_asked == 4:
                self.have_asked.set()
            await self.have_asked.wait()
        await super()._complete(call, is_chat=is_chat)


async def test_a_version_that_the_engine_lost_is_loaded_for_the_request(tmp_path: Path) -> None:
    """Whichever worker finds out, no client sees it."""
    fake = AllAtOnce()
    async with worked(tmp_path, "engine.health_interval_s=60", fake=fake, num_versions=1) as it:
        await it.activate("v1")
        clients = await it.crowd(4)
        fake.restart()
        answers = await asyncio.gather(*(ask_on(one, question()) for one in clients))

    assert [(200, "v1")] * 4 == [(a.status, a.headers["x-strop-adapter"]) for a in answers]
    assert ["tiny@v1"] * 2 == fake.loads


async def test_a_rating_finds_its_completion_in_any_worker(tmp_path: Path) -> None:
    """Recorded, or in flight: then it is pending, and stands once that is recorded."""
    async with worked(tmp_path) as it:
        held = Held(it)
        here, there = await it.crowd(2)
        stream = await begin_on(here, question(stream=True))
        pending = await rate(there, stream.completion_id, id="one")
        again = await rate(there, stream.completion_id, id="one")
        unknown = await rate(there, "cmp_none")
        held.opened.set()
        await here.read_body(stream)
        (first,) = (await it.admin("GET", "/v1/feedback")).json()["data"]
        repeated = await rate(here, stream.completion_id, id="one")
        changed = await rate(there, stream.completion_id, id="one", comment="other")
        whole = await ask_on(here, question(text="Is it?"))
        rated = await rate(there, whole.completion_id)

    assert [202, 200, 404] == [pending.status, again.status, unknown.status]
    assert (stream.completion_id, "standing") == (first["completion_id"], first["state"])
    assert [200, 409, 201] == [repeated.status, changed.status, rated.status]


async def test_a_conversation_may_go_from_worker_to_worker(tmp_path: Path) -> None:
    """Its turns are one session, and what is typed to rate, or to take back, finds the answer."""
    async with worked(tmp_path) as it:
        here, there = await it.crowd(2)
        said = [{"role": "user", "content": "hi"}]
        first = await ask_on(here, Plan({"model": "tiny", "messages": said}))
        said += [parsed(first)["choices"][0]["message"], {"role": "user", "content": "more"}]
        second = await ask_on(there, Plan({"model": "tiny", "messages": said}))
        reply = parsed(second)["choices"][0]["message"]
        good, undo = (
            Plan({"model": "tiny", "messages": [*said, reply, {"role": "user", "content": typed}]})
            for typed in ("/rl good", "/rl undo")
        )
        rated, undone = await ask_on(here, good), await ask_on(there, undo)
        shown = [
            (await it.admin("GET", f"/admin/completions/{one.completion_id}")).json()
            for one in (first, second)
        ]

    assert shown[0]["session"] == shown[1]["session"]
    assert [200, 200] == [rated.status, undone.status]
    assert ["withdrawn"] == [one["state"] for one in shown[1]["feedback"]]
