"""Serving: puts the parts together, runs the server, and says what a person needs to know.

The one place that chooses a driver. Does not parse command lines.
"""

import asyncio
import contextlib
import functools
import gc
import importlib.util
import json
import logging
import signal
import socket
import types
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn

from strop import configs
from strop.proxy import auth, detection, drivers, routes
from strop.proxy.app import App, Services, adapters_folder, run_services
from strop.proxy.client_connection import ClientConnection
from strop.proxy.engines.base import AdaptersFolder, Engine
from strop.proxy.engines.embedded import EngineProcess
from strop.proxy.engines.openai import OpenAI
from strop.proxy.engines.replicas import Replicas
from strop.proxy.engines.vllm import Vllm
from strop.proxy.errors import ConfigError
from strop.proxy.home import hold
from strop.proxy.settings import Settings
from strop.proxy.upstream import Upstream

log = logging.getLogger(__name__)

EMBEDDED_ADAPTERS = 4
"""How many versions the embedded engine keeps loaded; each takes as much memory as its file."""

# New containers less freed ones between two collections; Python's own is 700.
_GC_THRESHOLD = 20_000

_REPLICABLE = ("vllm", "openai")


def serve(settings: Settings, home: Path) -> int:
    """Serve until stopped by SIGINT or SIGTERM; return the exit status.

    Raises:
        ConfigError: the settings don't allow it.
    """
    auth.check_bind(settings.server.host, settings.server.client_keys)
    choice = asyncio.run(detection.detect(settings))
    for line in choice.says:
        print(line, flush=True)
    settings = choice.settings
    _check_engine(settings)
    listener = _listen(settings.server.host, settings.server.port)
    url = _url(settings.server.host, listener.getsockname()[1])
    with listener, hold(home, url):
        app = App(_services(settings, home, url), routes.make)
        server = _Server(uvicorn_config(settings, app))
        server.run(sockets=[listener])
    return 0 if server.started else 1


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_config(settings: Settings, app: App) -> uvicorn.Config:
    """Return the server's configuration; the application keeps its own log."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=functools.partial(ClientConnection, limits=settings.server),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=2048,
        timeout_keep_alive=round(settings.server.keep_alive_s),
        timeout_graceful_shutdown=round(settings.server.drain_s),
    )


@contextlib.asynccontextmanager
async def _services(settings: Settings, home: Path, url: str) -> AsyncIterator[Services]:
    engine, process = make_engine(settings, home)
    async with run_services(settings, home, engine, process) as services:
        # What is there by now stays. What a request makes goes by its reference counts, but for a
        # few cycles: these may gather, rather than be looked for every few requests.
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        banner = asyncio.create_task(_say_when_ready(services, url))
        try:
            yield services
        finally:
            banner.cancel()


def make_engine(settings: Settings, home: Path) -> tuple[Engine, EngineProcess | None]:
    """Return the driver that the settings name, and the embedded engine's process, if any."""
    engine = settings.engine
    adapters = AdaptersFolder(adapters_folder(home), engine.adapters_dir)
    if _kind(settings) == "embedded":
        model = str(Path(settings.model.path).expanduser()) if settings.model.path else ""
        name = settings.model.name or Path(model).name or "strop-demo"
        # What is no folder is a hub id, and naming one asks for it to be fetched.
        options = ["--online"] if model and not Path(model).is_dir() else []
        process = EngineProcess(
            model or str(configs.demo_model()),
            name=name,
            log_path=home / "engine.log",
            options=options,
        )
        upstream = Upstream(process.url, connect_timeout_s=engine.connect_timeout_s)
        driver = Vllm(
            upstream,
            label="embedded",
            adapters=adapters,
            num_adapters=EMBEDDED_ADAPTERS,
            scores=True,
        )
        return driver, process
    servers = [_driver(settings, home, url, adapters) for url in (engine.url, *engine.replicas)]
    return (Replicas(servers) if engine.replicas else servers[0]), None


