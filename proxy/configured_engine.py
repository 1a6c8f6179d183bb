"""The engine that the settings name: checked, and made.

The one place that chooses a driver. Starts no process, and asks nothing of a server.
"""

import contextlib
import importlib.util
import re
import secrets
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Final

from strop import configs
from strop.adapters import gguf
from strop.adapters.base_model import InvalidBase, number, read_config, text_config
from strop.configs import installation
from strop.proxy import auth
from strop.proxy.engines.base import AdaptersFolder, Engine
from strop.proxy.engines.calls import Calls, credentials
from strop.proxy.engines.embedded import EngineProcess
from strop.proxy.engines.llama_server import LlamaServer
from strop.proxy.engines.mlx_server import MlxServer
from strop.proxy.engines.mlx_server_adapters import MlxServerAdapters
from strop.proxy.engines.ollama import Ollama
from strop.proxy.engines.ollama_adapters import OllamaAdapters
from strop.proxy.engines.openai import OpenAI
from strop.proxy.engines.replicas import Replicas
from strop.proxy.engines.vllm import Vllm
from strop.proxy.engines.wanted import Wanted
from strop.proxy.errors import ConfigError
from strop.proxy.settings.settings import Settings
from strop.proxy.store import layout
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.versions.pairing import base_folder

EMBEDDED_ADAPTERS = 4
"""How many versions the embedded engine keeps loaded; each takes as much memory as its file."""

# Where each listens unless it is told otherwise.
_PORTS: Final = {"ollama": 11434, "mlx_server": 8080, "llama_server": 8080}

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

_CONVERTED = ("mlx_server", "ollama")
_REPLICABLE = ("vllm", "openai")
# No request has to be held while these change their version, so several processes can serve them.
_SHARED = ("embedded", "vllm", "openai")


def with_own_key(settings: Settings) -> Settings:
    """Return the settings with a new key for strop's own engine, where that is the one.

    Without, whoever else is on the machine could ask it, and load weights of their own.
    """
    if _kind(settings) != "embedded":
        return settings
    return replace(settings, engine=replace(settings.engine, key=secrets.token_urlsafe()))


def make(settings: Settings, home: Path) -> tuple[Engine, EngineProcess | None]:
    """Return the driver that the settings name, and the embedded engine's process, if any."""
    engine = settings.engine
    if _kind(settings) == "embedded":
        model = str(Path(settings.model.path).expanduser()) if settings.model.path else ""
        # Naming one asks for it to be fetched.
        options = ["--online"] if is_hub_id(model) else []
        process = EngineProcess(
            model or str(configs.demo_model()),
            name=settings.model.name or name_of(model),
            log_path=home / layout.ENGINE_LOG,
            options=options,
            key=engine.key,
        )
        return at(process.url, settings, home), process
    return at(engine.url, settings, home), None


def is_hub_id(model: str) -> bool:
    """Whether strop's own engine takes `model` for a hub id: it is no folder."""
    return bool(model) and not Path(model).expanduser().is_dir()


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
    adapters = AdaptersFolder(home / layout.ADAPTERS, engine.adapters_dir)
    if _kind(settings) == "embedded":
        upstream = Upstream(
            url, advice=f"strop starts it by itself; its log is {layout.ENGINE_LOG} in strop's home"
        )
        return Vllm(
            upstream,
            key=engine.key,
            label="embedded",
            adapters=adapters,
            num_adapters=EMBEDDED_ADAPTERS,
            scores=True,
        )
    servers = [_driver(settings, home, one, adapters) for one in (url, *engine.replicas)]
    return Replicas(servers) if engine.replicas else servers[0]


