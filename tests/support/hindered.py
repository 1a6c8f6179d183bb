"""A pytest plugin: a machine on which everything takes its time, at random.

Loaded by `make test-hindered`. Transactions and threads wait before they begin and after they have
ended, timers fire late, what comes over a socket is read late, and one process of the tests after
the other stands still for a moment. What fails then waits too little, holds what it must not, or
loses what comes at once. Needs Linux's /proc.
"""

import asyncio
import contextlib
import functools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
T = TypeVar("T")

_Loop: Final[Any] = asyncio.base_events.BaseEventLoop
_Socket: Final[Any] = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]

SHARE: Final = 0.25
"""Of what begins or ends, how much is hindered."""

MOST_S: Final = 0.15
STANDSTILL_S: Final = 0.08
"""For how long a process stands still, on average; at most eight times that."""

RUN_S: Final = 0.05
"""How long none does in between, on average."""


def pytest_configure(config: pytest.Config) -> None:
    """Hinder this process; the first one, that starts the others, stops them too."""
    sqlite3.connect = functools.partial(sqlite3.connect, factory=_Connection)  # type: ignore[assignment]
    asyncio.to_thread = _hindered(asyncio.to_thread)
    _Loop.call_at = _late(_Loop.call_at)
    _Socket._read_ready = _read_late(_Socket._read_ready)
    if not hasattr(config, "workerinput"):
        stopper = subprocess.Popen([sys.executable, __file__, str(os.getpid())])

        def end() -> None:
            stopper.terminate()
            stopper.wait()

        config.add_cleanup(end)


class _Connection(sqlite3.Connection):
    """Takes its time for a transaction."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        is_end = sql.lstrip().upper().startswith(("BEGIN", "COMMIT"))
        if is_end:
            _dawdle()
        cursor = super().execute(sql, *parameters)
        if is_end:
            _dawdle()
        return cursor


def _hindered(to_thread: Callable[..., Any]) -> Callable[..., Any]:
    def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Any:
        def slowly() -> T:
            _dawdle()
            result = function(*args, **kwargs)
            _dawdle()
            return result

        return to_thread(slowly)

    return run


def _late(call_at: Callable[..., Any]) -> Callable[..., Any]:
    def call_late(loop: Any, when: float, *args: Any, **kwargs: Any) -> Any:
        return call_at(loop, when + _delay_s(), *args, **kwargs)

    return call_late


def _read_late(read_ready: Callable[[Any], None]) -> Callable[[Any], None]:
    def ready(transport: Any) -> None:
        delay_s = _delay_s()
        if not delay_s:
            read_ready(transport)
            return
        # As while its reader has paused it: the bytes stay in the kernel.
        transport._loop._remove_reader(transport._sock_fd)
        transport._loop.call_later(delay_s, resume, transport)

    def resume(transport: Any) -> None:
        if transport.is_reading():
            read_ready(transport)
        if transport.is_reading():
            transport._loop._add_reader(transport._sock_fd, transport._read_ready)

    return ready


def _dawdle() -> None:
    if delay_s := _delay_s():
        time.sleep(delay_s)


def _delay_s() -> float:
    return random.uniform(0, MOST_S) if random.random() < SHARE else 0.0


def _below(root: int) -> list[int]:
    """Return the processes that `root` has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = stat.read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    return list(_tree(root, children))


def _tree(root: int, children: dict[int, list[int]]) -> Iterator[int]:
    for child in children.get(root, []):
        yield child
        yield from _tree(child, children)


def _stop_by_turns(root: int) -> None:
    while Path(f"/proc/{root}").exists():
        time.sleep(random.expovariate(1 / RUN_S))
        others = [pid for pid in _below(root) if pid != os.getpid()]
        if not others:
            continue
        pid = random.choice(others)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(min(random.expovariate(1 / STANDSTILL_S), 8 * STANDSTILL_S))
            finally:
                os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    _stop_by_turns(int(sys.argv[1]))
