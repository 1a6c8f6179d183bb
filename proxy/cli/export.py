"""`strop export`: rated answers as JSON Lines, from the home's own store.

Works whether or not strop runs. Makes no line itself; the store does.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final, get_args

import click

from strop.adapters import durable
from strop.proxy.cli import sessions, terminal
from strop.proxy.cli.options import examples, home_of, home_option, open_store
from strop.proxy.errors import ConfigError
from strop.proxy.store.records import Dialect, ExportFormat, FeedbackFilter

# Local, as what is typed; in any zone both are days that the system's clock knows.
_FIRST_DAY: Final = datetime(1970, 1, 2)  # noqa: DTZ001
_LAST_DAY: Final = datetime(9999, 12, 30)  # noqa: DTZ001


@click.command(
    epilog=examples(
        "strop export --format kto --out ratings.jsonl",
        "strop export --format raw --rater ann --since 2026-11-21",
    )
)
@home_option
@click.option(
    "--format",
    "format_",
    type=click.Choice(get_args(ExportFormat)),
    required=True,
    help="What each line holds.",
)
@click.option(
    "--dialect", type=click.Choice(get_args(Dialect)), default="chat", show_default=True,
    help="A file of kto, dpo or sft holds one.",
)  # fmt: skip
@click.option("--session", help="Of one conversation; where keys share its name, with --key.")
@sessions.key_option
@click.option("--rater", help="Who rated.")
@click.option(
    "--since",
    type=click.DateTime(("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S")),
    metavar="DATE",
    help="Rated then or later, by the local clock, as in 2026-11-21. Not all that is new since: a"
    " rating that is revised, or joins its answer late, keeps the time at which it came.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write. [default: standard output]",
)
def export(home: Path | None, **asked: Any) -> None:
    """Write rated answers as JSON Lines.

    All that is stored (raw), also of the steps that a rating credits (turns), or as TRL's trainers
    take it (kto, dpo, sft).
    """
    asyncio.run(_export(home_of(home), **asked))


async def _export(
    home: Path,
    *,
    format_: ExportFormat,
    dialect: Dialect,
    session: str | None,
    key: str | None,
    rater: str | None,
    since: datetime | None,
    out: Path | None,
) -> None:
    since_ms = None
    if since is not None:
        since_ms = int(1000 * min(max(since, _FIRST_DAY), _LAST_DAY).timestamp())
    num_lines = 0
    async with open_store(home) as store:
        if session and not key:
            key = await sessions.key_of(store, session)
        wanted = FeedbackFilter(key_id=key, session=session, rater=rater, since_ms=since_ms)
        with _opened(out) as file:
            is_watched = out is None and sys.stdout.isatty()
            async for line in store.export(format_, wanted, dialect=dialect):
                file.write(terminal.safe_json(line.decode()).encode() if is_watched else line)
                num_lines += 1
            file.flush()
    if out is not None:
        click.echo(f"Wrote {num_lines} line{'' if num_lines == 1 else 's'} to {out}.", err=True)
    elif num_lines == 0:
        click.echo("Nothing that is rated makes such a line.", err=True)


@contextlib.contextmanager
def _opened(out: Path | None) -> Iterator[IO[bytes]]:
    """Lend where to write: standard output, or a file for its owner's eyes, as the store is.

    A file takes the place of the one before once it is whole.
    """
    if out is None:
        yield sys.stdout.buffer
        return
    try:
        with contextlib.ExitStack() as stack:
            # Else what is written first would be left there.
            former = signal.signal(signal.SIGTERM, _end)
            stack.callback(signal.signal, signal.SIGTERM, former)
            try:
                first = _first(out, stack)
                file = stack.enter_context(open(first, "wb", opener=_for_its_owner))
            except OSError as error:
                raise ConfigError(f"expected to write to {out}: {error.strerror}") from error
            yield file
            file.close()
            if first != out:
                _replace(out, first)
    except OSError as error:
        # The system doesn't say which file it can't write to.
        error.filename = str(out)
        raise


def _first(out: Path, stack: contextlib.ExitStack) -> Path:
    """Return where to write first: to `out` itself, where no other file should take its place.

    Such are pipes, devices and links, files of others, and those with a second name.
    """
    if os.path.lexists(out):
        found = out.lstat()
        is_own = (found.st_uid, found.st_nlink) == (os.geteuid(), 1)
        if not stat.S_ISREG(found.st_mode) or not is_own or not os.access(out, os.W_OK):
            return out
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".strop-", dir=out.parent)
    except PermissionError:
        return out
    return Path(stack.enter_context(scratch)) / "export"


def _replace(out: Path, new: Path) -> None:
    try:
        durable.publish(new, out)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # It was mounted there by itself, as into a container.
        shutil.copyfile(new, out)


def _end(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


COMMANDS: Final = (export,)
