"""A `strop serve` process with several workers, on real sockets, behind a fake engine.

Clients are bare sockets: it is connections that are dealt to workers.
"""

import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import shelved
from fake_adapters import FakeAdapters
from fake_engine import FakeEngine
from faults_client import Answer, Client, Plan
from faults_process import Serve, behind, started
from waiting import LIMIT_S, until

from strop.adapters.library import Library
from strop.proxy.store import layout
from strop.proxy.store.store import Store


@dataclass
class Worked:
    """A running strop with workers, its engine, and a client for it."""

    proxy: Serve
    fake: FakeAdapters
    engine: FakeEngine
    client: httpx.AsyncClient
    clients: list[Client] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The process that decides."""
        return self.proxy.process.pid

    async def admin(self, method: str, path: str, **fields: Any) -> httpx.Response:
        """Ask as the owner."""
        key = (self.proxy.home / "admin.key").read_text(encoding="utf-8").strip()
        return await self.client.request(
            method, path, json=fields or None, headers={"authorization": f"Bearer {key}"}
        )

    async def activate(self, version: str) -> None:
        """Activate a version; it then serves everywhere."""
        answer = await self.admin("PUT", "/admin/adapters/active", version=version)
        assert 200 == answer.status_code, answer.text

    async def health(self) -> Any:
        """Return what strop says of itself."""
        return (await self.client.get("/health")).raise_for_status().json()

    async def metric(self, name: str) -> float:
        """Return a metric, summed over its labels."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        values = [line.rpartition(" ")[2] for line in lines if re.match(rf"{name}[ {{]", line)]
        return sum(map(float, values))

    async def pids(self) -> list[int]:
        """Return the workers' process ids, by their numbers."""
        return [one["pid"] for one in (await self.health())["workers"]]

    async def crowd(self, num: int) -> list[Client]:
        """Return connections that stay; of an even number, each of two workers has every second."""
        new = [await Client.connect(self.proxy.url) for _ in range(num)]
        self.clients += new
        return new


def question(*, stream: bool = False, model: str = "tiny", text: str = "hi") -> Plan:
    """Return a chat request."""
    messages = [{"role": "user", "content": text}]
    return Plan({"model": model, "messages": messages, "stream": stream})


async def ask_on(client: Client, plan: Plan) -> Answer:
    """Ask on a connection that stays open, and return the answer, whole."""
    answer = await begin_on(client, plan)
    await client.read_body(answer)
    return answer


async def begin_on(client: Client, plan: Plan) -> Answer:
    """Ask on a connection, and return the answer as far as its head."""
    answer = Answer()
    head, body = plan.request()
    client.send(head + body)
    await client.read_head(answer)
    return answer


async def rate(client: Client, completion: str, **more: Any) -> Answer:
    """Rate a completion over a connection."""
    return await ask_on(
        client,
        Plan({"completion_id": completion, "rating": "good", **more}, path="/v1/feedback"),
    )


async def publish(home: Path, num: int) -> None:
    """Put `num` versions into a home that nobody serves from yet."""
    home.mkdir(mode=0o700, exist_ok=True)
    store = await Store.open(home / "strop.db")
    for _ in range(num):
        await shelved.publish(store, Library(home / layout.ADAPTERS))
    await store.close()


@contextlib.asynccontextmanager
async def worked(
    home: Path,
    *settings: str,
    fake: FakeAdapters | None = None,
    options: Sequence[str] = ("--workers", "2"),
    num_versions: int = 0,
    is_steady: bool = True,
) -> AsyncIterator[Worked]:
    """Run strop with two workers; what still runs when the block ends stops in order.

    Its own client keeps one connection, so that those of a crowd are dealt by turns; where workers
    are to die, it is not steady and makes a new one for each request.
    """
    fake = fake or FakeAdapters()
    if num_versions:
        await publish(home, num_versions)
    async with FakeEngine(fake) as engine:
        said = ("engine.health_interval_s=0.05", *settings)
        async with started(home, *behind(engine.url, *said), *options) as proxy:
            await proxy.wait_until_ready()
            limits = httpx.Limits(
                max_keepalive_connections=1 if is_steady else 0, keepalive_expiry=None
            )
            async with httpx.AsyncClient(
                base_url=proxy.url, timeout=LIMIT_S, limits=limits
            ) as client:
                it = Worked(proxy, fake, engine, client)
                try:
                    yield it
                    if proxy.process.returncode is None:
                        assert 0 == await proxy.end(signal.SIGTERM)
                finally:
                    for one in [*it.clients]:
                        await one.leave()


async def until_dead(*pids: int) -> None:
    """Return once these processes have ended."""
    await until(lambda: not any(map(is_alive, pids)))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a child that nobody has waited for yet counts as ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        # It has ended since, or the system doesn't tell.
        return not Path("/proc/self/stat").exists()
