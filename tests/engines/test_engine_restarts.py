"""The embedded engine's process: when it ends, and who may have its port meanwhile."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from waiting import LIMIT_S, until

from strop.configs import installation
from strop.proxy.engines.embedded import EngineProcess, hold_port

NOBODY = 65_534
KEY = "key-of-this-start"


async def unknown() -> None:
    """Return no identity of a base."""


@pytest.mark.parametrize(
    ("sig", "is_for_memory"), [(signal.SIGKILL, True), (signal.SIGUSR1, False)]
)
async def test_an_engine_that_was_killed_is_said_to_lack_memory(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    sig: signal.Signals,
    is_for_memory: bool,
) -> None:
    """On a small machine that is why, and an exit code of -9 tells it to few."""
    # One that doesn't end by itself before.
    asleep = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(installation, "module", lambda _: asleep)
    process = EngineProcess("no-model", name="none", log_path=tmp_path / "log")
    keeping = asyncio.create_task(process.keep_alive(unknown))
    pid = await until(lambda: process.pid)
    assert pid is not None

    os.kill(pid, sig)
    await until(lambda: "ended; starting it again" in caplog.text)
    await process.stop()
    await keeping

    (record,) = [one for one in caplog.records if "ended; starting it again" in one.getMessage()]
    assert -sig == record.__dict__["exit_code"]
    assert is_for_memory == ("lack of memory" in record.__dict__.get("why", ""))


@pytest.mark.skipif(sys.platform != "linux", reason="on macOS root gets every port")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")
def test_no_other_user_gets_the_port_while_the_engine_is_down_or_up() -> None:
    """Whoever had it would be asked in the engine's place; who asks then is refused at once."""
    num_taken: list[int] = []
    is_refused: list[bool] = []

    def look() -> None:
        num_taken.append(ways_in(port))
        is_refused.append(refuses(port))

    with hold_port("127.0.0.1") as held:
        port = held.getsockname()[1]
        look()
        held.listen()
        look()
        with hold_port("127.0.0.1", port):
            held.close()
            look()
    num_taken.append(ways_in(port))

    assert [0, 0, 0] == num_taken[:3]
    assert num_taken[3] > 0  # or the attempts would be no attempts
    assert [True, False, True] == is_refused


def ways_in(port: int) -> int:
    """Return in how many ways another user can bind the port, and listen there."""
    hosts = ("127.0.0.1", "0.0.0.0")
    options = ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,))
    return sum(is_bound(host, port, one) for host, one in itertools.product(hosts, options))


def is_bound(host: str, port: int, options: tuple[int, ...]) -> bool:
    """Whether another user can."""
    with nobody(), socket.socket() as other:
        for option in options:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            other.bind((host, port))
            other.listen()
        except OSError:
            return False
    return True


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be another user."""
    former = os.geteuid()
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(former)


def refuses(port: int) -> bool:
    """Whether a connection to the port is refused."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_nobody_gets_the_port_before_an_engine_has_started_or_once_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had it would be told the key, and no engine could start any more."""
    asleep = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(installation, "module", lambda _: asleep)
    process = EngineProcess("no-model", name="none", log_path=tmp_path / "log")
    is_taken = [not can_bind(process.port)]
    keeping = asyncio.create_task(process.keep_alive(unknown))
    pid = await until(lambda: process.pid)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: process.pid is None)
    is_taken.append(not can_bind(process.port))
    await process.stop()
    await keeping
    is_taken.append(not can_bind(process.port))

    assert [True, True, False] == is_taken


def can_bind(port: int) -> bool:
    """Whether a server of anybody's could listen there."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", port))
            other.listen()
        except OSError:
            return False
    return True


@pytest.mark.engine
async def test_an_engine_that_was_killed_comes_back_at_its_port_with_its_key(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers and workers know both for as long as strop serves; meanwhile nobody answers there."""
    # Of another engine, which strop served before.
    monkeypatch.setenv("STROP_ENGINE_KEY", "of-another")
    process = EngineProcess(str(qwen3), name="tiny", log_path=tmp_path / "log", key=KEY)
    keeping = asyncio.create_task(process.keep_alive(unknown))
    credentials = {"authorization": f"Bearer {KEY}"}
    statuses = []
    async with httpx.AsyncClient(base_url=process.url, timeout=LIMIT_S) as client:

        async def health(headers: dict[str, str]) -> int:
            try:
                return (await client.get("/health", headers=headers)).status_code
            except httpx.TransportError:
                return 0

        for _ in range(2):
            await until(lambda: health(credentials), lambda status: status == 200)
            statuses.append(await health({}))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            await until(lambda: process.pid is None)
            # macOS lets who connects there wait.
            assert sys.platform == "darwin" or refuses(process.port)
    await process.stop()
    await keeping

    assert [401, 401] == statuses
