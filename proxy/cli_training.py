"""`strop train`: one run now, by the proxy that serves, or in this terminal where none does.

The trainer's libraries are never imported here: they load in a process of their own.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import click

from strop.proxy import adapter_objects, settings, terminal
from strop.proxy.admin_client import call
from strop.proxy.cli_options import (
    examples,
    home_of,
    home_option,
    json_option,
    open_store,
)
from strop.proxy.cli_runs import described, is_over, progress
from strop.proxy.errors import ConfigError
from strop.proxy.home import serving_url
from strop.proxy.run_requests import Wanted, preset
from strop.proxy.settings import home_hint
from strop.proxy.store.run_records import UNFINISHED, Run

_POLL_S: Final = 0.5
_OBJECTIVES: Final = get_args(get_type_hints(settings.Training)["objective"])


@click.command(epilog=examples("strop train", "strop train --objective sft --preset careful"))
@click.option("--objective", type=click.Choice(_OBJECTIVES), help="What is minimised.")
@click.option("--preset", "named", metavar="NAME", help="careful, balanced, aggressive, or a file.")
@click.option(
    "--parent",
    metavar="VERSION",
    help="The version to continue; base for a fresh one. [default: the active one]",
)
@click.option("--relearn", is_flag=True, help="Continue the newest ancestor that isn't stale.")
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
    wanted = Wanted(objective, chosen, parent)
    if serving_url(folder) is not None:
        run = _by_proxy(folder, wanted, waits=not detach, shows=not as_json and _is_terminal())
        says = _next_step(run, folder)
    elif detach:
        raise ConfigError(
            f"--detach needs a strop that serves from {folder}; start it with: strop"
            f" serve{home_hint(folder)}"
        )
    else:
        run, says = _here(folder, wanted, is_quiet=as_json)
    if as_json:
        click.echo(json.dumps(run))
    else:
        click.echo(terminal.table(described(run)))
        click.echo(says)
    context.exit(0 if detach or run["state"] == "passed" else 1)


async def _clean_ancestor(home: Path) -> str:
    """Return the newest of the active version and its ancestors that isn't stale."""
    async with open_store(home) as store:
        version = (await store.versions.activation()).version
        while version != "base":
            found = await store.versions.get(version)
            if found is not None and found.stale is None:
                return version
            version = (found.parent if found is not None else None) or "base"
    return "base"


def _by_proxy(home: Path, wanted: Wanted, *, waits: bool, shows: bool) -> dict[str, Any]:
    asked = {"objective": wanted.objective, "preset": wanted.preset, "parent": wanted.parent}
    run = call(home, "POST", "/admin/runs", asked)
    try:
        while waits and not is_over(run):
            time.sleep(_POLL_S)
            run = call(home, "GET", f"/admin/runs/{run['id']}")
            if shows:
                click.echo(f"\r\x1b[K{progress(run)}", nl=False)
    except KeyboardInterrupt:
        stop = f"strop runs cancel {run['id']}{home_hint(home)}"
        click.echo(f"\n{run['id']} goes on where strop serves; stop it: {stop}", err=True)
        raise
    if waits and shows:
        click.echo("\r\x1b[K", nl=False)
    return run


def _next_step(run: dict[str, Any], home: Path) -> str:
    hint = home_hint(home)
    if run["state"] == "passed":
        return f"See whether {run['version']} serves: strop adapters list{hint}"
    if is_over(run):
        return f"No version was made. See all of it: strop runs show {run['id']}{hint} --json"
    return f"See how it goes: strop runs show {run['id']}{hint}"


def _here(home: Path, wanted: Wanted, *, is_quiet: bool) -> tuple[dict[str, Any], str]:
    """Make a run in this terminal; return it, and what to do next."""
    from strop.proxy import foreground

    resolved = settings.load(home, environ=os.environ).settings

    async def take_up() -> Run:
        async with open_store(home) as store:
            return await foreground.take_up(store, home, resolved, wanted)

    async def over(id_: str) -> tuple[Run, str]:
        async with open_store(home) as store:
            found = await store.runs.get(id_)
            assert found is not None
            return found, (await store.versions.activation()).version

    run = asyncio.run(take_up())
    click.echo(f"No strop serves from {home}: {run.id} runs in this terminal.", err=True)
    foreground.see_through(home, run.id, is_quiet=is_quiet)
    run, active = asyncio.run(over(run.id))
    return dict(adapter_objects.run(run)), _then(run, active, resolved, home_hint(home))


def _then(run: Run, active: str, resolved: settings.Settings, hint: str) -> str:
    if run.state in UNFINISHED:
        return f"{run.id} stopped, and goes on with: strop train{hint}, or strop serve{hint}"
    if run.state != "passed":
        return f"No version was made. See all of it: strop runs show {run.id}{hint} --json"
    if resolved.training.promote == "auto" and active == (run.parent or "base"):
        return f"{run.version} is ready; strop activates it when it serves: strop serve{hint}"
    return (
        f"{run.version} is ready; while strop serves, activate it: strop adapters activate"
        f" {run.version}{hint}"
    )


def _is_terminal() -> bool:
    return sys.stdout.isatty()


COMMANDS: Final = (train,)
