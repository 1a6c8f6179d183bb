"""A training run as a process: `python -m strop.training.run --home DIR --run ID`.

Owns what a process owns: the lock, the priority, signals, the parent's pipe, the exit status. What
a run does is in `pipeline`.

    the run ends                       its row says how; exit status 0, of a failed one 1
    its row says it is to be cancelled at the next place to stop; state `cancelled`, status 0
    SIGTERM, SIGINT, parent gone       at the next place to stop; can be resumed, status 0
    kill -9, power cut                 can be resumed
"""

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from strop.configs import installation
from strop.proxy.errors import StoreUnavailable, StropError
from strop.proxy.store import layout, run_folder, run_lock, upgrading
from strop.proxy.store.run_lock import AlreadyRunning
from strop.proxy.store.run_records import UNFINISHED, Run, RunUpdate
from strop.proxy.store.store import Store
from strop.training.reports import Reports
from strop.training.run_row import RunRow, to_json
from strop.training.stopping import Stopped, Stopping

NICENESS: Final = 10

_POLL_S: Final = 0.3
# How long a step may take to come to its end once the parent is gone.
_GRACE_S: Final = 20.0
_PATIENCE_S: Final = 30.0
_STOPPED: Final = RunUpdate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="strop.training.run", description="Take a run to its end."
    )
    parser.add_argument("--home", type=Path, required=True, help="strop's home folder")
    parser.add_argument("--run", required=True, help="the run's id")
    parser.add_argument("--parent-fd", type=int, help="a pipe whose end of file stops the run")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.nice(NICENESS)
    return asyncio.run(take(parsed.home, parsed.run, parsed.parent_fd))


async def take(
    home: Path, run_id: str, parent_fd: int | None = None, *, patience_s: float = _PATIENCE_S
) -> int:
    """Take a run to its end; return the exit status.

    Args:
        home: strop's home.
        run_id: the run, which must not be over.
        parent_fd: a pipe whose end of file stops the run.
        patience_s: how long to wait for another process that is at the same run, and may be ending.
    """
    try:
        async with upgrading.opening(home, functools.partial(print, file=sys.stderr)):
            store = await Store.open(home / layout.DATABASE)
    except StropError as error:
        print(error.message, file=sys.stderr)
        return 1
    try:
        deadline_s = time.monotonic() + patience_s
        while True:
            run = await store.runs.get(run_id)
            if run is None:
                print(f"there is no run {run_id} in {home}", file=sys.stderr)
                return 1
            if run.state not in UNFINISHED:
                print(f"{run_id} is over: {run.state}", file=sys.stderr)
                return 0
            try:
                return await _locked(home, store, run, parent_fd)
            except AlreadyRunning as error:
                # Whose parent has just died stops at its next step, and then it's our turn; so it
                # is when a probe is made, which takes minutes, or something is deleted.
                is_ending = error.run == run_id and time.monotonic() < deadline_s
                if is_ending or error.run in (run_lock.PROBE, run_lock.DELETION):
                    await asyncio.sleep(_POLL_S)
                    continue
                print(error, file=sys.stderr)
                if error.run != run_id:
                    # Of the run under way itself, the other process keeps the row.
                    failed = RunUpdate(state="failed", reasons=to_json([str(error)]))
                    await store.runs.update(run_id, failed)
                return 1
    finally:
        await store.close()


async def _locked(home: Path, store: Store, run: Run, parent_fd: int | None) -> int:
    """Take the run to its end, unless another one is under way."""
    folder = run_folder.make(home, run.id)
    with run_lock.hold(folder.parent, run.id):
        for other in folder.parent.iterdir():
            # One that was given up, or killed at its very end, could not do so itself.
            if other.is_dir() and other != folder:
                run_folder.clean(other)
        return await _work(home, folder, store, run, parent_fd)


