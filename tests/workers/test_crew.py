"""What the process that decides knows of its workers, and when it may go on."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from running import pass_time, settings_for
from waiting import LIMIT_S, until

from strop.proxy.alias import Alias
from strop.proxy.engines.openai import OpenAI
from strop.proxy.errors import StropError, Unavailable, UnknownModel
from strop.proxy.parts import Control
from strop.proxy.serving import Serving
from strop.proxy.settings.settings import Settings
from strop.proxy.store.records import StoreHealth
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.workers import crew as crew_module
from strop.proxy.workers import processes as processes_module
from strop.proxy.workers import supervisor
from strop.proxy.workers.crew import Crew, Member
from strop.proxy.workers.door import Door, Passage
from strop.proxy.workers.frames import (
    Answer,
    Begin,
    Bring,
    Call,
    Done,
    Held,
    Holds,
    Hurry,
    Key,
    KeyOf,
    Look,
    Looks,
    Moved,
    Serve,
    Started,
)
from strop.proxy.workers.link import Link
from strop.proxy.workers.processes import WorkerProcesses

WELL = StoreHealth(ok=True, reason=None, since_ms=0, num_queued=0, queued_bytes=0)

# Takes connections, and serves none.
WORKER = """
import asyncio, socket, sys
from strop.proxy.workers.link import Link
from strop.proxy.workers.frames import Moved, Started

async def main(end):
    link = await Link.open(end)
    begin = await link.first()
    link.tell(Started())
    link.tell(Moved(begin.turn, {}))
    await link.run(lambda note: None, None)

number = sys.argv[sys.argv.index("--link-fd") + 1]
asyncio.run(main(socket.socket(fileno=int(number))))
"""


@dataclass
class Hand:
    """The other end of a worker's line, in the test's own loop."""

    link: Link
    in_flight: dict[str, str] = field(default_factory=dict)
    is_deaf: bool = False
    turns: list[int] = field(default_factory=list)
    num_looks: int = 0
    held: Held = field(default_factory=dict)

    async def run(self) -> None:
        """Follow every view, unless it is deaf."""
        await self.link.run(self._note, self._answer)

    def _note(self, note: object) -> None:
        if isinstance(note, Hurry):
            return
        assert isinstance(note, Serve)
        self.turns.append(note.turn)
        if not self.is_deaf:
            self.link.tell(Moved(note.turn, self.held))

    async def _answer(self, call: Call) -> Answer:
        self.num_looks += isinstance(call, Look)
        if self.is_deaf:
            await asyncio.Event().wait()
        if isinstance(call, Look):
            return Looks(0, 0, WELL, [], {})
        assert isinstance(call, KeyOf)
        return Key(self.in_flight.get(call.completion))


@dataclass
class Office:
    """A crew and what it follows."""

    crew: Crew
    serving: Serving
    stack: contextlib.AsyncExitStack

    async def hire(self, number: int, *, has_started: bool = True) -> tuple[Member, Hand]:
        """Add a worker, with a process that does nothing, and let it take connections."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE
        )
        ours, theirs = socket.socketpair()
        way_in, way_out = socket.socketpair()

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

        member = Member(number, process.pid, kill, await Link.open(ours), Passage(way_in))
        hand = Hand(await Link.open(theirs))
        turn, _ = self.crew.present()

        async def until_it_dies() -> None:
            assert await process.wait() == -signal.SIGKILL
            hand.link.close()

        tasks = [
            asyncio.create_task(self.crew.run(member, _serve)),
            asyncio.create_task(hand.run()),
            asyncio.create_task(until_it_dies()),
        ]

        async def end() -> None:
            member.kill()
            await asyncio.gather(*tasks)
            way_out.close()

        self.stack.push_async_callback(end)
        await until(lambda: member in self.crew.members)
        if has_started:
            hand.link.tell(Started())
            hand.link.tell(Moved(turn, {}))
            await until(lambda: member.is_in)
        return member, hand

    def switch(self) -> None:
        """Let the model name mean something else."""
        self.serving.put(self.serving.alias.serving({}))


async def _serve(call: Call) -> Answer:
    """Answer as the process that decides: there is one version."""
    assert isinstance(call, Bring)
    if call.version != "v1":
        raise UnknownModel(f"no {call.version}", param="model")
    return Done()


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    """A crew without workers."""
    listener = socket.create_server(("127.0.0.1", 0))
    upstream = Upstream("http://127.0.0.1:9")
    serving = Serving(OpenAI(upstream), Settings())
    serving.put(Alias.of_base("", ["tiny"], accepts_any=False))
    door = Door(listener)
    crew = Crew(door)
    crew.follow(serving)
    async with contextlib.AsyncExitStack() as stack:
        yield Office(crew, serving, stack)
    door.close()
    await upstream.aclose()


