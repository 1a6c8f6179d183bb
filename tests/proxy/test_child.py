"""A child process of strop's: its output is kept, and it ends when it should."""

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from waiting import LIMIT_S, until

from strop.proxy import child
from strop.proxy.child import BackOff, Child, last_words

WAITS = """
import sys
print("waiting", flush=True)
open(int(sys.argv[-1]), "rb").read()
print("strop is gone", flush=True)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def python(script: str) -> list[str]:
    """Return a command that runs a script, and is told the pipe's end as the last argument."""
    return [sys.executable, "-c", script]


async def test_what_it_says_goes_to_a_file_for_its_owner(tmp_path: Path) -> None:
    """Both outputs, after what was there; the last line tells why it ended."""
    log_path = tmp_path / "output.log"
    script = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"

    codes = [await (await Child.start(python(script), log_path=log_path)).wait() for _ in range(2)]

    assert [3, 3] == codes
    assert 2 == log_path.read_text(encoding="utf-8").count("one")
    assert 0o600 == log_path.stat().st_mode & 0o777
    assert "two" in log_path.read_text(encoding="utf-8")
    assert last_words(log_path) in ("one", "two")
    assert "" == last_words(tmp_path / "none.log")


def test_what_ends_again_and_again_is_waited_for_longer() -> None:
    """Until it has run for long: then it counts as started for the first time."""
    back_off = BackOff(0.1, 1.0, 5.0)

    waits_s = [back_off.after(ran_s) for ran_s in (0, 0, 29.9, 0, 30.1, 0, 3600, 3600)]

    assert [0.1, 1.0, 5.0, 5.0, 0.1, 1.0, 0.1, 0.1] == waits_s


async def test_it_leads_a_session_of_its_own(tmp_path: Path) -> None:
    """A Ctrl-C in the terminal isn't for it."""
    started = await Child.start(python(WAITS), log_path=tmp_path / "log")

    session = os.getsid(started.pid)
    await started.stop()

    assert started.pid == session


async def test_it_learns_that_strop_died(tmp_path: Path) -> None:
    """The end of its pipe is the end of strop, however that came."""
    log_path = tmp_path / "log"
    starts = "import asyncio, os, pathlib, signal, sys\n"
    starts += "from strop.proxy.child import Child\n"
    starts += "async def start_and_die():\n"
    starts += (
        f"    await Child.start({python(WAITS)!r}, log_path=pathlib.Path({str(log_path)!r}))\n"
    )
    starts += "    os.kill(os.getpid(), signal.SIGKILL)\n"
    starts += "asyncio.run(start_and_die())"

    parent = await asyncio.create_subprocess_exec(*python(starts))
    await parent.wait()

    await until(lambda: "strop is gone" in last_words(log_path))


async def test_it_is_stopped_by_a_signal(tmp_path: Path) -> None:
    """And again, which changes nothing."""
    log_path = tmp_path / "log"
    started = await Child.start(python(WAITS), log_path=log_path)
    await until(lambda: "waiting" in last_words(log_path))

    await started.stop()
    await started.stop()

    assert -signal.SIGTERM == await started.wait()


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_one_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_cancelled: bool
) -> None:
    """After its time, also by a task that is cancelled itself."""
    monkeypatch.setattr(child, "STOP_TIMEOUT_S", 0.05)
    log_path = tmp_path / "log"
    started = await Child.start(python(DEAF), log_path=log_path)
    await until(lambda: "deaf" in last_words(log_path))
    holds = asyncio.Event()

    async def keep() -> int:
        try:
            holds.set()
            await asyncio.sleep(0 if not is_cancelled else LIMIT_S)
        finally:
            code = await started.stop()
        return code

    keeping = asyncio.create_task(keep())
    await holds.wait()
    if is_cancelled:
        keeping.cancel()
    await asyncio.wait([keeping])

    assert keeping.cancelled() == is_cancelled
    assert -signal.SIGKILL == await started.wait()


async def test_what_can_not_be_started_is_an_error(tmp_path: Path) -> None:
    """Nothing is left open."""
    # Else what only garbage holds might be closed in between.
    gc.collect()
    num_open = len(list(Path("/dev/fd").iterdir()))

    with pytest.raises(FileNotFoundError):
        await Child.start([str(tmp_path / "none")], log_path=tmp_path / "log")

    assert num_open == len(list(Path("/dev/fd").iterdir()))
