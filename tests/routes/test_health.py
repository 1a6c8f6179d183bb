"""Health, readiness, metrics, and what answers at the root."""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from routes_app import Running, running
from waiting import until

from strop.proxy.serving import Serving

FROM_ELSEWHERE = {"host": "evil.example"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Running]:
    """A strop without client keys."""
    async with running(tmp_path) as app:
        yield app


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the store's write lock, as another program could."""
    with contextlib.closing(sqlite3.connect(home / "strop.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def lose_engine(app: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an engine in the place of the app's that has never answered."""
    silent = Serving(app.services.serving.engine, app.services.settings)
    monkeypatch.setattr(app.services, "serving", silent)


async def test_a_watch_ends_in_the_very_moment_of_a_suspicion(app: Running) -> None:
    """Else a stop of strop, while a request fails, waits for the engine's watch ever after."""
    serving = Serving(app.services.serving.engine, app.services.settings)
    watching = asyncio.create_task(serving.watch())
    await until(lambda: serving.is_ready)

    serving.suspect()
    watching.cancel()

    await until(watching.done)


async def test_the_root_says_what_this_is(app: Running) -> None:
    """Every path that it names is there."""
    found = (await app.client.get("/")).json()

    statuses = [(await app.client.get(path)).status_code for path in found["paths"].values()]
    assert "strop" == found["name"]
    assert {200, 405} == set(statuses)


async def test_all_is_well(app: Running) -> None:
    """A ready engine and a working store are `ok` everywhere."""
    live = await app.client.get("/livez")
    ready = await app.client.get("/readyz")
    health = (await app.client.get("/health")).json()

    assert (200, {"status": "ok"}) == (live.status_code, live.json())
    assert (200, {"status": "ok", "reasons": []}) == (ready.status_code, ready.json())
    assert ("ok", True, True, 0) == (
        health["status"],
        health["engine"]["ready"],
        health["capture"]["ok"],
        health["in_flight"],
    )
    assert ["tiny"] == health["engine"]["models"]
    assert {
        "name": "tiny",
        "engine_name": "tiny",
        "base": app.services.serving.base,
        "active": "base",
        "versions": ["base"],
    } == health["model"]
    assert health["model"]["base"].startswith("sha256:")
    assert health["engine"]["capabilities"]["token_ids"] is True


async def test_an_engine_that_has_not_answered_is_said(
    app: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alive, not ready, and degraded."""
    lose_engine(app, monkeypatch)

    live, ready = await app.client.get("/livez"), await app.client.get("/readyz")
    health = (await app.client.get("/health")).json()

    assert (200, 503) == (live.status_code, ready.status_code)
    assert ["the engine is not ready: it has not answered yet"] == ready.json()["reasons"]
    assert ("degraded", "it has not answered yet") == (health["status"], health["engine"]["reason"])
    unknown = dict.fromkeys(("name", "engine_name", "base", "active"))
    assert {**unknown, "versions": []} == health["model"]


async def test_draining_is_not_ready(app: Running) -> None:
    """A strop that is stopping says so, while it still answers."""
    app.services.relay.is_draining = True

    ready = await app.client.get("/readyz")
    health = await app.client.get("/health")

    assert (503, 200) == (ready.status_code, health.status_code)
    assert ["strop is stopping and takes no new requests"] == ready.json()["reasons"]
    assert "draining" == health.json()["status"]


@pytest.mark.parametrize(
    ("mode", "status", "ready"),
    [("required", "degraded", 503), ("best_effort", "degraded", 200), ("off", "ok", 200)],
)
async def test_a_store_that_takes_no_writes_is_said(
    tmp_path: Path, mode: str, status: str, ready: int
) -> None:
    """It is no reason against traffic unless answers must be recorded."""
    async with running(tmp_path, capture__commit_timeout_s=0.05, capture__mode=mode) as app:
        completion = await app.record()
        with locked(tmp_path):
            refused = await app.rate(completion)

            health = (await app.client.get("/health")).json()
            readiness = await app.client.get("/readyz")

        assert 503 == refused.status_code
        assert (status, mode, False) == (
            health["status"],
            health["capture"]["mode"],
            health["capture"]["ok"],
        )
        assert "write lock" in health["capture"]["reason"]
        assert ready == readiness.status_code


async def test_completions_in_flight_are_counted(app: Running) -> None:
    """While they last."""
    async with app.in_flight():
        during = (await app.client.get("/health")).json()["in_flight"]

    assert (1, 0) == (during, (await app.client.get("/health")).json()["in_flight"])


async def test_metrics_are_set_when_they_are_asked_for(
    app: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Prometheus' text format, with the state of engine and store at that moment."""
    before = await app.client.get("/metrics")
    lose_engine(app, monkeypatch)
    after = await app.client.get("/metrics")

    assert before.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {"strop_engine_ready 1.0", "strop_store_ok 1.0", "strop_store_queue 0.0"} <= set(
        before.text.splitlines()
    )
    assert "strop_engine_ready 0.0" in after.text.splitlines()
    sizes = re.findall("^strop_store_(?:free_)?bytes (.+)$", after.text, re.MULTILINE)
    room = await app.services.store.room()
    assert [room.total_bytes, room.free_bytes] == [float(one) for one in sizes]
    assert room.total_bytes > room.free_bytes


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/health", "/metrics"])
async def test_health_needs_no_key_but_this_host(tmp_path: Path, path: str) -> None:
    """Probes send no keys; pages of other hosts are kept out all the same."""
    async with running(tmp_path, server__client_keys=["client-key-1"]) as app:
        answer = await app.client.get(path)
        elsewhere = await app.client.get(path, headers=FROM_ELSEWHERE)

        assert (200, 403) == (answer.status_code, elsewhere.status_code)
