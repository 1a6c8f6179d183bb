"""A strop in a process of its own that begins an activation, and is killed at a step of it.

Run as a program: `swap_process.py HOME ENGINE_URL VERSION STEP`. It kills itself when the step has
begun; at `done`, when the activation has ended. Knows no routes: it has the services alone.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from running import settings_for

from strop.proxy import configured_engine
from strop.proxy.parts import Services, run_services


async def _activate(home: Path, url: str, version: str, step: str) -> None:
    settings = settings_for(url, engine={"health_interval_s": 0.05})
    engine, process = configured_engine.make(settings, home)
    async with run_services(settings, home, engine, process) as services:
        await services.serving.wait_until_ready()
        activation = asyncio.create_task(services.swapper.activate(version, actor="api"))
        activation.add_done_callback(lambda _: _die_at("done", step))
        while not activation.done():
            _die_at(_step_of(services), step)
            await asyncio.sleep(0)
        await activation


def _step_of(services: Services) -> str:
    progress = services.swapper.progress
    return "" if progress is None else progress.step


def _die_at(step: str, wanted: str) -> None:
    if step == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(_activate(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]))
