"""`strop runs`: the training runs, one of them, and stopping it.

Lists read the home's own store. Starts none; `training` does.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from strop.proxy import adapter_objects, objects
from strop.proxy.cli import terminal
from strop.proxy.cli.admin_client import call
from strop.proxy.cli.options import (
    examples,
    home_of,
    home_option,
    json_option,
    open_store,
)
from strop.proxy.command_line import to_copy
from strop.proxy.errors import NotFound
from strop.proxy.home import serving_url
from strop.proxy.store.run_records import UNFINISHED, Run


@click.group(epilog=examples("strop runs list", "strop runs show run_..."))
def runs() -> None:
    """Look at training runs."""


@runs.command("list", epilog=examples("strop runs list"))
@click.option(
    "--limit",
    type=click.IntRange(1, 100),
    default=20,
    show_default=True,
    metavar="N",
    help="How many at most.",
)
@click.option("--after", metavar="ID", help="Go on after this one.")
@home_option
@json_option
def list_runs(home: Path | None, limit: int, after: str | None, as_json: bool) -> None:
    """List runs, newest first."""
    asyncio.run(_list(home_of(home), limit, after, as_json=as_json))


async def _list(home: Path, limit: int, after: str | None, *, as_json: bool) -> None:
    async with open_store(home) as store:
        page = await store.runs.list(limit=limit, after=after)
    if as_json:
        shown = map(adapter_objects.run, page.data)
        click.echo(json.dumps(objects.list_of(shown, has_more=page.has_more)))
        return
    if not page.data:
        click.echo("No runs.")
        return
    header = ("RUN", "STATE", "VERSION", "PARENT", "HOW", "WHEN", "BY")
    click.echo(terminal.table([_row(one) for one in page.data], header))
    if page.has_more:
        rest = f"runs list --limit {limit} --after {page.data[-1].id}"
        click.echo(f"More: {to_copy(rest, home)}")


def _row(one: Run) -> tuple[str, ...]:
    return (
        one.id,
        f"{one.state}{', stopping' if one.is_cancelling and one.state in UNFINISHED else ''}",
        one.version or "",
        one.parent or "base",
        terminal.excerpt(f"{one.objective}, {one.preset}", 40),
        terminal.since(one.created_ms),
        one.requested_by,
    )


@runs.command("show", epilog=examples("strop runs show run_..."))
@click.argument("run")
@home_option
@json_option
def show_run(run: str, home: Path | None, as_json: bool) -> None:
    """Show what a run learned from, how it went, the gate's verdict."""
    shown = asyncio.run(_stored(home_of(home), run))
    click.echo(json.dumps(shown) if as_json else terminal.table(described(shown)))


async def _stored(home: Path, id_: str) -> dict[str, Any]:
    async with open_store(home) as store:
        found = await store.runs.get(id_)
        if found is None:
            raise NotFound(_unknown(id_, home))
        return dict(adapter_objects.run(found, await store.runs.list_steps(id_)))


def _unknown(id_: str, home: Path) -> str:
    return f"there is no run {id_!r}; see: {to_copy('runs list', home)}"


@runs.command("cancel", epilog=examples("strop runs cancel run_..."))
@click.argument("run")
@home_option
def cancel_run(run: str, home: Path | None) -> None:
    """Stop a run, at its next batch; its ratings stay to be learned from."""
    folder = home_of(home)
    if serving_url(folder) is not None:
        unknown = _unknown(run, folder)
        path = f"/admin/runs/{quote(run, safe='')}"
        shown = call(folder, "DELETE", path, unknown=unknown)
    else:
        shown = asyncio.run(_cancel(folder, run))
    is_over = shown["state"] == "cancelled"
    click.echo(f"{run} is cancelled" if is_over else f"{run} stops at its next step")


async def _cancel(home: Path, id_: str) -> dict[str, Any]:
    from strop.proxy import foreground

    async with open_store(home) as store:
        return dict(adapter_objects.run(await foreground.cancel(store, home, id_)))


def progress(run: Mapping[str, Any]) -> str:
    """Return how far a run object that isn't over is, on one line."""
    left = "" if run["eta_s"] is None else f", about {terminal.duration(run['eta_s'])} left"
    counts = run["counts"]
    steps = f", step {run['step']} of {run['num_steps']}" if run["num_steps"] else ""
    if num_all := counts.get("answers_to_measure"):
        steps = f", measured {counts['answers_measured']} of {num_all}"
    loss = run["metrics"].get("loss")
    stopping = ", stopping" if run["cancelling"] else ""
    return f"{run['id']}: {run['state']}{steps}{left}{stopping}" + (
        "" if loss is None else f", loss {loss:.4f}"
    )


def is_over(run: Mapping[str, Any]) -> bool:
    """Whether a run object is of a run that is over."""
    return run["state"] not in UNFINISHED


def described(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a run object as rows of a table."""
    took = ", stopping" if run["cancelling"] and not is_over(run) else ""
    if run["started"] is not None and run["finished"] is not None:
        took = f" after {terminal.duration(run['finished'] - run['started'])}"
    rows = [
        ("run", run["id"]),
        ("state", f"{run['state']}{took}"),
        ("version", run["version"] or "none"),
        ("parent", run["parent"]),
        ("how", f"{run['objective']}, {run['preset']}"),
        ("asked by", run["requested_by"]),
        ("when", terminal.when(1000 * run["created"])),
    ]
    if run["num_steps"]:
        rows.append(("step", f"{run['step']} of {run['num_steps']}"))
    rows += [(_name(name), _plain(value)) for name, value in run["counts"].items()]
    rows += [
        (_name(name), terminal.size(value) if name.endswith("_bytes") else _plain(value))
        for name, value in run["metrics"].items()
        # Whole tables of figures are for programs: --json.
        if not isinstance(value, dict | list)
    ]
    rows += [("reason", reason) for reason in run["reasons"]]
    return rows


def _name(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


COMMANDS: Final = (runs,)
