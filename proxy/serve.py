"""Serving: puts the parts together, runs the server, and says what a person needs to know.

Does not parse command lines, or know engines.
"""

import asyncio
import contextlib
import errno
import functools
import gc
import json
import logging
import os
import signal
import socket
import sys
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, TypeVar

import uvicorn

from strop.proxy import auth, configured_engine, detection, open_files, routes
from strop.proxy.app import App
from strop.proxy.client_connection import ClientConnection
from strop.proxy.errors import ConfigError
from strop.proxy.home import Serves, hold
from strop.proxy.services import Control, Front, Services, run_services
from strop.proxy.settings import Settings, home_hint
from strop.proxy.told_settings import tell

log = logging.getLogger(__name__)

# New containers less freed ones between two collections; Python's own is 700.
_GC_THRESHOLD = 20_000
BACKLOG: Final = 2048
"""How many connections may wait to be accepted."""

F = TypeVar("F", bound=Front)


def serve(settings: Settings, home: Path) -> int:
    """Serve until stopped by SIGINT or SIGTERM; return the exit status.

    Raises:
        ConfigError: the settings don't allow it.
    """
    open_files.hold_standard()
    auth.check_bind(settings.server.host, settings.server.client_keys)
    choice = asyncio.run(detection.detect(settings))
    _tell("\n".join(choice.says))
    asked, settings = tell(settings), choice.settings
    configured_engine.check(settings)
    open_files.raise_limit()
    listener = listen(settings.server.host, settings.server.port)
    url = url_of(settings.server.host, listener.getsockname()[1])
    with listener, hold(home, Serves(url, asked, tell(settings))):
        if settings.server.workers > 1:
            # One process needs nothing of it.
            from strop.proxy.workers.supervisor import run

            status = run(settings, home, listener, lambda it: say_when_ready(it, url))
        else:
            app = App(_services(settings, home, url), routes.make)
            server = _Alone(uvicorn_config(settings, app))
            # Where start-up fails uvicorn says why, and leaves with a status of its own.
            with contextlib.suppress(SystemExit):
                server.run(sockets=[listener])
            status = 0 if server.started else 1
    if status == 0:
        log.info("stopped")
    return status


def url_of(host: str, port: int) -> str:
    """Return where strop is reached that listens on `host`; IPv6 with or without its brackets.

    Listening on every address, it is reached at this machine's own.
    """
    host = host.strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  it binds to none
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_config(
    settings: Settings, app: App[F], connection: Callable[..., ClientConnection] = ClientConnection
) -> uvicorn.Config:
    """Return the server's configuration; the application keeps its own log.

    Args:
        settings: all of them.
        app: what to serve.
        connection: makes a client's connection; takes what `ClientConnection` does.
    """
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=functools.partial(connection, limits=settings.server),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=round(settings.server.keep_alive_s),
        timeout_graceful_shutdown=round(settings.server.drain_s),
    )


@contextlib.asynccontextmanager
async def _services(settings: Settings, home: Path, url: str) -> AsyncIterator[Services]:
    engine, process = configured_engine.make(settings, home)
    async with run_services(settings, home, engine, process) as services:
        collect_rarely()
        banner = asyncio.create_task(say_when_ready(services, url))
        try:
            yield services
        finally:
            banner.cancel()


def collect_rarely() -> None:
    """Let garbage gather: what is there by now stays, and what a request makes leaves few cycles.

    The rest of it goes by its reference counts; to look for those cycles every few requests costs
    more than they take.
    """
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; who connects waits until it is served from.

    Raises:
        ConfigError: the address is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        # Now: Linux lets two be bound to one port as long as neither listens.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        advice = "choose another address of this machine's with --host, or another port with --port"
        if error.errno == errno.EADDRINUSE:
            advice = "is strop running already? Stop it, or choose another port with --port"
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror}; {advice}") from error
    listener.set_inheritable(False)
    return listener