def _driver(settings: Settings, home: Path, url: str, adapters: AdaptersFolder) -> Engine:
    """Return the driver of one server that runs already."""
    engine, base = settings.engine, base_folder(settings)
    wanted = Wanted(engine.model, is_required=True) if engine.model else Wanted(settings.model.name)
    # OPENAI_BASE_URL habitually ends in /v1; the paths sent here begin with it.
    upstream = Upstream(url.rstrip("/").removesuffix("/v1"))
    calls = Calls(upstream, credentials(engine.key))
    if engine.kind == "vllm":
        return Vllm(upstream, key=engine.key, wanted=wanted, adapters=adapters)
    if engine.kind == "mlx_server":
        mlx, folder = None, home / layout.MLX_ADAPTERS
        if base is not None:
            mlx = MlxServerAdapters(calls, base=base, folder=folder, convert=_to_mlx)
        return MlxServer(
            upstream,
            key=engine.key,
            wanted=wanted,
            base_id=settings.model.base,
            rechunks=engine.rechunk_streams,
            adapters=mlx,
            vocab_size=_vocab_size(base),
        )
    if engine.kind == "ollama":
        ollama, notes = None, home / layout.OLLAMA_NOTES
        if base is not None:
            ollama = OllamaAdapters(
                calls, base=base, convert=gguf.convert, notes=notes, lacking=gguf.lacking()
            )
        return Ollama(upstream, key=engine.key, wanted=wanted, adapters=ollama)
    if engine.kind == "llama_server":
        # As a router it has several, each of which could be the one.
        wanted = replace(wanted, is_base=base is not None)
        return LlamaServer(upstream, key=engine.key, wanted=wanted)
    forwards_key = not settings.server.client_keys
    return OpenAI(upstream, key=engine.key, wanted=wanted, forwards_key=forwards_key)


def converts(settings: Settings) -> bool:
    """Whether versions are converted for the engine, which it serves only where `model.base` is."""
    return settings.engine.kind in _CONVERTED


def _vocab_size(base: Path | None) -> int | None:
    """Return how many tokens the base has, as far as its folder says."""
    with contextlib.suppress(InvalidBase, OSError):
        return number(text_config(read_config(base)), "vocab_size") if base is not None else None
    return None


def _to_mlx(source: Path, base: Path, folder: Path) -> None:
    # It needs numpy, which comes with what trains: a proxy that only records has none.
    from strop.adapters import mlx

    mlx.convert(source, base, folder)


def _kind(settings: Settings) -> str:
    return settings.engine.kind or "embedded"


def _check_model(model: str) -> None:
    expected = "model.path: expected a folder with a model in Hugging Face format, or a hub id"
    folder = Path(model).expanduser()
    if folder.is_file():
        raise ConfigError(
            f"{expected}; {model} is a file, and strop's own engine reads no GGUF: for one, name"
            " Ollama or llama-server with --engine"
        )
    if not folder.is_dir() and model.startswith(("/", ".", "~")):
        raise ConfigError(f"{expected}; there is no folder {model}")
    if is_hub_id(model) and not _HUB_ID.fullmatch(model):
        advice = (
            "; a model of Ollama is served by --engine ollama --engine-url http://127.0.0.1:"
            f"{_PORTS['ollama']} --model {shlex.quote(model)}"
        )
        raise ConfigError(f"{expected}, got {model!r}{advice * (':' in model)}")
    if model and folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(f"{expected}; there is no config.json in {model}")


def check(settings: Settings) -> None:
    """Refuse settings that no engine can be made of, here and now.

    Raises:
        ConfigError: they contradict each other, or lack what the engine needs.
    """
    engine = settings.engine
    if engine.url and not engine.kind:
        raise ConfigError(
            f"engine.url = {auth.scrub_url(engine.url)!r} needs engine.kind: no engine that strop"
            " knows answers there now, so it can't tell which it is; start it first, or say what it"
            " is, as in --engine vllm"
        )
    check_kind(settings, _kind(settings))
    if _kind(settings) == "embedded":
        _check_model(settings.model.path)
        if importlib.util.find_spec("mlx_lm") is None:
            raise ConfigError(
                "strop's own engine needs mlx-lm, which is not installed:"
                f" {installation.install('strop[mlx]')}; or serve one that runs,"
                " which `strop engines` looks for"
            )


def check_kind(settings: Settings, kind: str) -> None:
    """Refuse settings that are not of an engine of this kind, whatever runs or is installed here.

    Raises:
        ConfigError: they aren't.
    """
    engine = settings.engine
    if kind == "embedded" and engine.url:
        raise ConfigError(
            f"engine.url = {auth.scrub_url(engine.url)!r} is of another engine than strop's own;"
            " leave it out, or name that one, as in --engine vllm"
        )
    if kind == "embedded" and engine.model:
        raise ConfigError(
            f"engine.model = {engine.model!r} is of another engine than strop's own; leave it out,"
            " or name that one, as in --engine ollama; what strop's own serves is model.path"
        )
    if kind != "embedded" and not engine.url:
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
