"""`strop adapters`: the versions, which one serves, and moving between them.

Lists read the home's own store; what moves traffic asks the running proxy.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from strop.adapters.rates import Rate
from strop.proxy import adapter_objects, base_names, objects
from strop.proxy.cli import terminal
from strop.proxy.cli.admin_client import ask_health, call
from strop.proxy.cli.options import (
    examples,
    home_of,
    home_option,
    json_option,
    open_store,
)
from strop.proxy.command_line import to_copy
from strop.proxy.errors import ConfigError, NotFound, StropError
from strop.proxy.home import serving_url
from strop.proxy.run_requests import AWAITS_RUN
from strop.proxy.store import layout
from strop.proxy.store.version_records import BASE, Activation, Version

if TYPE_CHECKING:
    from strop.proxy.store.store import Store

SHOW_EVENTS = 20


@click.group(epilog=examples("strop adapters list", "strop adapters activate v3"))
def adapters() -> None:
    """Look at adapter versions, and choose which one serves."""


@adapters.command("list", epilog=examples("strop adapters list"))
@home_option
@json_option
def list_adapters(home: Path | None, as_json: bool) -> None:
    """List versions, newest first."""
    asyncio.run(_list(home_of(home), as_json=as_json))


async def _list(home: Path, *, as_json: bool) -> None:
    async with open_store(home) as store:
        found = await store.versions.list()
        activation = await store.versions.activation()
        liked: dict[str, Rate] = {}
        names = await store.versions.base_names()
        health = _health(home)
        served = _served_base(health, found, activation)
        for base in names.keys() - {served}:
            liked |= await store.training.live_rates(base=base)
        # Every base goes by `base`: the one that serves is meant, or the only one that is known.
        if served or len(names) > 1:
            liked.pop(BASE, None)
        liked |= await store.training.live_rates(base=served)
    if as_json:
        shown = (adapter_objects.adapter(one, liked=liked.get(one.id)) for one in found)
        more = {"active": activation.version, "previous": activation.previous}
        click.echo(json.dumps(objects.list_of(shown) | more))
        return
    is_served = not health or health["engine"]["capabilities"]["adapters"] > 0
    rows = [_row(one, activation, liked.get(one.id), is_served=is_served) for one in found]
    is_active = activation.version == BASE
    rows.append(("*" if is_active else "", BASE, "", "", "", _liked(liked.get(BASE)), "", ""))
    rows.insert(0, ("", "VERSION", "STATE", "PARENT", "LEARNED", "LIKED", "MADE", "NOTE"))
    if len({*names, served} - {""}) > 1:
        other = ", not served" if served else ""
        bases = [names[one.base] + (other if one.base != served else "") for one in found]
        bases.append(names.get(served) or base_names.shown(served, None))
        columns = zip(rows, ["BASE", *bases], strict=True)
        rows = [(*row[:4], base, *row[4:]) for row, base in columns]
    click.echo(terminal.table(rows[1:], rows[0]))


def _health(home: Path) -> dict[str, Any] | None:
    url = serving_url(home)
    return ask_health(url) if url else None


def _served_base(
    health: dict[str, Any] | None, versions: Sequence[Version], activation: Activation
) -> str:
    """Return the identity of the base that serves, else of the active version; empty if unknown."""
    known = [one.base for one in versions if one.id == activation.version]
    return (health or {}).get("model", {}).get("base") or "".join(known)


def _liked(rate: Rate | None) -> str:
    """Return how its answers were rated, for people."""
    if rate is None:
        return ""
    interval = rate.interval
    return f"{rate.value:.2f} ({interval.low:.2f}-{interval.high:.2f}) of {rate.num}"


def _row(
    one: Version, activation: Activation, liked: Rate | None, *, is_served: bool
) -> tuple[str, ...]:
    shown = adapter_objects.adapter(one)
    note = one.stale or one.reason or ("kept" if one.is_kept else "")
    is_active = one.id == activation.version
    if is_active and not is_served:
        note = "not served by this engine" + f"; {note}" * bool(note)
    return (
        "*" if is_active and is_served else "",
        one.id,
        f"{one.state}, stale" if one.stale else one.state,
        one.parent or "base",
        str(shown["num_ratings"]),
        _liked(liked),
        terminal.since(one.created_ms),
        terminal.excerpt(note, 60),
    )


@adapters.command("show", epilog=examples("strop adapters show v3"))
@click.argument("version")
@home_option
@json_option
def show_adapter(version: str, home: Path | None, as_json: bool) -> None:
    """Show where a version comes from, its verdict, its history."""
    folder = home_of(home)
    if serving_url(folder) is not None:
        shown = _ask(folder, "GET", version)
    else:
        shown = asyncio.run(_stored(folder, version))
    if as_json:
        click.echo(json.dumps(shown))
        return
    click.echo(terminal.table(_described(shown)))


def _ask(home: Path, method: str, version: str, body: object = None) -> dict[str, Any]:
    return _call(home, method, quote(version, safe=""), body, version)


def _call(home: Path, method: str, path: str, body: object, version: str) -> dict[str, Any]:
    """Ask the proxy about a version; where it knows none of this id, say why."""
    unknown = f"no version {version!r}"
    try:
        return call(home, method, f"/admin/adapters/{path}", body, unknown=unknown)
    except NotFound:
        asyncio.run(_refuse_unknown(version, home))
        raise


async def _stored(home: Path, version: str) -> dict[str, Any]:
    async with open_store(home) as store:
        found = await store.versions.get(version)
        if found is None:
            raise await _unknown(store, version, home)
        events = await store.versions.list_events(version, limit=SHOW_EVENTS)
        liked = await store.training.live_rates(base=found.base)
    return dict(adapter_objects.adapter(found, events=events, liked=liked.get(version)))


def _described(shown: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("version", shown["id"]),
        ("state", f"{shown['state']}{', stale: ' + shown['stale'] if shown['stale'] else ''}"),
        ("parent", shown["parent"]),
        ("base", shown["base"]),
        ("made", terminal.when(1000 * shown["created"])),
        ("made by", shown["run"] or shown["origin"]),
        ("learned from", f"{shown['num_ratings']} ratings"),
    ]
    if shown["liked"]:
        rows.append(("liked", _liked(Rate(shown["liked"]["num_good"], shown["liked"]["num"]))))
    if shown["reason"]:
        rows.append(("reason", shown["reason"]))
    verdict = shown["verdict"] or {}
    if "outcome" in verdict:
        rows.append(("gate", verdict["outcome"]))
    rows += [("", reason) for reason in verdict.get("reasons", ())]
    for one in shown["loaded"]:
        draining = ", draining" if one["draining"] else ""
        rows.append(("loaded", f"{one['engine']}, {one['leases']} running requests{draining}"))
    for one in shown["events"]:
        when = f"{terminal.since(1000 * one['created'])} by {one['actor']}"
        rows.append((one["kind"], "; ".join([when, *_told(one["detail"])])))
    return rows


def _told(detail: dict[str, Any]) -> Iterator[str]:
    """Yield what an event's detail tells people; all of it is in the JSON."""
    for name in ("from", "to", "reason"):
        if detail.get(name):
            yield terminal.excerpt(f"{'' if name == 'reason' else name + ' '}{detail[name]}", 300)
    if detail.get("timings_ms"):
        yield f"in {sum(detail['timings_ms'].values()):.0f} ms"
    if detail.get("probe"):
        yield f"{detail['probe']['outcome']}: {detail['probe']['reason']}"


