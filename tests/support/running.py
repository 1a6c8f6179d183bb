"""A proxy that runs in the test's own loop, on a real socket and a real store."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import fake_probe
import httpx
import uvicorn
from waiting import LIMIT_S, until

from strop.proxy import configured_engine, run_requests
from strop.proxy.app import App
from strop.proxy.engines.base import Engine as Driver
from strop.proxy.http_server import uvicorn_config
from strop.proxy.parts import Services, run_services
from strop.proxy.routes import routing
from strop.proxy.run_requests import TrainCommand
from strop.proxy.settings.settings import Capture, Engine, Model, Server, Settings
from strop.proxy.store.records import StoredCompletion
from strop.proxy.versions.probe_job import ProbeCommand

SELDOM_S: Final = 3600.0
"""How long after a check an engine that is ready is checked again, unless a test says."""


@dataclass
class Running:
    """A running proxy, its parts, and a client for it."""

    url: str
    services: Services
    client: httpx.AsyncClient
    server: uvicorn.Server

    async def chat(self, text: str = "hi", /, **fields: Any) -> httpx.Response:
        """Ask for one chat completion."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def rows(self) -> list[StoredCompletion]:
        """Return every completion once nothing is in flight, oldest first."""
        await until(lambda: not self.services.relay.num_calls)
        page = await self.services.store.list_completions(limit=10_000)
        found = [await self.services.store.get_completion(one.id) for one in page.data]
        return [one for one in reversed(found) if one is not None]

    async def row(self) -> StoredCompletion:
        """Return the only completion."""
        (one,) = await self.rows()
        return one


def settings_for(
    url: str,
    *,
    kind: str = "vllm",
    server: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    capture: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> Settings:
    """Return settings for an engine at `url`, with a few changed.

    One that is ready is checked again where a request says that it may not be, and else not by
    itself: tests count what it is asked, and let it answer all alike.
    """
    return Settings(
        server=Server(**(server or {})),
        engine=Engine(
            **{"kind": kind, "url": url, "health_interval_s": SELDOM_S, **(engine or {})}
        ),
        capture=Capture(**(capture or {})),
        model=Model(**(model or {})),
    )


def pass_time(seconds: float) -> None:
    """Let the test's loop be so much later, for good: what was to come by then comes now.

    So a limit need not be short to be reached, and nothing that is to come before it can be late.
    """
    loop = asyncio.get_running_loop()
    ahead = loop.time() + seconds - monotonic()
    loop.time = lambda: monotonic() + ahead  # type: ignore[method-assign]


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    home: Path,
    *,
    ready: bool = True,
    driver: Driver | None = None,
    train_command: TrainCommand = run_requests.command,
    probe_command: ProbeCommand | None = None,
) -> AsyncIterator[Running]:
    """Run a proxy on a free port; `ready` waits until its engine has answered.

    The driver is the one that the settings name, unless another is given; imported adapters get
    no probe, unless a command for that is.
    """
    home.mkdir(mode=0o700, exist_ok=True)
    engine, process = (
        (driver, None) if driver is not None else configured_engine.make(settings, home)
    )
    services = run_services(
        settings,
        home,
        engine,
        process,
        train_command=train_command,
        probe_command=probe_command or fake_probe.command(),
    )
    app = App(services, routing.make)
    server = uvicorn.Server(uvicorn_config(settings, app))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started or task.done())
        if not server.started:
            task.result()
            raise AssertionError("the proxy did not start")
        if ready:
            await app.services.serving.wait_until_ready()
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as client:
            yield Running(url, app.services, client, server)
    finally:
        server.should_exit = True
        await task
        listener.close()
    # The server only logs what closing raises.
    if app.failure is not None:
        raise app.failure
