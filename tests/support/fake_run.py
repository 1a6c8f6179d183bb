"""A training run's process that trains nothing, and ends as its first argument says.

passes    publishes a version, and passes
rejects   publishes a version that the gate rejects
dies      ends with status 3, the row unfinished, its reason on standard error
killed    the same, by SIGKILL
fails     ends as a run does that says why it can't go on
waits     takes a step, then waits until it is cancelled, or told to stop
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import shelved

from strop.adapters.library import Library
from strop.proxy.store import run_lock
from strop.proxy.store.run_records import RunUpdate
from strop.proxy.store.store import Store

LAST_WORDS = "no more memory"


def command(behaviour: str) -> Callable[[Path, str], Sequence[str]]:
    """Return the command line of a run's process that behaves so."""
    return lambda home, run: [
        *(sys.executable, __file__, behaviour),
        *("--home", str(home), "--run", run),
    ]


async def take(behaviour: str, home: Path, run: str, parent_fd: int) -> int:
    """Behave so; return the exit status."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    loop.add_reader(parent_fd, told.set)
    store = await Store.open(home / "strop.db")
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_lock.hold(home / "runs", run))
        try:
            return await _behave(behaviour, home, run, store, told)
        finally:
            await store.close()


async def _behave(behaviour: str, home: Path, id_: str, store: Store, told: asyncio.Event) -> int:
    run = await store.runs.update(id_, RunUpdate(state="running", num_steps=4))
    if behaviour in ("dies", "killed"):
        print("warming up", flush=True)
        print(LAST_WORDS, file=sys.stderr)
        if behaviour == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return 3
    await store.runs.add_step(id_, 1, b'{"loss": 0.5}', eta_s=30.0)
    if behaviour == "fails":
        await store.runs.update(id_, RunUpdate(state="failed", reasons=b'["too little memory"]'))
        return 1
    if behaviour == "waits":
        while not told.is_set():
            found = await store.runs.get(id_)
            if found is not None and found.is_cancelling:
                await store.runs.update(id_, RunUpdate(state="cancelled"))
                return 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await told.wait()
        return 0
    await store.runs.update(id_, RunUpdate(state="gating"))
    library = Library(home / "adapters")
    publish = partial(shelved.publish, store, library, base=run.base, parent=run.parent, run=id_)
    if behaviour == "rejects":
        await publish(state="rejected")
        await store.runs.update(id_, RunUpdate(state="rejected", reasons=b'["too odd"]'))
        return 0
    await publish()
    await store.runs.update(id_, RunUpdate(state="passed", reasons=b'["good enough"]'))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--run")
    parser.add_argument("--parent-fd", type=int)
    given = parser.parse_args()
    sys.exit(asyncio.run(take(given.behaviour, given.home, given.run, given.parent_fd)))
