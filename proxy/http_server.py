"""The HTTP server: uvicorn, set up for strop, and where it listens.

Does not know what is served.
"""

import contextlib
import errno
import functools
import gc
import logging
import os
import signal
import socket
import sys
import types
from collections.abc import Callable
from typing import Final, TypeVar

import uvicorn

from strop.proxy.app import App
from strop.proxy.client_connection import ClientConnection
from strop.proxy.errors import ConfigError, StropError
from strop.proxy.parts import Front
from strop.proxy.settings.settings import Settings

log = logging.getLogger(__name__)

# New containers less freed ones between two collections; Python's own is 700.
_GC_THRESHOLD = 20_000
BACKLOG: Final = 2048
"""How many connections may wait to be accepted."""

KEEP_ALIVE_S: Final = 150
"""How long an idle connection from a client is kept: longer than clients and what speaks TLS before
strop keep theirs (Go's 90 s, Caddy's 120 s), or they write into one that is being closed."""

_PROBE_S: Final = 1.0

F = TypeVar("F", bound=Front)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; who connects waits until it is served from.

    Raises:
        ConfigError: the address is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = (host.strip("[]"), port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        # There a port that one has on every address can be another's on one of them.
        if sys.platform == "darwin" and _is_answered(family, address):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        listener.bind(address)
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


def _is_answered(family: socket.AddressFamily, address: tuple[str, int]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        return probe.connect_ex(address) == 0


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
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.server.drain_s),
    )


class Server(uvicorn.Server):
    """A uvicorn server that tells the relay at once when it is to stop."""

    @property
    def exit_status(self) -> int:
        """What the process ends with, once this has ended: 0 where it started, and all in order."""
        app = self.config.app
        assert isinstance(app, App)
        if isinstance(app.failure, StropError):
            return app.failure.exit_status
        return 0 if self.started and app.failure is None else 1

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


class Alone(Server):
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


def collect_rarely() -> None:
    """Let garbage gather: what is there by now stays, and what a request makes leaves few cycles.

    The rest of it goes by its reference counts; to look for those cycles every few requests costs
    more than they take.
    """
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
