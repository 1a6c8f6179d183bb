"""The process that decides, where several answer: on the engine, the versions and the training.

Answers no client: the workers do. They end with it, however it ends.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from strop.proxy import configured_engine
from strop.proxy.errors import StropError
from strop.proxy.http_server import collect_rarely, say_stopping
from strop.proxy.parts import Control, run_control
from strop.proxy.settings.settings import Settings
from strop.proxy.workers.census import CrewCensus
from strop.proxy.workers.crew import Crew
from strop.proxy.workers.desk import Desk
from strop.proxy.workers.door import Door
from strop.proxy.workers.processes import WorkerProcesses

log = logging.getLogger(__name__)

Announce = Callable[[Control], Awaitable[None]]


def run(settings: Settings, home: Path, listener: socket.socket, announce: Announce) -> int:
    """Serve with `server.workers` processes until stopped by a signal; return the exit status.

    Args:
        settings: all of them.
        home: strop's home, which this process holds.
        listener: where clients connect to.
        announce: tells people, once the engine is ready; cancelled where strop stops before.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, home, listener, announce))


async def _serve(
    settings: Settings, home: Path, listener: socket.socket, announce: Announce
) -> int:
    door = Door(listener)
    crew = Crew(door)
    engine, process = configured_engine.make(settings, home)
    try:
        async with run_control(
            settings,
            home,
            engine,
            process,
            census=lambda store, metrics: CrewCensus(crew, store, metrics),
            leases=crew.leases,
        ) as control:
            crew.follow(control.serving)
            desk = Desk(control, crew)
            workers = WorkerProcesses(
                settings.server.workers,
                crew,
                begin=desk.begin,
                answer=desk.answer,
                on_replaced=desk.withdraw_lost,
            )
            try:
                work = _work(workers, crew, lambda: announce(control))
                asked_by = await _until_stopped(crew, work)
                say_stopping(asked_by, (await control.census.take()).in_flight)
            finally:
                crew.is_draining = True
                door.close()
                is_in_order = await workers.stop(settings.server.drain_s)
            # Not where it is stopped because something else failed: that is to be said.
            if not is_in_order:
                raise StropError("a worker did not end in order; the log says why")
    except StropError as error:
        log.error("strop failed", extra={"reason": error.message})
        return error.exit_status
    return 0


async def _work(
    workers: WorkerProcesses, crew: Crew, announce: Callable[[], Awaitable[None]]
) -> None:
    await workers.start()
    collect_rarely()
    await asyncio.gather(announce(), crew.watch())


async def _until_stopped(crew: Crew, work: Coroutine[Any, Any, None]) -> signal.Signals:
    """Let strop work until a signal asks it to stop, and return that.

    A second Ctrl-C lets nothing finish.

    Raises:
        StropError: it can't.
    """
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(sig: signal.Signals) -> None:
        if not stopped.done():
            stopped.set_result(sig)
        elif sig == signal.SIGINT:
            # Not the signal: of two that are pending, the one sent later may come first.
            crew.hurry()

    # SIGHUP: the terminal was closed. Under nohup it is ignored, and stays so.
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sig) != signal.SIG_IGN:
            loop.add_signal_handler(sig, stop, sig)
    working = asyncio.create_task(work)
    try:
        waited: list[asyncio.Future[Any]] = [working, stopped]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return await stopped
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