@adapters.command(
    "activate", epilog=examples("strop adapters activate v3", "strop adapters activate base")
)
@click.argument("version")
@click.option("--force", is_flag=True, help="Even if it is stale, or can't be proven to serve.")
@home_option
@json_option
def activate_adapter(version: str, force: bool, home: Path | None, as_json: bool) -> None:
    """Let VERSION serve, once the engine has shown that it does."""
    folder, body = home_of(home), {"version": version, "force": force}
    done = _call(folder, "PUT", "active", body, version)
    _say_switched(done, folder, as_json=as_json)


@adapters.command("rollback", epilog=examples("strop adapters rollback"))
@home_option
@json_option
def roll_back(home: Path | None, as_json: bool) -> None:
    """Go back to the version that was active before, be it stale."""
    at = home_of(home)
    _say_switched(call(at, "POST", "/admin/adapters/rollback", {}), at, as_json=as_json)


def _say_switched(done: dict[str, Any], home: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(done))
        return
    if done["version"] == done["previous"]:
        click.echo(f"{done['version']} serves already")
        _say_stale(done, home)
        return
    total_ms = sum(done["timings_ms"].values())
    click.echo(f"{done['version']} serves, after {done['previous']}; it took {total_ms:.0f} ms")
    if done["pause_ms"]:
        click.echo(f"requests were held back for {done['pause_ms']:.0f} ms")
    if done["probe"]:
        click.echo(f"probe: {done['probe']['outcome']}, {done['probe']['reason']}")
    _say_stale(done, home)