def _driver(settings: Settings, home: Path, url: str, adapters: AdaptersFolder) -> Engine:
    """Return the driver of one server that runs already."""
    engine = settings.engine
    # OPENAI_BASE_URL habitually ends in /v1; the paths sent here begin with it.
    url = url.rstrip("/").removesuffix("/v1")
    upstream = Upstream(url, connect_timeout_s=engine.connect_timeout_s)
    if engine.kind == "vllm":
        return Vllm(upstream, key=engine.key, adapters=adapters)
    if (found := drivers.make(settings, home, upstream)) is not None:
        return found
    forwards_key = not settings.server.client_keys
    return OpenAI(upstream, key=engine.key, forwards_key=forwards_key)


def _kind(settings: Settings) -> str:
    return settings.engine.kind or "embedded"


def _check_engine(settings: Settings) -> None:
    kind, engine = _kind(settings), settings.engine
    if kind == "embedded":
        if engine.url:
            raise ConfigError(
                f"engine.url = {auth.scrub_url(engine.url)!r} needs engine.kind: no engine that"
                " strop knows answers there now, so it can't tell which it is"
            )
        model = settings.model.path
        if model.startswith(("/", ".", "~")) and not Path(model).expanduser().is_dir():
            raise ConfigError(
                f"model.path: expected a folder with a model in Hugging Face format, or a hub id;"
                f" there is no folder {model}"
            )
        if importlib.util.find_spec("mlx_lm") is None:
            raise ConfigError(
                "the embedded engine needs mlx-lm, which is not installed; install strop[mlx], or"
                " name an engine that runs: strop serve --engine vllm --engine-url http://127.0.0.1:8000"
            )
    elif not engine.url:
        raise ConfigError(
            f'engine.kind = "{kind}" needs engine.url, for instance http://127.0.0.1:8000'
        )
    if engine.replicas and kind not in _REPLICABLE:
        raise ConfigError(
            f"engine.replicas: expected engine.kind {' or '.join(_REPLICABLE)}, got {kind}; other"
            " engines serve alone"
        )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {host}:{port}: {error.strerror}; is strop running already? Stop it,"
            " or choose another port with --port"
        ) from error
    listener.set_inheritable(False)
    return listener


class _Server(uvicorn.Server):
    """A uvicorn server that tells the relay at once when it is to stop."""

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
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


async def _say_when_ready(services: Services, url: str) -> None:
    await services.serving.wait_until_ready()
    alias, engine = services.serving.alias, services.serving.engine
    is_demo = services.process is not None and not services.settings.model.path
    print(
        banner(
            url=url,
            model=alias.name,
            version=alias.active.version,
            engine=f"{engine.label} at {auth.scrub_url(engine.upstream.url)}",
            home=services.home,
            is_demo=is_demo,
            needs_key=bool(services.settings.server.client_keys),
        ),
        flush=True,
    )


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
    key = "$STROP_KEY" if needs_key else "strop"
    headers = "-H 'Content-Type: application/json'"
    if needs_key:
        headers += ' -H "Authorization: Bearer $STROP_KEY"'
    lines = [
        "",
        f"strop serves {model} ({version}), by {engine}",
        "",
        "  Point an agent at it" + (" (STROP_KEY: one of server.client_keys):" * needs_key or ":"),
        f"    export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}",
        "  Try it:",
        f"    curl {url}/v1/chat/completions {headers} -d '{body}'",
        "  Rate an answer: type /rl good or /rl bad [why] as your next message, or run",
        "    strop good    strop bad -m 'too long'",
        f"  What is recorded stays in {home}; see it with",
        "    strop completions list    strop status",
    ]
    if is_demo:
        lines += [
            "",
            "  This is the small demo model that strop ships: it knows 94 facts and little else.",
            "  A real one:  strop serve --model mlx-community/Qwen3-4B-4bit",
            "  or yours:    strop serve --engine vllm --engine-url http://127.0.0.1:8000",
        ]
    return "\n".join([*lines, ""])
