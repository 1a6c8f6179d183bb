"""The command line: starts strop and the embedded engine, and says how they are and are set.

Parses and prints; what it calls does the work. Imports nothing heavy before a command needs it.
"""

import errno
import importlib.util
import io
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from strop.configs import installation
from strop.proxy import auth
from strop.proxy.cli import (
    adapters,
    compact,
    engines,
    export,
    handover,
    ratings,
    records,
    runs,
    status,
    terminal,
    training,
)
from strop.proxy.cli.interruptible import INTERRUPTED
from strop.proxy.cli.options import (
    examples,
    home_of,
    home_option,
    json_option,
)
from strop.proxy.errors import ConfigError, StropError
from strop.proxy.home import serving
from strop.proxy.settings import settings, told
from strop.proxy.settings.service_variables import is_of_a_service

log = logging.getLogger(__name__)


class _Commands(click.Group):
    """The commands; strop's own errors, and the system's, end them with one line."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for."""
        # What parts of strop log is for those who serve; a command says itself what failed.
        logging.getLogger("strop").addHandler(logging.NullHandler())
        for stream in (sys.stdout, sys.stderr):
            # Where a terminal's encoding lacks a character, the rest of the line is still of use.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(context)
        except StropError as error:
            # It may quote what a client said, such as the name of a rater.
            click.ClickException(terminal.safe(error.message)).show()
            context.exit(error.exit_status)
        except KeyboardInterrupt:
            context.exit(INTERRUPTED)
        except OSError as error:
            # Who reads no further, as `head`, has what they wanted: click ends without a word.
            if error.errno == errno.EPIPE:
                raise
            where = "" if error.filename is None else f"{error.filename}: "
            raise click.ClickException(f"{where}{error.strerror or error}") from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("strop serve", "strop good -m 'short and right'"),
)
@click.version_option(package_name="strop", message="strop %(version)s")
def main() -> None:
    """A local OpenAI-compatible proxy that records answers and learns from their ratings."""


_host_option = click.option(
    "--host", metavar="HOST", help="The address to listen on. [default: 127.0.0.1]"
)
_port_option = click.option(
    "--port", type=int, metavar="N", help="The port to listen on. [default: 8484]"
)
_workers_option = click.option(
    "--workers", type=int, metavar="N", help="How many processes answer requests. [default: 1]"
)


def _settings_options(command: Any) -> Any:
    for option in (
        click.option(
            "--set",
            "pairs",
            metavar="KEY=VALUE",
            multiple=True,
            help="Any other setting, as in capture.mode=required. May be given often.",
        ),
        click.option(
            "--model-name",
            metavar="NAME",
            help="The name that clients use. [default: the engine's own]",
        ),
        click.option(
            "--model",
            metavar="MODEL",
            help="What to serve. Embedded: a folder or a hub id. [default: the demo model] Another"
            " engine: the one of its models that it is. [default: its first]",
        ),
        click.option(
            "--engine-key",
            metavar="KEY",
            help="The engine's API key. Other users of this machine can see it here, but not in"
            " STROP_ENGINE_KEY.",
        ),
        click.option("--engine-url", metavar="URL", help="Where the engine listens."),
        click.option(
            "--engine",
            type=click.Choice([kind for kind in settings.KINDS["engine.kind"].choices if kind]),
            help="Which kind of engine serves. [default: one that runs here, else embedded]",
        ),
        _workers_option,
        _port_option,
        _host_option,
        home_option,
    ):
        command = option(command)
    return command


def _load(home: Path, flags: Mapping[str, Any]) -> settings.Resolved:
    """Return the settings in force; `flags` are the options of `_settings_options`."""
    named: dict[str, object] = {
        "server.host": flags["host"],
        "server.port": flags["port"],
        "server.workers": flags["workers"],
        "engine.kind": flags["engine"],
        "engine.url": flags["engine_url"],
        "engine.key": flags["engine_key"],
    }
    if flags["engine"] == "embedded" and flags["engine_url"] is None:
        # Those of the engine in the settings, for which strop's own serves this time.
        named |= {"engine.url": "", "engine.replicas": [], "engine.model": ""}
    for pair in flags["pairs"]:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals:
            raise click.UsageError(f"expected --set KEY=VALUE, got {pair!r}")
        named[key] = text
        if key in settings.KINDS:
            try:
                named[key] = settings.KINDS[key].parse(text)
            except ValueError:
                # Loading refuses the text as it is, and says what it should be.
                continue
    engine = settings.load(home, flags=named, environ=os.environ).settings.engine
    # What answers at a URL is another engine, be it not known yet which.
    is_own = engine.kind in ("", "embedded") and not engine.url
    of_model = "model.path" if is_own else "engine.model"
    chosen = {of_model: flags["model"], "model.name": flags["model_name"]}
    # What wasn't given must not hide what --set says.
    named |= {key: value for key, value in chosen.items() if value is not None}
    return settings.load(home, flags=named, environ=os.environ)


