"""docs/cli.md, made from the commands' own help.

python tests/support/cli_reference.py    writes it
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

import click

from strop.proxy.cli.handover import MODULES
from strop.proxy.cli.root import main

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
INTRODUCTION = """\
# Command line

Each command's own help, as `strop COMMAND --help` prints it.
Made by `tests/support/cli_reference.py`.

A command ends with 0, with 2 when what was typed or set is wrong, and with 1 when anything else is.
"""


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for context in contexts(main, None, "strop"):
        # The terminal that this runs in must not show.
        context.terminal_width = 90
        parts.append(f"## {context.command_path}\n\n```\n{context.get_help()}\n```\n")
    return "\n".join(parts)


def contexts(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[click.Context]:
    """Yield a context for a command and all below it.

    What is handed over to a module is that module's command.
    """
    if name in MODULES:
        command = importlib.import_module(MODULES[name]).main
    context = command.context_class(
        command, info_name=name, parent=parent, **command.context_settings
    )
    yield context
    if isinstance(command, click.Group):
        for child in sorted(command.commands):
            yield from contexts(command.commands[child], context, child)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
