"""`strop train`: one run now, by the proxy that serves, or in this terminal where none does.

The trainer's libraries are never imported here: they load in a process of their own.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from strop.proxy import adapter_objects
from strop.proxy.cli import terminal
from strop.proxy.cli.admin_client import call
from strop.proxy.cli.options import (
    examples,
    home_of,
    home_option,
    in_force,
    json_option,
    open_store,
)
from strop.proxy.cli.runs import described, is_over, progress
from strop.proxy.command_line import to_copy
from strop.proxy.errors import ConfigError
from strop.proxy.home import serving, serving_url
from strop.proxy.run_requests import MAX_SEED, Wanted, preset
from strop.proxy.settings import settings
from strop.proxy.store.run_records import Run

_POLL_S: Final = 0.5
# Empties the line that shows progress.
_CLEAR: Final = "\r\x1b[K"
_OBJECTIVES: Final = settings.KINDS["training.objective"].choices


@click.command(epilog=examples("strop train", "strop train --objective sft --preset careful"))
@click.option("--objective", type=click.Choice(_OBJECTIVES), help="What is minimised.")
@click.option("--preset", "named", metavar="NAME", help="careful, balanced, aggressive, or a file.")
@click.option(
    "--parent",
    metavar="VERSION",
    help="The version to continue; base for a fresh one. [default: the active one]",
)
@click.option("--relearn", is_flag=True, help="Continue the newest ancestor that isn't stale.")
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, MAX_SEED),
    help="Of what is drawn, to repeat a run. [default: another each time]",
)
@click.option("--detach", is_flag=True, help="Don't wait for its end.")
@home_option
@json_option
@click.pass_context
def train(
    context: click.Context,
    /,
    home: Path | None,
    as_json: bool,
    relearn: bool,
    detach: bool,
    objective: str | None,
    named: str | None,
    parent: str | None,
    seed: int | None,
) -> None:
    """Learn from what is rated, now.

    The proxy does it and activates what passes the gate. Where none serves, the run goes on in this
    terminal, and what passes waits to be activated.

    Exits with 1 where the run made no version that passed the gate.
    """
    folder = home_of(home)
    if relearn and parent is not None:
        raise click.UsageError("expected --relearn or --parent, got both")
    # Unknown here, before anything starts; and a path means the same to whoever trains.
    chosen = None if named is None else preset(named)
    if relearn:
        parent = asyncio.run(_clean_ancestor(folder))
    wanted = Wanted(objective, chosen, parent, seed)
    is_served = serving_url(folder) is not None
    if is_served:
        run = _by_proxy(folder, wanted, waits=not detach, shows=not as_json and _is_terminal())
    elif detach:
        raise ConfigError(
            f"--detach needs a strop that serves from {folder}; start it with:"
            f" {to_copy('serve', folder)}"
        )
    else:
        run = _here(folder, wanted, is_quiet=as_json)
    if as_json:
        click.echo(json.dumps(run))
    else:
        click.echo(terminal.table(described(run)))
        click.echo(_next_step(run, folder, is_served=is_served))
    context.exit(0 if detach or run["state"] == "passed" else 1)


async def _clean_ancestor(home: Path) -> str:
    """Return what relearning continues; say so where that is what any run would continue."""
    from strop.proxy.versions.displaced import to_continue
    from strop.proxy.versions.pairing import identity_of

    async with open_store(home) as store:
        base = await identity_of(in_force(home), home)
        usual = await to_continue(store.versions, base or "")
        clean = await store.versions.clean_ancestor(usual)
    if clean == usual:
        told = "so there is nothing to relearn: the run continues it, as without --relearn"
        click.echo(f"{usual} isn't stale, {told}", err=True)
    return clean


def _by_proxy(home: Path, wanted: Wanted, *, waits: bool, shows: bool) -> dict[str, Any]:
    asked = {name: value for name, value in asdict(wanted).items() if value is not None}
    run = call(home, "POST", "/admin/runs", asked)
    told = ""
    try:
        while waits and not is_over(run):
            time.sleep(_POLL_S)
            run = call(home, "GET", f"/admin/runs/{run['id']}")
            if run["state"] == "queued":
                reason = call(home, "GET", "/admin/runs?limit=1")["waits_for"]
                # Else it begins next, or its process has not said yet that it runs.
                if run["id"] not in reason and reason != told:
                    told = reason
                    click.echo(f"{_CLEAR * shows}{run['id']} is queued: {reason}", err=True)
            if shows:
                click.echo(f"{_CLEAR}{progress(run)}", nl=False)
    except KeyboardInterrupt:
        stop = to_copy(f"runs cancel {run['id']}", home)
        click.echo(f"\n{run['id']} goes on where strop serves; stop it: {stop}", err=True)
        raise
    if waits and shows:
        click.echo(_CLEAR, nl=False)
    return run


def _here(home: Path, wanted: Wanted, *, is_quiet: bool) -> dict[str, Any]:
    """Make a run in this terminal; return it."""
    from strop.proxy import foreground

    resolved = settings.load(home, environ=os.environ).settings

    async def take_up() -> Run:
        async with open_store(home) as store:
            return await foreground.take_up(store, home, resolved, wanted)

    async def over(id_: str) -> Run:
        async with open_store(home) as store:
            found = await store.runs.get(id_)
            assert found is not None
            return found

    run = asyncio.run(take_up())
    click.echo(f"No strop serves from {home}: {run.id} runs in this terminal.", err=True)
    foreground.see_through(home, run.id, is_quiet=is_quiet)
    return dict(adapter_objects.run(asyncio.run(over(run.id))))


def _next_step(run: dict[str, Any], home: Path, *, is_served: bool) -> str:
    show = f"runs show {run['id']}"
    if run["state"] == "passed":
        return asyncio.run(activation_of(home, run["id"]))
    if run["state"] == "rejected" and run["version"] is not None:
        see = to_copy(f"adapters show {run['version']}", home)
        return f"{run['version']} was rejected, and doesn't serve. See all of it: {see}"
    if is_over(run):
        return f"No version was made. See all of it: {to_copy(f'{show} --json', home)}"
    if is_served:
        return f"See how it goes: {to_copy(show, home)}"
    train, serve = to_copy("train", home), to_copy("serve", home)
    return f"{run['id']} stopped, and goes on with: {train}, or {serve}"


async def activation_of(home: Path, run_id: str) -> str:
    """Return whether what passed is activated by itself; if not, why, and what to type."""
    from strop.proxy.versions.displaced import to_continue
    from strop.proxy.versions.promotion import obstacle

    serves, training = serving(home), in_force(home).training
    async with open_store(home) as store:
        run = await store.runs.get(run_id)
        made = None if run is None else await store.versions.get(run.version or "")
        assert run is not None
        assert made is not None
        if made.state == "active":
            return f"{made.id} serves now."
        active = await to_continue(store.versions, made.base)
        reason = await obstacle(training, store, run, made, active=active)
    if reason is None:
        if serves is not None:
            see = to_copy("adapters list", home)
            return f"{made.id} is ready; strop activates it now. See it: {see}"
        return f"{made.id} is ready; strop activates it when it serves: {to_copy('serve', home)}"
    if made.stale is not None:
        step = f"train anew: {to_copy('train --relearn', home)}"
    else:
        step = f"activate it: {to_copy(f'adapters activate {made.id}', home)}"
        step = step if serves is not None else f"while strop serves, {step}"
    return f"{made.id} is ready, but not activated by itself, since {reason}; {step}"


def _is_terminal() -> bool:
    return sys.stdout.isatty()


COMMANDS: Final = (train,)
