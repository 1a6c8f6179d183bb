"""A store that takes no writes: its disk full, or its database held by another program.

Knows no load.
"""

import contextlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import pytest
from faults_client import Answer
from faults_process import Serve
from waiting import until

Mode = Literal["best_effort", "required"]
Breaks = Callable[[Serve], AbstractContextManager[None]]

HOLD_LOCK = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(proxy: Serve) -> Iterator[None]:
    """Let another process hold the database's write lock."""
    command = [sys.executable, "-c", HOLD_LOCK, str(proxy.home / "strop.db")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert "held\n" == other.stdout.readline()
        yield
        other.communicate()


@contextlib.contextmanager
def full(proxy: Serve) -> Iterator[None]:
    """Let no file of the process grow beyond a few bytes, as on a full disk."""
    pid = proxy.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


BREAKS: list[Any] = [
    locked,
    pytest.param(
        full,
        marks=pytest.mark.skipif(
            not hasattr(resource, "prlimit"), reason="only Linux limits another process's files"
        ),
    ),
]
MODES: tuple[Mode, ...] = ("best_effort", "required")


async def until_store_is(proxy: Serve, is_ok: bool) -> dict[str, object]:
    """Return what /health says of the store, once it says that it is well, or isn't."""
    health = await until(
        lambda: proxy.get("/health"), lambda health: health["capture"]["ok"] is is_ok
    )
    capture: dict[str, object] = health["capture"]
    return capture


def check_withheld(answer: Answer) -> None:
    """A stream that could not be recorded ends with an error, and without its end."""
    assert b'"store_unavailable"' in answer.body
    assert not answer.is_answered
    assert b'"finish_reason":"stop"' not in answer.body