class Server(uvicorn.Server):
    """A uvicorn server that tells the relay at once when it is to stop."""

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        """Stop; at the second Ctrl-C, at once."""
        app = self.config.app
        assert isinstance(app, App)
        with contextlib.suppress(RuntimeError):
            app.services.relay.is_draining = True
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Handle the signals, and end without raising them again: stopping is success."""
        # SIGHUP: the terminal was closed. Under nohup it is ignored, and stays so.
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(sig) != signal.SIG_IGN:
                signal.signal(sig, self.handle_exit)
        yield


def say_stopping(asked_by: signal.Signals, num_running: int) -> None:
    """Log that strop stops: why, and how many answers it lets end before."""
    log.info("stopping", extra={"signal": asked_by.name, "answers_running": num_running})


class _Alone(Server):
    """The server where one process does all."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._asked_by: signal.Signals | None = None

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        """Stop; at the second Ctrl-C, at once."""
        self._asked_by = self._asked_by or signal.Signals(sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and let those that run end."""
        # Not where the signal is handled: that may be in the middle of another line.
        if self._asked_by is not None:
            app = self.config.app
            assert isinstance(app, App)
            say_stopping(self._asked_by, app.services.relay.num_calls)
        await super().shutdown(sockets)


async def say_when_ready(services: Control, url: str) -> None:
    """Say how to use strop, once the engine is ready; and until then, that it isn't."""
    serving, engine = services.serving, services.serving.engine
    if services.process is None:
        await serving.wait_until_asked()
        if not serving.is_ready:
            extra = {"url": auth.scrub_url(engine.upstream.url), "reason": serving.reason}
            log.warning("waiting for the engine", extra=extra)
    else:
        log_file = services.home / configured_engine.LOG_FILE
        log.info("waiting for the engine to load its model", extra={"log": str(log_file)})
    await serving.wait_until_ready()
    alias = serving.alias
    is_demo = services.process is not None and not services.settings.model.path
    _tell(
        banner(
            url=url,
            model=alias.name,
            version=alias.active.version,
            engine=f"{engine.label} at {auth.scrub_url(engine.upstream.url)}",
            home=services.home,
            is_demo=is_demo,
            needs_key=bool(services.settings.server.client_keys),
        )
    )


def _tell(text: str) -> None:
    """Print `text`; who reads it may be gone, and strop serves all the same."""
    try:
        if text:
            print(text, flush=True)
    except ValueError as error:
        # It is closed, or can't write a letter of the home's name.
        log.warning("standard output does not take this", extra={"reason": str(error)})
    except OSError as error:
        log.warning("standard output takes nothing", extra={"reason": str(error)})
        # What it did not take is tried again at exit, and would be an error then.
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def banner(
    *,
    url: str,
    model: str,
    version: str,
    engine: str,
    home: Path,
    is_demo: bool,
    needs_key: bool,
) -> str:
    """Return what a person is told at the start."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    headers = "-H 'Content-Type: application/json'"
    if needs_key:
        headers += ' -H "Authorization: Bearer $OPENAI_API_KEY"'
    key = "KEY" if needs_key else "strop"
    at = home_hint(home)
    lines = [
        "",
        f"strop serves {model} ({version}), by {engine}",
        "",
        "  Point an agent at it" + (" (KEY: one of server.client_keys):" * needs_key or ":"),
        f"    export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}",
        f"    export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY={key}    # Claude Code",
        "  Try it:",
        f"    curl {url}/v1/chat/completions {headers} -d '{body}'",
        "  Rate an answer: type /rl good or /rl bad [why] as your next message, or run",
        f"    strop good{at}    strop bad{at} -m 'too long'",
        f"  What is recorded stays in {home}; see it with",
        f"    strop completions list{at}    strop status{at}",
    ]
    if is_demo:
        lines += [
            "",
            "  This is the small demo model that strop ships: it knows 94 facts and little else.",
            "  A real one:  strop serve --model mlx-community/Qwen3-4B-4bit",
            "  or yours:    strop serve --engine vllm --engine-url http://127.0.0.1:8000",
        ]
    return "\n".join([*lines, ""])
