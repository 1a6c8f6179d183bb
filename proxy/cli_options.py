"""What several commands share: their options, their examples, and the store in the home.

Knows no command, and prints nothing.
"""

import contextlib
import os
import shlex
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from strop.proxy.errors import ConfigError
from strop.proxy.ids import completion_id
from strop.proxy.settings import find_home

if TYPE_CHECKING:
    from strop.proxy.store.store import Store

STORE_FILE: Final = "strop.db"


def examples(*lines: str) -> str:
    """Return the end of a command's help: what it looks like when used."""
    # Click keeps the lines of a paragraph that begins with a backspace.
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


def home_option(command: Any) -> Any:
    """Add `--home`."""
    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Where strop keeps its things. [default: $STROP_HOME, else ~/.strop]",
    )(command)


def json_option(command: Any) -> Any:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def completion_argument(*, required: bool = True) -> Callable[[Any], Any]:
    """Return what adds COMPLETION: by its id, or by that of its answer in another dialect."""

    def named(
        _context: click.Context, _parameter: click.Parameter, value: str | None
    ) -> str | None:
        return None if value is None else completion_id(value)

    return click.argument("completion", required=required, callback=named)


def home_of(given: Path | None) -> Path:
    """Return the home: as given, or where it is by default."""
    return find_home(os.environ) if given is None else given.expanduser().absolute()


@contextlib.asynccontextmanager
async def open_store(home: Path) -> "AsyncIterator[Store]":
    """Lend the store of a home where strop has run.

    Raises:
        ConfigError: there is none.
    """
    path = home / STORE_FILE
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}, so nothing is recorded there; start strop with `strop serve`, or"
            " name its home with --home"
        )
    # Opening SQLite and zstd costs more than all of --help.
    from strop.proxy.store.store import Store

    store = await Store.open(path)
    try:
        yield store
    finally:
        await store.close()


def home_hint(home: Path) -> str:
    """Return the option that names `home` in a command to copy, where it isn't the default."""
    return "" if home == find_home(os.environ) else f" --home {shlex.quote(str(home))}"
