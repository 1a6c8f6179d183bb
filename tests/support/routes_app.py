"""A whole strop in the test's own loop: the real application and store, over a fake vLLM.

async with running(tmp_path) as app:
    answer = await app.client.get("/health")
"""

import asyncio
import contextlib
import json
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fake_probe
import httpx
from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from running import SELDOM_S
from starlette.types import Message

from strop.proxy import run_requests
from strop.proxy.app import App
from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.engines.vllm import Vllm
from strop.proxy.ids import new_id
from strop.proxy.parts import Services, run_services
from strop.proxy.routes import routing
from strop.proxy.run_requests import TrainCommand
from strop.proxy.settings.settings import load
from strop.proxy.store import layout
from strop.proxy.store.records import Choice, Completion
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.versions.probe_job import ProbeCommand

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def completion(**changes: Any) -> Completion:
    """Return a complete chat completion with one answer and its snapshot."""
    identity = changes.pop("id", None) or new_id("cmp")
    answer = changes.pop("answer", "Paris.")
    fields: dict[str, Any] = {
        "created_ms": 1_790_000_000_000,
        "key_id": "local",
        "dialect": "chat",
        "engine": "vllm",
        "model": "tiny",
        "served": "tiny",
        "version": "base",
        "state": "complete",
        "delivered": True,
        "stream": False,
        "status": 200,
        "request": json.dumps({"model": "tiny", "messages": MESSAGES}).encode(),
        "prompt_ids": array("i", [1, 2, 3]),
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "choices": (
            Choice(
                index=0,
                message=json.dumps({"role": "assistant", "content": answer}).encode(),
                finish_reason="stop",
                token_ids=array("i", [4, 5]),
                logprobs=array("f", [-0.5, -0.25]),
                logprobs_source="engine",
                logprobs_kind="raw",
            ),
        ),
    }
    return Completion(id=identity, **{**fields, **changes})


class Running:
    """A strop that has started, and a client of it."""

    def __init__(self, app: App[Services], vllm: FakeVllm, engine: FakeEngine) -> None:
        self.app = app
        self.vllm = vllm
        self.engine = engine
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://127.0.0.1:8484",
        )
        key = (app.services.home / "admin.key").read_text(encoding="utf-8").strip()
        self.admin = {"authorization": f"Bearer {key}"}

    @property
    def services(self) -> Services:
        """The running parts."""
        return self.app.services

    async def record(self, **changes: Any) -> str:
        """Put a completion into the store; return its id."""
        made = completion(**changes)
        return (await self.services.store.commit_completion(lambda: made, 1000)).id

    async def rate(
        self, completion_id: str, rating: object = "good", **more: Any
    ) -> httpx.Response:
        """POST a rating; `headers` among `more` are the request's."""
        headers = more.pop("headers", {})
        body = {"completion_id": completion_id, "rating": rating, **more}
        return await self.client.post("/v1/feedback", json=body, headers=headers)

    @contextlib.asynccontextmanager
    async def in_flight(self, num_events: int = 0, **headers: str) -> AsyncIterator[str]:
        """Hold a streamed completion open, and yield its id; it ends with the block.

        Its first `num_events` events come before.
        """
        release = asyncio.Event()

        async def hold(number: int) -> None:
            if number >= num_events:
                await release.wait()

        self.vllm.before_event = hold
        body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": True}).encode()
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        never = asyncio.Event()
        requests = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for request in requests:
                return request
            await never.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.set_result(dict(message["headers"])[b"x-strop-completion-id"].decode())

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "headers": [
                (b"host", b"127.0.0.1:8484"),
                *((name.encode(), value.encode()) for name, value in headers.items()),
            ],
        }
        call = asyncio.create_task(self.app(scope, receive, send))
        try:
            yield await begun
        finally:
            release.set()
            await call


@contextlib.asynccontextmanager
async def running(
    home: Path,
    *,
    vllm: FakeVllm | None = None,
    train_command: TrainCommand = run_requests.command,
    probe_command: ProbeCommand | None = None,
    **flags: object,
) -> AsyncIterator[Running]:
    """Start a strop in `home`; `flags` are settings, as in `server__client_keys=[...]`.

    Where `vllm` is given, it loads adapters. A ready engine is checked as in `running`.
    """
    flags = {"engine__health_interval_s": SELDOM_S, **flags}
    adapters = None
    if vllm is not None:
        adapters = AdaptersFolder(home / layout.ADAPTERS)
        # Else the base would be what the embedded engine serves by default.
        flags = {"engine__kind": "vllm", **flags}
    resolved = load(home, flags={key.replace("__", "."): value for key, value in flags.items()})
    vllm = vllm or FakeVllm()
    async with FakeEngine(vllm) as engine:
        driver = Vllm(Upstream(engine.url), adapters=adapters, scores=adapters is not None)
        services = run_services(
            resolved.settings,
            home,
            driver,
            None,
            train_command=train_command,
            probe_command=probe_command or fake_probe.command(),
        )
        app = App(services, routing.make)
        async with _started(app):
            await app.services.serving.wait_until_ready()
            found = Running(app, vllm, engine)
            async with found.client:
                yield found


@contextlib.asynccontextmanager
async def _started(app: App[Services]) -> AsyncIterator[None]:
    """Run the application's lifespan, as a server does."""
    told: asyncio.Queue[Message] = asyncio.Queue()
    heard: asyncio.Queue[Message] = asyncio.Queue()
    lifespan = asyncio.create_task(app({"type": "lifespan"}, told.get, heard.put))
    await told.put({"type": "lifespan.startup"})
    assert (await heard.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        await told.put({"type": "lifespan.shutdown"})
        await lifespan
