"""Connections are dealt to the workers evenly, and none that a worker has not taken is lost."""

import asyncio
import contextlib
import gc
import os
import resource
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loops import on_both_loops
from waiting import until

from strop.proxy.workers.door import TAKEN, Arrivals, Door, Passage

# About three times what Linux lets be on its way between two processes.
NUM_IN_A_RUSH = 800


def num_files() -> int:
    """Return how many files this process has open, beside what only garbage holds."""
    gc.collect()
    return sum(1 for _ in Path("/dev/fd").iterdir())


class Echo(asyncio.Protocol):
    """Says which worker it is of; closes when told anything."""

    def __init__(self, name: bytes, arrivals: Arrivals, served: "set[Echo]") -> None:
        self._name = name
        self._arrivals = arrivals
        self._served = served
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._served.add(self)
        transport.write(self._name)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        """Close."""
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the door."""
        self._served.discard(self)
        self._arrivals.closed()


@dataclass
class House:
    """A door with workers in the test's own loop, and clients before it."""

    door: Door
    port: int
    clients: list[asyncio.StreamWriter] = field(default_factory=list)
    arrivals: list[Arrivals] = field(default_factory=list)
    served: set[Echo] = field(default_factory=set)

    def worker(self, name: bytes, *, takes: bool = True) -> Passage:
        """Return the passage to a new worker, which may not take what is handed to it."""
        ours, theirs = socket.socketpair()
        passage, arrivals = Passage(ours), Arrivals(theirs)
        self.arrivals.append(arrivals)
        if takes:
            self.start(-1, name)
        self.door.open(passage)
        return passage

    def start(self, number: int, name: bytes) -> None:
        """Let a worker take what is handed to it."""
        arrivals = self.arrivals[number]
        arrivals.start(lambda: Echo(name, arrivals, self.served))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a new connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        return reader, writer

    async def ask(self) -> bytes:
        """Return which worker has a new connection, which stays."""
        reader, _ = await self.connect()
        return await reader.read(100)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A door, and no worker yet."""
    listener = socket.create_server(("127.0.0.1", 0))
    found = House(Door(listener), listener.getsockname()[1])
    yield found
    found.door.close()
    for one in found.arrivals:
        await one.stop()
    for client in found.clients:
        client.close()
        with contextlib.suppress(OSError):
            await client.wait_closed()
    # Else what is still open would be found open when a later test runs.
    await until(lambda: not found.served)


async def test_each_has_as_many_as_the_others(house: House) -> None:
    """Whatever ends meanwhile: the next ones go to who has fewer."""
    house.worker(b"a")
    house.worker(b"b")
    pairs = [await house.connect() for _ in range(8)]
    named = [(await reader.read(100), reader, writer) for reader, writer in pairs]
    for name, reader, writer in named:
        if name == b"a":
            writer.write(b"end")
            await reader.read()

    dealt = [name for name, _, _ in named]
    assert 4 == dealt.count(b"a")
    assert [b"a"] * 4 == [await house.ask() for _ in range(4)]


async def test_what_a_worker_has_no_file_left_for_is_not_counted_as_its_own(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel drops it on the way; the client is told by the end, and the next one is served."""
    passage = house.worker(b"a", takes=False)
    reader, _ = await house.connect()
    await until(lambda: passage.num_connections)
    # What only garbage holds would be free at some moment below.
    gc.collect()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        house.start(0, b"a")
        await until(lambda: not passage.num_connections)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert b"" == await reader.read(100)
    assert "can open no more files" in caplog.text
    assert b"a" == await house.ask()
    assert 1 == passage.num_connections


async def test_connections_wait_for_a_worker(house: House) -> None:
    """While there is none, they are let in by nobody, and refused by nobody."""
    reader, _ = await house.connect()
    house.worker(b"a")

    assert b"a" == await reader.read(100)


async def test_what_a_dead_worker_has_not_taken_goes_to_another(house: House) -> None:
    """And what comes after it, too."""
    dead = house.worker(b"dead", takes=False)
    readers = [(await house.connect())[0] for _ in range(3)]
    await until(lambda: dead.num_connections == 3)
    house.worker(b"a")
    house.door.shut(dead)

    assert [b"a"] * 3 == [await reader.read(100) for reader in readers]
    assert b"a" == await house.ask()