async def _work(home: Path, folder: Path, store: Store, run: Run, parent_fd: int | None) -> int:
    """Take the run to its end; return the exit status."""
    loop = asyncio.get_running_loop()
    stopping = Stopping()
    reports = Reports(folder, sys.stdout)
    row = RunRow(store, loop, run)
    watching = asyncio.create_task(_watch_row(row, stopping))
    try:
        with _stopped_by(loop, stopping, parent_fd):
            end = await asyncio.to_thread(_train, home, folder, row, reports, stopping)
            while end is _STOPPED and stopping.begin_anew():
                row.completions = ()
                run_folder.clean(folder)
                reports.event("began_anew")
                reports.say("an answer was deleted that it had collected: the run begins anew")
                end = await asyncio.to_thread(_train, home, folder, row, reports, stopping)
        if end is _STOPPED:
            if not await store.training.are_recorded(row.completions):
                # It begins anew when it goes on, and nobody knows when that is.
                run_folder.clean(folder)
            known = await store.runs.get(run.id)
            if known is None or not known.is_cancelling:
                reports.event("stopped")
                return 0
            end = RunUpdate(state="cancelled")
        # First, since a full disk may be what ended it.
        run_folder.clean(folder)
        if end is not None:
            run = await store.runs.update(run.id, end)
            reports.event("over", state=run.state)
            reports.say(f"{run.id}: {run.state}. {run.reasons.decode()}")
        return 1 if run.state == "failed" else 0
    finally:
        watching.cancel()
        reports.close()


def _train(
    home: Path, folder: Path, row: RunRow, reports: Reports, stopping: Stopping
) -> RunUpdate | None:
    """Train; return what the row has yet to say, None where it says all, or `_STOPPED`."""
    try:
        # What trains is imported here, so that its lack is a reason like any other.
        from strop.training.pipeline import EXPECTED, Pipeline
    except ImportError as error:
        needs = f"training needs {error.name}, which is not installed"
        reason = f"{needs}: {installation.install_backend()}"
        return _failed(reports, reason)
    try:
        Pipeline(home, folder, row, reports, stopping).run()
    except Stopped:
        return _STOPPED
    except OSError as error:
        reason = (
            f"the run could not write or read its files: {error}; set that right and train again:"
            " no rating was used up"
        )
        return _failed(reports, reason)
    except EXPECTED as error:
        return _failed(reports, str(error))
    except Exception as error:  # noqa: BLE001 - the edge of a background task
        trace = folder / run_folder.LOG_FILE
        return _failed(reports, f"internal error, please report it: {error!r}; see {trace}")
    return None


def _failed(reports: Reports, reason: str) -> RunUpdate:
    reports.event("failed", reason=reason, trace=traceback.format_exc())
    return RunUpdate(state="failed", reasons=to_json([reason]))


async def _watch_row(row: RunRow, stopping: Stopping) -> None:
    """Ask the run to stop once its row says that it is to be cancelled. Runs until cancelled.

    Where an answer was deleted that it learns from, or is judged by, it is to begin anew.
    """
    store, run = row.store, row.run.id
    while True:
        with contextlib.suppress(StoreUnavailable):
            collected = row.completions
            is_whole = await store.training.are_recorded(collected)
            if not is_whole and row.completions is collected:
                stopping.ask_to_begin_anew()
            known = await store.runs.get(run)
            if known is not None and known.is_cancelling:
                stopping.ask()
        await asyncio.sleep(_POLL_S)


@contextlib.contextmanager
def _stopped_by(
    loop: asyncio.AbstractEventLoop, stopping: Stopping, parent_fd: int | None
) -> Iterator[None]:
    """Ask the run to stop on SIGTERM, on SIGINT, and when the parent's end of the pipe closes."""

    def parent_is_gone() -> None:
        if parent_fd is not None:
            loop.remove_reader(parent_fd)
        stopping.ask()
        # Nobody waits any more, and what is on disk is enough to go on from.
        loop.call_later(_GRACE_S, os._exit, 0)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.ask)
    if parent_fd is not None:
        loop.add_reader(parent_fd, parent_is_gone)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if parent_fd is not None:
            loop.remove_reader(parent_fd)


def _leave(status: int) -> NoReturn:
    """End the process at once; all that is to stay is on disk by now."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # MLX frees what a thread has compiled after its join, and Python's own end would abort that.
    os._exit(status)


if __name__ == "__main__":
    _leave(main())
