"""Whether strop runs, is ready, and is well; what it counts; and what it is.

Reads what the parts say of themselves, and checks nothing itself. Asks for no key.
"""

import contextlib
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strop.proxy.auth import scrub_url
from strop.proxy.engines.replica import Replica
from strop.proxy.errors import EngineNotReady, StoreUnavailable
from strop.proxy.parts import Control
from strop.proxy.routes.requests import control
from strop.proxy.routes.responses import json_response
from strop.proxy.tally import Tally

VERSION: Final = version("strop")
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def root(_request: Request) -> Response:
    """GET /: what this is, and where to look."""
    return json_response(
        {
            "name": "strop",
            "version": VERSION,
            "openai_base_url": "/v1",
            "paths": {
                "completions": "/v1/chat/completions",
                "models": "/v1/models",
                "feedback": "/v1/feedback",
                "health": "/health",
                "metrics": "/metrics",
                "openapi": "/openapi.json",
            },
        }
    )


async def live(_request: Request) -> Response:
    """GET /livez: 200 while the process answers."""
    return json_response({"status": "ok"})


async def ready(request: Request) -> Response:
    """GET /readyz: 200 while completions are served, else 503 and why not."""
    running = control(request)
    reasons = _not_ready(running, await running.census.take())
    status = 503 if reasons else 200
    return json_response({"status": "not ready" if reasons else "ok", "reasons": reasons}, status)


async def health(request: Request) -> Response:
    """GET /health: 200 always; `status` is `ok`, `degraded` or `draining`."""
    running = control(request)
    serving, tally = running.serving, await running.census.take()
    store = tally.store
    capture = running.settings.capture.mode
    engine, state = serving.engine, serving.state
    # A store that doesn't write is no loss where nothing is recorded.
    is_well = serving.is_ready and not serving.failure and (store.ok or capture == "off")
    return json_response(
        {
            "status": "draining" if running.census.is_draining else "ok" if is_well else "degraded",
            "version": VERSION,
            "uptime_s": round(time.monotonic() - request.app.state.started, 3),
            "engine": {
                "label": engine.label,
                "url": scrub_url(engine.upstream.url),
                "ready": serving.is_ready,
                "reason": (serving.failure or None) if serving.is_ready else serving.reason,
                "version": None if state is None else state.version,
                "models": [] if state is None else list(state.models),
                "capabilities": asdict(engine.capabilities),
                "shortfalls": list(engine.shortfalls),
                "replicas": [
                    {
                        "url": scrub_url(replica.engine.upstream.url),
                        "ready": replica.is_ready,
                        "reason": replica.reason or replica.failure or None,
                        "in_flight": _in_flight(replica, tally),
                    }
                    for replica in engine.replicas
                ],
            },
            "model": _model(running),
            "capture": {
                "mode": capture,
                "ok": store.ok,
                "reason": store.reason,
                "since": store.since_ms // 1000,
                "queued": store.num_queued,
                "queued_bytes": store.queued_bytes,
                "lost": tally.lost,
            },
            "in_flight": tally.in_flight,
            "workers": [asdict(one) for one in tally.workers],
        }
    )


async def metrics(request: Request) -> Response:
    """GET /metrics: Prometheus' text format."""
    running = control(request)
    counted, tally = running.metrics, await running.census.take()
    counted.engine_ready.set(running.serving.is_ready)
    for replica in running.serving.engine.replicas:
        url = scrub_url(replica.engine.upstream.url)
        counted.replica_ready.labels(url).set(replica.is_ready)
        counted.replica_in_flight.labels(url).set(_in_flight(replica, tally))
    # Whether it can be read is told by others.
    with contextlib.suppress(StoreUnavailable):
        room = await running.store.room()
        counted.store_bytes.set(room.total_bytes)
        counted.store_free_bytes.set(room.free_bytes)
    exposition = await running.census.exposition()
    return Response(exposition, headers={"content-type": _METRICS_TYPE})


ROUTES: Final = [
    Route("/", root, methods=["GET"]),
    Route("/livez", live, methods=["GET"]),
]

CONTROL_ROUTES: Final = [
    Route("/readyz", ready, methods=["GET"]),
    Route("/health", health, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]


def _in_flight(replica: Replica, tally: Tally) -> int:
    return replica.num_in_flight + tally.replicas.get(replica.engine.upstream.url, 0)


def _not_ready(running: Control, tally: Tally) -> list[str]:
    reasons = []
    if running.census.is_draining:
        reasons.append("strop is stopping and takes no new requests")
    if not running.serving.is_ready:
        reasons.append(f"the engine is not ready: {running.serving.reason}")
    store = tally.store
    if running.settings.capture.mode == "required" and not store.ok:
        reasons.append(f"answers must be recorded, and the store takes no writes: {store.reason}")
    return reasons


def _model(running: Control) -> dict[str, object]:
    try:
        alias = running.serving.alias
    except EngineNotReady:
        name = running.settings.model.name or running.settings.engine.model or None
        return {"name": name, "engine_name": None, "base": None, "active": None, "versions": []}
    return {
        "name": alias.name,
        "engine_name": alias.base.name,
        "base": running.serving.base,
        "active": alias.active.version,
        "versions": list(alias.versions),
    }