async def test_what_a_dead_worker_leaves_alone_waits_for_the_next(house: House) -> None:
    """A crash of the only worker costs a connection nothing but time."""
    dead = house.worker(b"dead", takes=False)
    reader, _ = await house.connect()
    await until(lambda: dead.num_connections)
    house.door.shut(dead)
    house.worker(b"a")

    assert b"a" == await reader.read(100)


async def test_more_come_at_once_than_fit_into_the_way(house: House) -> None:
    """A worker that is busy has them later, each of them; and the door knows when they are gone."""
    passage = house.worker(b"a", takes=False)
    pairs = [await house.connect() for _ in range(NUM_IN_A_RUSH)]
    await until(lambda: passage.num_connections == NUM_IN_A_RUSH)
    house.start(0, b"a")
    said = [await reader.read(100) for reader, _ in pairs]
    for _, writer in pairs:
        writer.write(b"end")

    assert [b"a"] * NUM_IN_A_RUSH == said
    await until(lambda: not passage.num_connections)


async def test_each_word_of_a_worker_reaches_the_door(house: House) -> None:
    """However many it says at once."""
    passage = house.worker(b"a", takes=False)
    passage.num_connections = NUM_IN_A_RUSH
    for _ in range(NUM_IN_A_RUSH):
        house.arrivals[0].closed()

    await until(lambda: not passage.num_connections)


async def test_a_worker_that_takes_no_more_gets_no_more(house: House) -> None:
    """It says so by closing its end; what waits there goes to another."""
    house.worker(b"ends", takes=False)
    reader, _ = await house.connect()
    house.worker(b"a")
    await house.arrivals[0].stop()

    assert b"a" == await reader.read(100)
    assert [b"a", b"a"] == [await house.ask() for _ in range(2)]


@on_both_loops
async def test_what_a_worker_has_taken_is_served_before_it_takes_no_more() -> None:
    """Else nobody would tell it that the worker ends, and it would be waited for."""
    ours, theirs = socket.socketpair()
    client, connection = socket.socketpair()
    made: list[asyncio.BaseTransport] = []

    class Served(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)

    arrivals = Arrivals(theirs)
    arrivals.start(Served)
    ours.setblocking(False)
    socket.send_fds(ours, [b"c"], [connection.fileno()])
    connection.close()
    taken = b""
    while not taken:
        await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError):
            taken = ours.recv(1)
    num_before = len(made)
    await arrivals.stop()
    num_after = len(made)
    (transport,) = await until(lambda: made)
    transport.close()
    client.close()
    ours.close()

    assert (TAKEN, 0, 1) == (taken, num_before, num_after)


async def test_an_option_that_is_refused_turns_nobody_away(tmp_path: Path) -> None:
    """As macOS refuses TCP_NODELAY to whom has left; here the connection is not TCP's."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "door"))
    listener.listen()
    house = House(Door(listener), 0)
    house.worker(b"a")
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "door"))
    async with asyncio.timeout(30):
        said = await reader.read(100)
    writer.close()
    await writer.wait_closed()
    house.door.close()
    await house.arrivals[0].stop()
    await until(lambda: not house.served)

    assert b"a" == said


async def test_a_closed_door_lets_nobody_in(house: House) -> None:
    """What was handed down and not taken is cut off, once the worker takes no more either."""
    passage = house.worker(b"a", takes=False)
    reader, _ = await house.connect()
    await until(lambda: passage.num_connections)
    house.door.close()
    await house.arrivals[0].stop()

    with contextlib.suppress(ConnectionResetError):
        assert b"" == await reader.read()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", house.port)


async def test_no_file_is_left_open(house: House) -> None:
    """The process that accepts keeps no connection that a worker has."""
    house.worker(b"a")
    await (await house.connect())[0].read(100)
    before = num_files()
    for _ in range(5):
        reader, writer = await house.connect()
        await reader.read(100)
        writer.write(b"end")
        await reader.read()
        writer.close()
        await writer.wait_closed()

    assert before == num_files()
