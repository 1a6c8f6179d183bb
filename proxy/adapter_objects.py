"""Adapter versions and training runs as the API and the command line show them.

Pure: plain values that JSON can hold. Does not read the store, or ask an engine.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from strop.adapters.rates import Rate
from strop.proxy.objects import Object
from strop.proxy.store.run_records import Run, RunStep
from strop.proxy.store.version_records import Version, VersionEvent

if TYPE_CHECKING:
    # Commands show versions too, and need nothing of what moves traffic.
    from strop.proxy.versions.activation import Loaded, Progress, Switched


def adapter(
    found: Version,
    loaded: "Sequence[Loaded]" = (),
    events: Sequence[VersionEvent] = (),
    liked: Rate | None = None,
) -> Object:
    """Return an adapter object; `created` is in seconds since the epoch, events newest first.

    `liked` is how people rated what it answered.
    """
    manifest = orjson.loads(found.manifest)
    return {
        "id": found.id,
        "object": "adapter",
        "created": found.created_ms // 1000,
        "state": found.state,
        "stale": found.stale,
        "reason": found.reason,
        "kept": found.is_kept,
        "parent": found.parent or "base",
        "base": found.base,
        "run": found.run,
        "origin": found.origin,
        "num_ratings": len(manifest.get("feedback", ())),
        "metrics": manifest.get("metrics", {}),
        "verdict": manifest.get("verdict"),
        "liked": rate(liked),
        "loaded": [
            {
                "engine": one.engine,
                "since": one.since_ms // 1000,
                "leases": one.leases,
                "draining": one.is_draining,
            }
            for one in loaded
        ],
        "events": list(map(event, events)),
    }


def rate(found: Rate | None) -> Object | None:
    """Return a share with its interval at 90 %; None where nothing was counted."""
    if found is None or not found.num:
        return None
    interval = found.interval
    return {
        "value": found.value,
        "num_good": found.num_hits,
        "num": found.num,
        "low": interval.low,
        "high": interval.high,
    }


def event(found: VersionEvent) -> Object:
    """Return a version's event."""
    return {
        "version": found.version,
        "created": found.created_ms // 1000,
        "kind": found.kind,
        "actor": found.actor,
        "detail": orjson.loads(found.detail),
    }


def progress(now: "Progress | None") -> Object | None:
    """Return how far the running activation is."""
    if now is None:
        return None
    return {"version": now.version, "step": now.step, "since": now.since_ms // 1000}


def switched(done: "Switched") -> Object:
    """Return what an activation did, once traffic has moved."""
    probe = done.probe
    return {
        "object": "adapter.activation",
        "version": done.version,
        "previous": done.previous,
        "stale": done.stale,
        "timings_ms": {step: round(ms, 3) for step, ms in done.timings_ms.items()},
        "pause_ms": round(done.pause_ms, 3),
        "probe": None
        if probe is None
        else {
            "outcome": probe.outcome,
            "reason": probe.reason,
            "errors": dict(probe.errors),
            "num_tokens": probe.num_tokens,
        },
    }


def run(found: Run, steps: Sequence[RunStep] | None = None) -> Object:
    """Return a run object; with `steps`, the metrics of each optimizer step too."""
    shown: Object = {
        "id": found.id,
        "object": "run",
        "created": found.created_ms // 1000,
        "started": None if found.started_ms is None else found.started_ms // 1000,
        "finished": None if found.finished_ms is None else found.finished_ms // 1000,
        "state": found.state,
        "cancelling": found.is_cancelling,
        "objective": found.objective,
        "preset": found.preset,
        "parent": found.parent or "base",
        "base": found.base,
        "requested_by": found.requested_by,
        "version": found.version,
        "step": found.step,
        "num_steps": found.num_steps,
        "eta_s": found.eta_s,
        "counts": orjson.loads(found.counts),
        "metrics": orjson.loads(found.metrics),
        "reasons": orjson.loads(found.reasons),
        "config": orjson.loads(found.config),
    }
    if steps is not None:
        shown["steps"] = [{"step": one.step, **orjson.loads(one.metrics)} for one in steps]
    return shown
