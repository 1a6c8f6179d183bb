"""The fake engine breaks like a killed process: also a connection that it has just accepted."""

import asyncio
import gc
import socket
import sys

import pytest
from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from waiting import LIMIT_S


@pytest.mark.parametrize("steps", range(6))
async def test_a_stop_breaks_each_connection_however_far_it_is(steps: int) -> None:
    """Counted in steps of the event loop since the client connected."""
    engine = FakeEngine(FakeVllm())
    await engine.start()
    with socket.create_connection(("127.0.0.1", engine.port), timeout=LIMIT_S) as client:
        for _ in range(steps):
            await asyncio.sleep(0)
        await engine.stop()
        gc.collect()

        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux alone")
async def test_a_stopped_engine_keeps_its_port() -> None:
    """It comes back there: whoever had it meanwhile would be asked in its place."""
    async with FakeEngine(FakeVllm()) as engine:
        await engine.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", engine.port), timeout=LIMIT_S)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", engine.port))
        await engine.start()

        socket.create_connection(("127.0.0.1", engine.port), timeout=LIMIT_S).close()
