"""What several commands share: their options, their examples, and the home's store and settings.

Knows no command, and prints nothing.
"""

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strop.proxy.command_line import to_copy
from strop.proxy.errors import ConfigError, UnknownCompletion
from strop.proxy.home import serving
from strop.proxy.ids import completion_id
from strop.proxy.settings.settings import Settings, absolute, find_home, load
from strop.proxy.settings.told import settings_of
from strop.proxy.store import layout

if TYPE_CHECKING:
    from strop.proxy.store.store import Store


def examples(*lines: str) -> str:
    """Return the end of a command's help: what it looks like when used."""
    # Click keeps the lines of a paragraph that begins with a backspace.
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


def home_option(command: Any) -> Any:
    """Add `--home`."""
    return click.option(
        "--home",
        metavar="DIR",
        callback=_home_given,
        help="Where strop keeps its things. [default: $STROP_HOME, else ~/.strop]",
    )(command)


def _home_given(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> Path | None:
    # Empty, as an unset variable is in a script, it is the default, as STROP_HOME is.
    return Path(value) if value else None


def json_option(command: Any) -> Any:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def containing_option(command: Any) -> Any:
    """Add `--containing`."""
    return click.option(
        "--containing",
        metavar="TEXT",
        callback=_text_given,
        help="That hold TEXT, in any case: in what was asked, thought, called or answered, or in"
        " the words of a rating. All are read, which may take a while.",
    )(command)


def _text_given(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    # As an unset variable is in a script, it would be in all.
    if value is not None and not value.strip():
        raise click.BadParameter("expected some text, got none")
    return value


def completion_argument(*, required: bool = True) -> Callable[[Any], Any]:
    """Return what adds COMPLETION: by its id, or by that of its answer in another dialect."""

    def named(
        _context: click.Context, _parameter: click.Parameter, value: str | None
    ) -> str | None:
        return None if value is None else completion_id(value)

    return click.argument("completion", required=required, callback=named)


def home_of(given: Path | None) -> Path:
    """Return the home: as given, or where it is by default; it need not exist.

    Raises:
        ConfigError: it is no folder, or nobody knows where it is.
    """
    home = find_home(os.environ) if given is None else absolute(given)
    if home.exists() and not home.is_dir():
        raise ConfigError(f"expected strop's home to be a folder, got the file {home}")
    return home


def in_force(home: Path) -> Settings:
    """Return the settings of the strop that serves from `home`, else those that a start would take.

    Raises:
        ConfigError: one of them is no such value.
    """
    serves = serving(home)
    if serves is not None and serves.found:
        return settings_of(serves.found)
    return load(home, environ=os.environ).settings


@contextlib.asynccontextmanager
async def open_store(home: Path) -> "AsyncIterator[Store]":
    """Lend the store of a home where strop has run.

    Raises:
        ConfigError: there is none, or an older strop serves it.
    """
    path = home / layout.DATABASE
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}, so nothing is recorded there; start strop with:"
            f" {to_copy('serve', home)}, or name its home with --home"
        )
    # Opening SQLite and zstd costs more than all of --help.
    from strop.proxy.store import upgrading
    from strop.proxy.store.store import Store

    async with upgrading.opening(home, functools.partial(click.echo, err=True)):
        store = await Store.open(path)
    try:
        yield store
    finally:
        await store.close()


def not_recorded(identity: str, home: Path) -> UnknownCompletion:
    """Return the error for an id that no answer in this home has."""
    return UnknownCompletion(
        f"no completion {identity!r} is recorded; see: {to_copy('completions list', home)}"
    )
