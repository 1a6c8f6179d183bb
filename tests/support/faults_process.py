"""A `strop serve` process to be killed, starved and stopped, and its database as it left it.

Knows nothing of its engine.
"""

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
from waiting import LIMIT_S, until


class Serve:
    """One running process.

    Attributes:
        url: where it listens; known once `wait_until_ready` has returned.
        log: what it wrote to its standard error.
    """

    def __init__(self, home: Path, process: asyncio.subprocess.Process) -> None:
        self.url = ""
        self.home = home
        self.process = process
        self.log = home / "serve.log"

    async def wait_until_ready(self) -> None:
        """Return once it serves: then it says where."""
        assert self.process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMIT_S):
                async for line in self.process.stdout:
                    if found := re.search(rb"OPENAI_BASE_URL=(http://[^/]+)/v1", line):
                        self.url = found[1].decode()
                        return
        raise AssertionError(f"strop did not start: {self.log.read_text(encoding='utf-8')[-2000:]}")

    async def end(self, sig: signal.Signals) -> int:
        """Send a signal and return the exit status, once the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(sig)
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    async def get(self, path: str) -> Any:
        """Return what a GET answers."""
        async with httpx.AsyncClient(base_url=self.url, timeout=LIMIT_S) as client:
            return (await client.get(path)).raise_for_status().json()

    async def metric(self, name: str) -> float:
        """Return a metric, summed over its labels."""
        async with httpx.AsyncClient(base_url=self.url, timeout=LIMIT_S) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line)
        )

    async def wait_until_idle(self) -> None:
        """Return once no completion is in flight."""
        await until(lambda: self.get("/health"), lambda health: not health["in_flight"])

    @property
    def rss_mib(self) -> float:
        """Its resident memory."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.check_output(command)) / 1024

    @property
    def num_sockets(self) -> int | None:
        """How many sockets it has open; None where the system doesn't tell."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        if not folder.is_dir():
            return None
        num_found = 0
        for one in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                num_found += str(one.readlink()).startswith("socket:")
        return num_found


@contextlib.asynccontextmanager
async def started(home: Path, *options: str) -> AsyncIterator[Serve]:
    """Start `strop serve` with these options on a free port; what then still runs is killed."""
    home.mkdir(mode=0o700, exist_ok=True)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("STROP_")}
    with (home / "serve.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "strop.proxy.cli", "serve", "--home", str(home)),
            *("--port", "0", *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=environ,
        )
    serve = Serve(home, process)
    try:
        yield serve
    finally:
        if process.returncode is None:
            await serve.end(signal.SIGKILL)


@contextlib.asynccontextmanager
async def serving(home: Path, *options: str) -> AsyncIterator[Serve]:
    """Run `strop serve` until the block ends; it must then stop in order."""
    async with started(home, *options) as serve:
        await serve.wait_until_ready()
        yield serve
        assert 0 == await serve.end(signal.SIGTERM)


def behind(engine_url: str, *settings: str) -> list[str]:
    """Return the options for a proxy behind the engine at `engine_url`; settings as KEY=VALUE."""
    return ["--engine", "vllm", "--engine-url", engine_url, *(f"--set={one}" for one in settings)]


@contextlib.contextmanager
def database(home: Path) -> Iterator[sqlite3.Connection]:
    """Open the database of a home, as another program would."""
    connection = sqlite3.connect(home / "strop.db", isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
