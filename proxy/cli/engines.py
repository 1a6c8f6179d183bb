"""`strop engines`: the inference servers on this machine, and how to serve each.

Prints; `detection` finds them.
"""

import asyncio
import json
from typing import TYPE_CHECKING

import click

from strop.configs import installation
from strop.proxy.cli import terminal
from strop.proxy.cli.options import examples, json_option
from strop.proxy.errors import ConfigError
from strop.proxy.setting_kinds import is_base_url

if TYPE_CHECKING:
    from strop.proxy import detection


@click.command(epilog=examples("strop engines", "strop engines http://127.0.0.1:9000"))
@click.argument("urls", metavar="[URL]...", nargs=-1)
@json_option
@click.pass_context
def engines(context: click.Context, /, urls: tuple[str, ...], as_json: bool) -> None:
    """Look for engines: on the usual local ports, or at each URL.

    Says what each can do for strop, and the line that serves it. Exits with 1 when there is none.
    """
    # httpx costs more than all of --help.
    from strop.proxy import detection

    places = [_url(one) for one in urls] or detection.USUAL
    found = asyncio.run(detection.find(places))
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
    elif not found:
        own = f"{installation.strop()} serve"
        click.echo(f"no engine answers at {', '.join(places)}\n\nstrop's own:\n  {own}")
    else:
        click.echo("\n\n".join(_paragraph(one) for one in found))
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
    return terminal.safe("\n".join(lines))


COMMANDS = (engines,)