async def test_a_switch_waits_for_each_worker(office: Office) -> None:
    """Every one is told, once; telling the same again tells nothing."""
    (_, one), (_, other) = await office.hire(1), await office.hire(2)
    other.is_deaf = True
    office.switch()
    office.crew.tell()
    moving = asyncio.create_task(office.serving.have_moved())
    await until(lambda: one.turns and other.turns)
    waits = not moving.done()
    other.link.tell(Moved(other.turns[0], {}))
    await moving

    assert waits
    assert (1, 1) == (len(one.turns), len(other.turns))


async def test_a_worker_that_does_not_follow_is_killed(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could know what it serves; the switch is done without it."""
    (one, _), (_, deaf) = await office.hire(1), await office.hire(2)
    deaf.is_deaf = True
    office.switch()
    office.crew.tell()
    await until(lambda: one.moved == office.crew.present()[0])
    monkeypatch.setattr(crew_module, "MOVE_WAIT_S", 0.01)
    await office.serving.have_moved()

    assert (one,) == office.crew.members


async def test_a_machine_that_slept_in_a_switch_kills_no_worker(office: Office) -> None:
    """Its clock may have gone on, but the worker had no time to follow."""
    member, slow = await office.hire(1)
    slow.is_deaf = True
    office.switch()
    moving = asyncio.create_task(office.serving.have_moved())
    await until(lambda: slow.turns)
    pass_time(8 * 3600)
    await asyncio.sleep(0.02)
    slow.link.tell(Moved(slow.turns[0], {}))
    await moving

    assert (member,) == office.crew.members


async def test_who_comes_late_gets_no_connections_before_it_follows(office: Office) -> None:
    """A switch does not wait for it either."""
    member, hand = await office.hire(1, has_started=False)
    old = office.crew.present()[0]
    hand.is_deaf = True
    office.switch()
    await office.serving.have_moved()
    hand.link.tell(Started())
    hand.link.tell(Moved(old, {}))
    await until(lambda: hand.turns)
    hand.link.tell(Holds({}))
    await asyncio.sleep(0.02)
    was_in = member.is_in
    hand.link.tell(Moved(hand.turns[0], {}))
    await until(lambda: member.is_in)

    assert not was_in


async def test_leases_are_those_of_all(office: Office) -> None:
    """A version is free once each worker has moved and none holds it; who is gone holds nothing."""
    (_, one), (gone, other) = await office.hire(1), await office.hire(2)
    leases = office.crew.leases
    one.held, other.held = {"v1": (1, 0.0)}, {"v1": (2, 0.0), "v2": (1, 5.0)}
    office.switch()
    await office.serving.have_moved()
    counted = (leases.count("v1"), leases.count("v2"), leases.total)
    idle = (leases.idle_since("v1"), leases.idle_since("v2"), leases.idle_since())
    free = asyncio.create_task(leases.wait_until_free("v1"))
    one.link.tell(Holds({"v1": (0, 7.0)}))
    await until(lambda: leases.count("v1") == 2)
    waits = not free.done()
    gone.kill()
    await free

    assert (3, 1, 4) == counted
    assert (0.0, 5.0, 5.0) == idle
    assert waits
    assert (0, 7.0) == (leases.total, leases.idle_since("v1"))


async def test_a_worker_that_hangs_is_killed(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many looks, not before, it has said nothing; the other one is left alone."""
    monkeypatch.setattr(crew_module, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(crew_module, "ANSWER_TIMEOUT_S", 0.2)
    (one, _), (_, deaf) = await office.hire(1), await office.hire(2)
    deaf.is_deaf = True
    watching = asyncio.create_task(office.crew.watch())
    await until(lambda: (one,) == office.crew.members)
    watching.cancel()

    # One more may begin before the killed one has ended.
    assert crew_module.HUNG_AFTER_LOOKS <= deaf.num_looks


async def test_a_worker_that_does_not_hurry_is_killed(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever presses Ctrl-C twice does not wait for the whole drain."""
    monkeypatch.setattr(crew_module, "HURRY_TIMEOUT_S", 0.01)
    await office.hire(1)
    office.crew.hurry()
    await until(lambda: not office.crew.members)

    assert () == office.crew.members


async def test_a_machine_that_slept_kills_no_worker(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may be slow to say how it is after hours in which nobody asked it."""
    monkeypatch.setattr(crew_module, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(crew_module, "ANSWER_TIMEOUT_S", 0.2)
    member, slow = await office.hire(1)
    slow.is_deaf = True
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 8 * 3600)
    watching = asyncio.create_task(office.crew.watch())
    await until(lambda: slow.num_looks >= 2)
    slow.is_deaf = False
    await until(lambda: member.looks or not office.crew.members)
    watching.cancel()

    assert (member,) == office.crew.members


def _processes(
    office: Office, num: int, on_replaced: Callable[[], Awaitable[None]]
) -> WorkerProcesses:
    def begin(number: int) -> Begin:
        turn, view = office.crew.present()
        return Begin(number, Settings(), home="", engine_url="", turn=turn, view=view)

    async def answer(_: Member, call: Call) -> Answer:
        return await _serve(call)

    return WorkerProcesses(num, office.crew, begin=begin, answer=answer, on_replaced=on_replaced)


async def test_what_died_with_a_worker_is_settled_in_the_end(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others may be too busy at first to say what they have in flight."""
    monkeypatch.setattr(processes_module, "COMMAND", (sys.executable, "-c", WORKER))
    monkeypatch.setattr(processes_module, "AGAIN_S", 0.01)
    tries: list[int] = []

    async def settle() -> None:
        tries.append(office.crew.members[0].pid)
        if len(tries) < 3:
            raise Unavailable("busy")

    processes = _processes(office, 1, settle)
    await processes.start()
    first = office.crew.members[0]
    first.kill()
    try:
        await until(lambda: len(tries) >= 3)
    finally:
        await processes.stop(0)

    assert [tries[0]] * 3 == tries
    assert first.pid != tries[0]


# The first waits for the second, then does as is said for it; the second, then asked to end, fails.
ENDS_BADLY = """
import asyncio, pathlib, signal, socket, sys, time
from strop.proxy.workers.frames import Moved, Started
from strop.proxy.workers.link import Link

async def main(end):
    link = await Link.open(end)
    begin = await link.first()
    second_is_in = pathlib.Path(begin.home, "in")
    if begin.number == 2:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        second_is_in.touch()
    while not second_is_in.exists():
        time.sleep(0.01)
    if begin.number == 1:
        FIRST
    link.tell(Started())
    link.tell(Moved(begin.turn, {}))
    await link.run(lambda note: None, None)

number = sys.argv[sys.argv.index("--link-fd") + 1]
asyncio.run(main(socket.socket(fileno=int(number))))
"""


# A worker as it is, but that its database can't be closed.
KEEPS_OPEN = """
from strop.proxy.errors import StoreUnavailable
from strop.proxy.store.store import Store
from strop.proxy.workers.process import main

close = Store.close

async def fail(store):
    await close(store)
    raise StoreUnavailable("the disk is full")

Store.close = fail
raise SystemExit(main())
"""


@pytest.fixture
def signals() -> Iterator[None]:
    """Handle signals afterwards as before: uvloop leaves its own handlers where they are."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.getsignal(number)) for number in handled]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (KEEPS_OPEN, "a worker did not end in order; the log says why"),
        (ENDS_BADLY.replace("FIRST", "pass"), "a worker did not end in order; the log says why"),
        (
            ENDS_BADLY.replace("FIRST", "sys.exit(1)"),
            "a worker could not be started; the log says why",
        ),
    ],
    ids=["real", "one of two", "never in"],
)
def test_a_worker_that_fails_to_end_in_order_is_told_of(
    worker: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It has said why itself; strop's own exit status then tells whoever started it.

    Unless it is stopped because strop failed before: then why that was is what is said.
    """
    monkeypatch.setattr(processes_module, "COMMAND", (sys.executable, "-c", worker))

    async def stop(_: Control) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    settings = settings_for("http://127.0.0.1:1", kind="openai", server={"workers": 2})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        status = supervisor.run(settings, tmp_path, listener, stop)

    assert 1 == status
    (failed,) = [one for one in caplog.records if one.message == "strop failed"]
    assert reason == vars(failed)["reason"]


async def test_what_is_in_flight_is_asked_of_the_others(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says nothing may have it: then nobody knows."""
    monkeypatch.setattr(crew_module, "ANSWER_TIMEOUT_S", LIMIT_S)
    (asker, _), (_, other) = await office.hire(1), await office.hire(2)
    other.in_flight["cmp_1"] = "key_1"

    assert "key_1" == await office.crew.key_of("cmp_1", asker=asker)
    assert await office.crew.key_of("cmp_2", asker=asker) is None
    other.is_deaf = True
    monkeypatch.setattr(crew_module, "ANSWER_TIMEOUT_S", 0.05)
    with pytest.raises(Unavailable, match="worker 2"):
        await office.crew.key_of("cmp_1", asker=asker)


async def test_an_error_crosses_the_line_as_itself(office: Office) -> None:
    """Its class, its message and its parameter; a line that is cut says so."""
    member, hand = await office.hire(1)

    await hand.link.ask(Bring("v1"), Done)
    with pytest.raises(UnknownModel, match="no v2") as raised:
        await hand.link.ask(Bring("v2"), Done)
    assert "model" == raised.value.param
    member.link.close()
    with pytest.raises(Unavailable, match="ended"):
        await hand.link.ask(Bring("v1"), Done)


async def test_an_answer_that_can_not_be_sent_is_an_error() -> None:
    """Who asked would wait for ever."""
    asker, teller = [await Link.open(end) for end in socket.socketpair()]

    async def answer(_call: Call) -> Answer:
        return Key("\ud800")

    async with asyncio.TaskGroup() as tasks:
        for link in (asker, teller):
            tasks.create_task(link.run(lambda _note: None, answer))
        with pytest.raises(StropError, match="see its log"):
            await asker.ask(KeyOf("cmp_1"), Key)
        asker.close()