def _say_stale(done: dict[str, Any], home: Path) -> None:
    # A strop that was upgraded while it serves doesn't say.
    if done.get("stale"):
        relearn = to_copy("train --relearn", home)
        click.echo(f"it is stale: {done['stale']}; train anew without that rating: {relearn}")


@adapters.command("import", epilog=examples("strop adapters import ./my-lora"))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@home_option
@json_option
def import_adapter(folder: Path, home: Path | None, as_json: bool) -> None:
    """Take a LoRA of peft or mlx_lm from FOLDER as a new version.

    Its probe is made by loading the base once more. Where that can't be done, the version can't be
    proven to serve, and is activated with --force.
    """
    at = home_of(home)
    made = call(at, "POST", "/admin/adapters", {"path": str(folder.absolute())})
    if as_json:
        click.echo(json.dumps(made))
        return
    lacks, force = "", ""
    if made["reason"] == AWAITS_RUN:
        lacks = f", but can't be proven to serve yet: {made['reason']}"
    elif made["reason"]:
        lacks, force = f", but can't be proven to serve: {made['reason']}", " --force"
    click.echo(f"{made['id']} is {made['state']}{lacks}")
    when = "then" if made["reason"] == AWAITS_RUN else "to let it serve"
    activate = to_copy(f"adapters activate {made['id']}{force}", at)
    click.echo(f"{when.capitalize()}: {activate}")


@adapters.command(
    "keep", epilog=examples("strop adapters keep v3", "strop adapters keep v3 --release")
)
@click.argument("version")
@click.option("--release", is_flag=True, help="Let it go again, as others go.")
@home_option
def keep_adapter(version: str, release: bool, home: Path | None) -> None:
    """Keep VERSION on disk, however many newer ones there are."""
    _ask(home_of(home), "PUT", version, {"kept": not release})
    click.echo(f"{version} is {'kept no longer than others' if release else 'kept'}")


@adapters.command("remove", epilog=examples("strop adapters remove v3"))
@click.argument("version")
@home_option
def remove_adapter(version: str, home: Path | None) -> None:
    """Delete the files of VERSION; its number is never used again.

    One that is active, or kept, is not removed.
    """
    _ask(home_of(home), "DELETE", version)
    click.echo(f"{version} is removed")


@adapters.command("export", epilog=examples("strop adapters export v3 ./v3-peft"))
@click.argument("version")
@click.argument("folder", type=click.Path(path_type=Path))
@home_option
def export_adapter(version: str, folder: Path, home: Path | None) -> None:
    """Copy VERSION into a new FOLDER, which PEFT can load.

    Without its probe, which holds what people asked.
    """
    if folder.exists():
        raise ConfigError(f"expected a folder that doesn't exist yet, got {folder}")
    at = home_of(home)
    asyncio.run(_refuse_unknown(version, at))
    # It reads tensors, which no other command does.
    from strop.adapters import manifest
    from strop.adapters.library import Library

    try:
        library = Library(at / layout.ADAPTERS)
        made = library.verify(version)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # It appears whole or not at all.
        with tempfile.TemporaryDirectory(prefix=".strop-", dir=folder.parent) as scratch:
            copy = shutil.copytree(library.path_of(version), Path(scratch) / version)
            (copy / manifest.FILE).write_bytes(manifest.dumps(replace(made, probe=None)))
            copy.rename(folder)
    except (ValueError, OSError) as error:
        raise StropError(f"{version} can't be exported: {error}") from error
    click.echo(f"{version} is in {folder}")


async def _refuse_unknown(version: str, home: Path) -> None:
    async with open_store(home) as store:
        if await store.versions.get(version) is None:
            raise await _unknown(store, version, home)


async def _unknown(store: "Store", version: str, home: Path) -> NotFound:
    why = await store.versions.removal(version) or f"there is no version {version!r}"
    return NotFound(f"{why}; see: {to_copy('adapters list', home)}")


COMMANDS = (adapters,)