@main.command(
    epilog=examples(
        "strop serve",
        "strop serve --model mlx-community/Qwen3-4B-4bit",
        "strop serve --engine vllm --engine-url http://127.0.0.1:8000 --set model.base=./Qwen3-4B",
        "strop serve --engine ollama --engine-url http://127.0.0.1:11434 --model qwen3:8b",
    )
)
@_settings_options
@click.pass_context
def serve(context: click.Context, /, home: Path | None, **flags: Any) -> None:
    """Start the proxy.

    Without an engine named here or in the settings, it serves the one that runs on this machine,
    or else starts its own (see `strop engines`). With --model alone it starts its own.
    """
    folder = home_of(home)
    resolved = _load(folder, flags)
    settings.make_home(folder)
    from strop.proxy import logs

    keys = auth.secrets_of(resolved.settings.server.client_keys, resolved.settings.engine.key)
    logs.set_up(resolved.settings.log, (*keys, auth.load_or_create_admin_key(folder)))
    of_services = sorted(name for name, text in os.environ.items() if is_of_a_service(name, text))
    if of_services:
        names = ", ".join(of_services)
        log.info("variables that say where a service is set nothing", extra={"variables": names})
    from strop.proxy import serve as server

    context.exit(server.serve(resolved.settings, folder))


_COUNT = click.IntRange(1)


@main.command(epilog=examples("strop engine --model ./Qwen3-4B-4bit --name qwen3 --port 8000"))
@click.option("--model", required=True, metavar="PATH_OR_ID", help="A folder, or a hub id.")
@click.option(
    "--name", "served_name", default="", help="What requests call it. [default: as --model]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    show_default=True,
    metavar="N",
    help="The port; 0 picks one.",
)
@click.option("--parent-fd", type=int, metavar="FD", help="A pipe whose end stops the engine.")
@click.option(
    "--listen-fd", type=int, metavar="FD", hidden=True, help="A socket to listen on, bound already."
)
@click.option("--online", is_flag=True, help="Let a hub id be downloaded.")
@click.option("--max-model-len", type=_COUNT, metavar="TOKENS", help="The context limit.")
@click.option("--max-rows", type=_COUNT, metavar="N", help="Answers generated at once.")
@click.option("--max-queued", type=click.IntRange(0), metavar="N", help="Requests that may wait.")
@click.option("--max-lora-rank", type=_COUNT, metavar="N", help="The largest adapter rank.")
@click.option("--prefill-chunk", type=_COUNT, metavar="TOKENS", help="Prompt tokens per step.")
@click.option("--kv-cache-bytes", type=_COUNT, metavar="BYTES", help="Memory for KV caches.")
@click.option(
    "--prefix-cache-bytes", type=click.IntRange(0), metavar="BYTES", help="Of it, for old prompts."
)
@click.option(
    "--grace-s", type=click.FloatRange(0), metavar="SECONDS", help="Time to finish after SIGTERM."
)
@click.option("--base-identity", metavar="HASH", help="The base that adapters must be of.")
def engine(**given: Any) -> None:
    """Run the embedded engine alone.

    There is no need to: `strop serve` starts it by itself. Where STROP_ENGINE_KEY is set, it asks
    for that key; otherwise for none, and who reaches it can load weights.
    """
    from strop.proxy import logs
    from strop.proxy.embedded.options import Options
    from strop.proxy.engines.embedded import KEY_VARIABLE

    logs.set_up(settings.Log())
    key = os.environ.get(KEY_VARIABLE, "").strip()
    set_here = {name: value for name, value in given.items() if value is not None}
    options = Options(**set_here, key=key)
    if options.model.startswith(("/", ".", "~")) and not Path(options.model).is_dir():
        raise ConfigError(
            "--model: expected a folder with a model in Hugging Face format, or a hub id; there is"
            f" no folder {options.model}"
        )
    if importlib.util.find_spec("mlx_lm") is None:
        raise ConfigError(
            "the embedded engine needs mlx-lm, which is not installed:"
            f" {installation.install('strop[mlx]')}"
        )
    from strop.proxy.embedded import server

    server.run(options)


@main.command(epilog=examples("strop config --engine openai --engine-url http://127.0.0.1:8000"))
@_settings_options
@json_option
def config(home: Path | None, as_json: bool, **flags: Any) -> None:
    """Show what a start would use, and where it comes from.

    Where strop serves with others, it says which: those count until it is restarted. Exits with 2
    where a start would refuse them, as far as they say so by themselves.
    """
    folder = home_of(home)
    resolved = _load(folder, flags)
    described = resolved.describe()
    serves = serving(folder)
    asked = {} if serves is None else serves.asked
    others = told.differences(asked, resolved.settings)
    if as_json:
        keys = [{"key": key, "value": value, "origin": origin} for key, value, origin in described]
        running = None if serves is None else {"url": serves.url, "differs": others}
        found = {"home": str(folder), "settings": keys, "running": running}
        click.echo(json.dumps(found))
    else:
        click.echo(terminal.table(described, ("KEY", "VALUE", "FROM")))
        if serves is not None and others:
            click.echo(f"\nstrop at {serves.url} was started with others, until it is restarted:")
            click.echo(terminal.table([(one, told.words(asked, one)) for one in others]))
    _check(resolved.settings)


def _check(found: settings.Settings) -> None:
    """Refuse what `serve` refuses without having looked at anything but the settings."""
    auth.check_bind(found.server.host, found.server.client_keys)
    # Where neither it nor a model is named, a start looks for one that runs.
    kind = found.engine.kind or ("embedded" if found.model.path and not found.engine.url else "")
    if kind:
        # The drivers of all engines cost more than the rest of this command.
        from strop.proxy import configured_engine

        configured_engine.check_kind(found, kind)


for command in (
    *status.COMMANDS,
    *records.COMMANDS,
    *compact.COMMANDS,
    *export.COMMANDS,
    *ratings.COMMANDS,
    *adapters.COMMANDS,
    *engines.COMMANDS,
    *training.COMMANDS,
    *runs.COMMANDS,
    *handover.COMMANDS,
):
    main.add_command(command)
