"""`strop engines`: the inference servers on this machine, and how to serve each.

Prints; `detection` finds them.
"""

import asyncio
import importlib.util
import json
import os
import shlex
from typing import TYPE_CHECKING

import click

from strop.configs import installation
from strop.proxy.cli import terminal
from strop.proxy.cli.options import examples, json_option
from strop.proxy.errors import ConfigError
from strop.proxy.settings.kinds import is_base_url

if TYPE_CHECKING:
    from strop.proxy import detection


@click.command(epilog=examples("strop engines", "strop engines http://127.0.0.1:9000"))
@click.argument("urls", metavar="[URL]...", nargs=-1)
@json_option
@click.pass_context
def engines(context: click.Context, /, urls: tuple[str, ...], as_json: bool) -> None:
    """Look for engines: on the usual local ports, or at each URL.

    Says what each can do for strop, and the line that serves it. Exits with 1 when there is none.
    An engine that wants a key is asked with STROP_ENGINE_KEY where its URL is given.
    """
    # httpx costs more than all of --help.
    from strop.proxy import detection

    places = [_url(one) for one in urls] or detection.USUAL
    # Not whatever listens on a usual port may have it.
    key = os.environ.get("STROP_ENGINE_KEY", "").strip() if urls else ""
    seen = asyncio.run(detection.look(places, key=key))
    found = seen.found
    if as_json:
        shown = [
            {
                "kind": one.kind,
                "label": one.label,
                "url": one.url,
                "version": one.version,
                "models": one.models,
                "does": one.does,
                "command": one.command,
            }
            for one in found
        ]
        click.echo(json.dumps({"object": "list", "data": shown}))
        for url in seen.locked:
            click.echo(_locked(url, key), err=True)
    elif found or seen.locked:
        shut = (_locked(url, key) for url in seen.locked)
        click.echo("\n\n".join((*(_paragraph(one) for one in found), *shut)))
    else:
        click.echo(f"no engine answers at {', '.join(places)}")
        # Elsewhere `strop serve` would only say what it lacks.
        if importlib.util.find_spec("mlx_lm") is not None:
            click.echo(f"\nstrop's own:\n  {installation.strop()} serve")
    context.exit(0 if found else 1)


def _url(typed: str) -> str:
    """Return the URL that was typed; without a scheme it is plain HTTP."""
    url = typed if "://" in typed else f"http://{typed}"
    if not is_base_url(url):
        raise ConfigError(f"expected URLs like http://127.0.0.1:8000, got {typed!r}")
    return url


def _paragraph(one: "detection.Found") -> str:
    models = ", ".join(one.models[:3]) + (", ..." if len(one.models) > 3 else "")
    head = f"{one.label} {one.version or ''}".strip()
    lines = [
        f"{head} at {one.url}",
        f"  serves   {models or 'no model yet'}",
        f"  gives    {one.does}",
        f"  use it   {one.command}",
    ]
    if one.learns:
        lines.append(
            "  learn    add --set model.base=MODEL: it in Hugging Face format, a folder or hub id"
        )
    return terminal.safe("\n".join(lines))


def _locked(url: str, key: str) -> str:
    if key:
        return terminal.safe(f"something answers at {url}, and not to the key in STROP_ENGINE_KEY")
    ask = f"STROP_ENGINE_KEY=... {installation.strop()} engines {shlex.quote(url)}"
    return terminal.safe(f"something answers at {url} and wants a key\n  ask it so   {ask}")


COMMANDS = (engines,)
