"""The embedded engine's process, when it ends."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from waiting import until

from strop.proxy.engines.embedded import EngineProcess


@pytest.mark.parametrize(
    ("sig", "is_for_memory"), [(signal.SIGKILL, True), (signal.SIGUSR1, False)]
)
async def test_an_engine_that_was_killed_is_said_to_lack_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sig: signal.Signals, is_for_memory: bool
) -> None:
    """On a small machine that is why, and an exit code of -9 tells it to few."""

    async def unknown() -> None:
        return None

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
