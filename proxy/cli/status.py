"""`strop status`: how the proxy is, what was rated, and what training waits for.

Asks the running proxy and the home's own store; changes nothing.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from strop.proxy import adapter_objects
from strop.proxy.cli import terminal
from strop.proxy.cli.admin_client import ask_health, call
from strop.proxy.cli.newest import newest
from strop.proxy.cli.options import (
    examples,
    home_of,
    home_option,
    json_option,
    open_store,
)
from strop.proxy.cli.runs import progress
from strop.proxy.command_line import to_copy
from strop.proxy.home import serving_url
from strop.proxy.store import layout
from strop.proxy.store.records import CompletionFilter
from strop.proxy.store.version_records import BASE, Version

if TYPE_CHECKING:
    from strop.proxy.store.store import Store

# Each is read whole, and may be long.
_NUM_RATED: Final = 32
# So much of the database, and so many bytes, are worth giving back.
_MUCH_FREE: Final = 0.1
_MUCH_FREE_BYTES: Final = 16 * 2**20


@click.command(epilog=examples("strop status"))
@home_option
@json_option
@click.pass_context
def status(context: click.Context, /, home: Path | None, as_json: bool) -> None:
    """Say how strop is, what was rated, what training waits for.

    Exits with 1 when no proxy runs.
    """
    folder = home_of(home)
    url = serving_url(folder)
    health = ask_health(url) if url else None
    # An older strop that still runs doesn't say.
    base = health["model"].get("base") if health else None
    has_store = (folder / layout.DATABASE).is_file()
    stored = asyncio.run(_stored(folder, base)) if has_store else None
    waits_for = call(folder, "GET", "/admin/runs?limit=1")["waits_for"] if health else None
    if as_json:
        shown = {"url": url, "health": health, "home": str(folder), "store": stored}
        click.echo(json.dumps(shown | {"training": waits_for}))
    else:
        rows = _health_rows(url, health) if url and health else []
        if not url:
            start = to_copy("serve", folder)
            click.echo(f"strop does not serve from {folder}; start it with: {start}")
        elif not health:
            click.echo(f"strop at {url} gives no answer: it starts, stops, or is stuck")
        rows.append(("home", str(folder) if stored else f"{folder} (nothing recorded yet)"))
        if stored:
            rows.append(("database", _database(stored["database"], folder)))
            rows += _stored_rows(stored)
            rows += _version_rows(stored, health, folder)
            rows += _run_rows(stored)
        if waits_for:
            rows.append(("training", waits_for))
        click.echo(terminal.table(rows))
    context.exit(0 if health else 1)


def _model_name(model: dict[str, Any]) -> str:
    name, there = model["name"], model.get("engine_name")
    return f"{name}, the engine's {there}" if there not in (name, None) else name or "unknown yet"


def _health_rows(url: str, health: dict[str, Any]) -> list[tuple[str, str]]:
    engine, model, capture = health["engine"], health["model"], health["capture"]
    capture_is = "writing" if capture["ok"] else f"not writing: {capture['reason']}"
    return [
        ("strop", f"{health['version']} at {url}: {health['status']}"),
        ("engine", f"{engine['label']} at {engine['url']}: {_engine_is(engine)}"),
        *(("", f"it falls short: {what}") for what in engine["shortfalls"]),
        *(("", _replica(one)) for one in engine["replicas"]),
        ("model", f"{_model_name(model)} ({model['active'] or 'none active'})"),
        ("capture", f"{capture['mode']}, {capture_is}; {capture['lost']} lost"),
        ("in flight", str(health["in_flight"])),
        ("up for", terminal.duration(health["uptime_s"])),
        *((f"worker {one['number']}", _worker(one)) for one in health["workers"]),
    ]


def _engine_is(engine: dict[str, Any]) -> str:
    reason = engine["reason"] or ""
    said = "not ready" if not engine["ready"] else "ready, but it fails" if reason else "ready"
    # What is said of a replica need not be said twice.
    is_said = any(one["reason"] and one["reason"] in reason for one in engine["replicas"])
    return f"{said}: {reason}" if reason and not is_said else said


def _replica(one: dict[str, Any]) -> str:
    said = f"{one['url']}: {one['in_flight']} in flight"
    if not one["ready"]:
        said += ", left out"
    return f"{said}: {one['reason']}" if one["reason"] else said


def _worker(one: dict[str, Any]) -> str:
    return f"process {one['pid']}: {one['in_flight']} in flight"


def _database(room: dict[str, int], home: Path) -> str:
    total, free = room["bytes"], room["free_bytes"]
    said = terminal.size(total)
    if free < max(_MUCH_FREE_BYTES, total * _MUCH_FREE):
        return said
    give_back = f"with strop stopped this gives it back: {to_copy('compact', home)}"
    return f"{said}, {terminal.size(free)} of it free; {give_back}"


def _stored_rows(stored: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("ratings", "{good} good, {bad} bad, {total} in all".format(**stored["ratings"]))]
    if stored["unlearned"] is not None and stored["unlearned"]["num"]:
        said = "{num} of the newest {of} rated answers came from another model than the one that is"
        rows.append(("", f"{said} trained: nothing is learned there".format(**stored["unlearned"])))
    return [*rows, ("newest answer", stored["newest"] or "none")]


def _version_rows(
    stored: dict[str, Any], health: dict[str, Any] | None, home: Path
) -> Iterator[tuple[str, str]]:
    active, ready = stored["active"], stored["ready"]
    if health and health["engine"]["capabilities"]["adapters"] == 0:
        is_base = active == BASE
        yield "active version", active if is_base else f"{active}, not served by this engine"
        return
    stale = f", stale: {terminal.excerpt(stored['stale'], 160)}" if stored["stale"] else ""
    yield "active version", active + stale
    if stale and stored["run"] is None:
        yield "", f"train anew: {to_copy('train --relearn', home)}"
    if ready:
        let = to_copy(f"adapters activate {ready[0]}", home)
        why = f" ({terminal.excerpt(stored['failure'], 300)})" if stored["failure"] else ""
        yield "ready", f"{', '.join(ready)}, not activated{why}; to let it serve: {let}"


def _run_rows(stored: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if stored["run"] is not None:
        rows.append(("run", progress(stored["run"])))
    if stored["last_run"] is not None:
        rows.append(("last run", _ended(stored["last_run"])))
    return rows


def _ended(run: dict[str, Any]) -> str:
    """Return what came of a run that is over, why, and which ratings it could not learn from."""
    said = [run["state"] + (f", {run['version']}" if run["version"] else "")]
    said += [f"{num} {name}" for name, num in run["counts"].items() if name.startswith("left out")]
    if run["state"] != "passed":
        said += run["reasons"]
    return terminal.excerpt(f"{run['id']}: {'; '.join(said)}", 300)


async def _stored(home: Path, base: str | None) -> dict[str, Any]:
    """Return what the store says; `base` is the identity of the base that serves, if known."""
    async with open_store(home) as store:
        counts = await store.feedback_counts()
        last = await newest(store)
        run = await store.runs.unfinished()
        last_run = await store.runs.last_finished()
        activation = await store.versions.activation()
        versions = await store.versions.list()
        active = next((one for one in versions if one.id == activation.version), None)
        ready = [one.id for one in versions if _could_serve(one, active, base)]
        failure = await _failure(store, ready[0]) if ready else None
        unlearned = await _unlearned(store, base) if base else None
        room = await store.room()
    return {
        "database": {"bytes": room.total_bytes, "free_bytes": room.free_bytes},
        "ratings": {"good": counts.good, "bad": counts.bad, "total": counts.total},
        "unlearned": unlearned,
        "newest": last.answer.completion.id if last.answer else None,
        "active": activation.version,
        "stale": active.stale if active else None,
        "ready": ready,
        "failure": failure,
        "run": None if run is None else adapter_objects.run(run),
        "last_run": None if last_run is None else adapter_objects.run(last_run),
    }


async def _unlearned(store: "Store", base: str) -> dict[str, int]:
    """Return how many of the newest rated answers `base` has not given, and of how many."""
    rated = await store.list_completions(CompletionFilter(is_rated=True), limit=_NUM_RATED)
    found = [await store.get_completion(one.id) for one in rated.data]
    bases = [one.completion.base for one in found if one is not None]
    return {"num": sum(one != base for one in bases), "of": len(bases)}


async def _failure(store: "Store", version: str) -> str | None:
    """Return why the last attempt to activate a version failed; None where there was none."""
    for one in await store.versions.list_events(version):
        if one.kind == "activation_failed":
            return str(json.loads(one.detail).get("reason", ""))
    return None


def _could_serve(one: Version, active: Version | None, base: str | None) -> bool:
    """Return whether a version is newer than the active one, and may take its place."""
    if one.state != "ready" or one.stale is not None:
        return False
    base = base or (active.base if active else None)
    return one.num > (active.num if active else 0) and base in (None, one.base)


COMMANDS: Final = (status,)
