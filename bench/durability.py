"""Kills strop in the middle of a load, and looks for each answer that a client had received."""

import asyncio
from dataclasses import dataclass

import uvloop

from bench import rows
from bench.answers import Ask
from bench.load import ClosedLoop, Seen
from bench.processes import Child
from bench.targets import Running, Site, Target
from bench.workloads import Workload

_CONNECTIONS = 64
_KILL_AFTER_S = 1.5


@dataclass(frozen=True, slots=True)
class Survival:
    """How many answers carried a completion id before the kill, and how many of those are lost."""

    answered: int
    lost: int


def check(target: Target, site: Site) -> Survival:
    """Start a strop of its own, load it, kill it with SIGKILL, and read its database."""
    running = target.start(site)
    assert running.child is not None
    assert running.home is not None
    try:
        seen = uvloop.run(_load_and_kill(running, running.child))
    finally:
        running.stop()
    return Survival(len(seen.completions), len(rows.lost(running.home, seen.completions)))


async def _load_and_kill(running: Running, child: Child) -> Seen:
    loop = ClosedLoop(running.json_port, Workload(Ask(max_tokens=80)), is_traced=True)
    load = asyncio.create_task(loop.run(_CONNECTIONS, 10 * _KILL_AFTER_S))
    await asyncio.sleep(_KILL_AFTER_S)
    child.kill()
    return await load
