"""The engine that the settings name: checked, and made.

The one place that chooses a driver. Starts no process, and asks nothing of a server.
"""

import importlib.util
from pathlib import Path
from typing import Final

from strop import configs
from strop.proxy import auth, drivers
from strop.proxy.engines.base import AdaptersFolder, Engine
from strop.proxy.engines.embedded import EngineProcess
from strop.proxy.engines.openai import OpenAI
from strop.proxy.engines.replicas import Replicas
from strop.proxy.engines.vllm import Vllm
from strop.proxy.errors import ConfigError
from strop.proxy.services import adapters_folder
from strop.proxy.settings import Settings
from strop.proxy.upstream import Upstream

LOG_FILE: Final = "engine.log"
"""What the embedded engine writes, in the home."""

EMBEDDED_ADAPTERS = 4
"""How many versions the embedded engine keeps loaded; each takes as much memory as its file."""

# Where each listens unless it is told otherwise.
_PORTS: Final = {"ollama": 11434, "mlx_server": 8080, "llama_server": 8080}

_REPLICABLE = ("vllm", "openai")
# No request has to be held while these change their version, so several processes can serve them.
_SHARED = ("embedded", "vllm", "openai")


def make(settings: Settings, home: Path) -> tuple[Engine, EngineProcess | None]:
    """Return the driver that the settings name, and the embedded engine's process, if any."""
    engine = settings.engine
    if _kind(settings) == "embedded":
        model = str(Path(settings.model.path).expanduser()) if settings.model.path else ""
        # What is no folder is a hub id, and naming one asks for it to be fetched.
        options = ["--online"] if model and not Path(model).is_dir() else []
        process = EngineProcess(
            model or str(configs.demo_model()),
            name=settings.model.name or name_of(model),
            log_path=home / LOG_FILE,
            options=options,
        )
        return at(process.url, settings, home), process
    return at(engine.url, settings, home), None


def name_of(model: str) -> str:
    """Return what the embedded engine calls a model that nobody has named: a folder, or a hub id.

    Without one it is the demo's.
    """
    if not model:
        return "strop-demo"
    path = Path(model)
    # `.` has no name, and that of `..` says nothing.
    return path.name if path.name not in ("", "..") else path.resolve().name


def at(url: str, settings: Settings, home: Path) -> Engine:
    """Return the driver that the settings name, for an engine at `url` and its replicas."""
    engine = settings.engine
    adapters = AdaptersFolder(adapters_folder(home), engine.adapters_dir)
    if _kind(settings) == "embedded":
        upstream = Upstream(
            url,
            connect_timeout_s=engine.connect_timeout_s,
            advice=f"strop starts it by itself; its log is {LOG_FILE} in strop's home",
        )
        return Vllm(
            upstream,
            label="embedded",
            adapters=adapters,
            num_adapters=EMBEDDED_ADAPTERS,
            scores=True,
        )
    servers = [_driver(settings, home, one, adapters) for one in (url, *engine.replicas)]
    return Replicas(servers) if engine.replicas else servers[0]


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


def check(settings: Settings) -> None:
    """Refuse settings that no engine can be made of.

    Raises:
        ConfigError: they contradict each other, or lack what the engine needs.
    """
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
            f'engine.kind = "{kind}" needs engine.url, as in --engine-url http://127.0.0.1:'
            f"{_PORTS.get(kind, 8000)}; `strop engines` says what runs here"
        )
    if engine.replicas and kind not in _REPLICABLE:
        raise ConfigError(
            f"engine.replicas: expected engine.kind {' or '.join(_REPLICABLE)}, got {kind}; other"
            " engines serve alone"
        )
    if settings.server.workers > 1 and kind not in _SHARED:
        kinds = f"{', '.join(_SHARED[:-1])} or {_SHARED[-1]}"
        raise ConfigError(
            f"server.workers = {settings.server.workers} needs engine.kind {kinds}, got {kind}; one"
            " process serves it: leave it at 1"
        )
