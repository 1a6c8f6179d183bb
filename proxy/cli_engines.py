"""`strop engines`: the inference servers on this machine, and how to serve each.

Prints; `detection` finds them.
"""

import asyncio
import json
from typing import TYPE_CHECKING

import click

from strop.proxy import terminal
from strop.proxy.cli_options import examples, json_option

if TYPE_CHECKING:
    from strop.proxy import detection


@click.command(epilog=examples("strop engines", "strop engines http://127.0.0.1:9000"))
@click.argument("urls", metavar="[URL]...", nargs=-1)
@json_option
@click.pass_context
def engines(context: click.Context, /, urls: tuple[str, ...], as_json: bool) -> None:
    """Look for engines that run, on the usual local ports or at each URL.

    Says what each can do for strop, and the line that serves it. Exits with 1 when there is none.
    """
    # httpx costs more than all of --help.
    from strop.proxy import detection

    found = asyncio.run(detection.find(urls or detection.USUAL))
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
        places = ", ".join(urls or detection.USUAL)
        click.echo(f"no engine answers at {places}\n\nstrop's own:\n  strop serve")
    else:
        click.echo("\n\n".join(_paragraph(one) for one in found))
    context.exit(0 if found else 1)


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
