"""A training run in a terminal."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from waiting import until

from strop.proxy import foreground
from strop.proxy.store import run_lock
from strop.proxy.store.store import Store

# It says each time that it waits for the run.
SCRIPT = """
import subprocess, sys
from pathlib import Path
import fake_run
from strop.proxy import foreground
wait = subprocess.Popen.wait
def say_and_wait(process):
    print("waits", file=sys.stderr, flush=True)
    return wait(process)
subprocess.Popen.wait = say_and_wait
command = fake_run.command("waits")
foreground.see_through(Path(sys.argv[1]), sys.argv[2], is_quiet=False, command=command)
"""


@contextlib.asynccontextmanager
async def waiting_run(home: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start a command that sees a run through, which waits; end it."""
    runs = home / "runs"
    runs.mkdir()
    store = await Store.open(home / "strop.db")
    run = await store.runs.create(
        objective="kto",
        preset="default",
        parent="base",
        base="sha256:1",
        requested_by="cli",
        config=b"{}",
    )
    await store.close()
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT, str(home), run.id),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await until(lambda: run_lock.is_held(runs))
        yield command, run.id
    finally:
        if command.returncode is None:
            command.kill()
        await command.communicate()
        await until(lambda: not run_lock.is_held(runs))


async def test_a_run_stops_with_the_command_that_it_was_started_by(tmp_path: Path) -> None:
    """However that ends: nobody would know of it any more, and no other could be begun."""
    async with waiting_run(tmp_path) as (command, _):
        command.kill()
        await command.wait()

        await until(lambda: not run_lock.is_held(tmp_path / "runs"))


async def test_an_interrupt_says_what_becomes_of_the_run(tmp_path: Path) -> None:
    """A step may take a minute, and the gate several."""
    async with waiting_run(tmp_path) as (command, run):
        assert command.stderr is not None
        assert b"waits\n" == await command.stderr.readline()
        command.send_signal(signal.SIGINT)
        said = [await command.stderr.readline(), await command.stderr.readline()]

    assert f"{run} stops at its next step, to be resumed" in b"".join(said).decode()


def test_a_ctrl_c_in_the_terminal_reaches_the_command_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Which tells the run: while that is still importing, it would end with a traceback."""
    said_by_run = [sys.executable, "-c", "import os; print(os.getsid(0))"]

    foreground.see_through(tmp_path, "run_1", is_quiet=False, command=lambda *_: said_by_run)

    assert os.getsid(0) != int(capfd.readouterr().out)
