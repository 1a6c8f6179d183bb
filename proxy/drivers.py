"""Drivers of engines that take versions in a format of their own, made as the settings say.

Knows where converted versions are kept, and which converter each engine needs; runs nothing.
"""

import contextlib
from pathlib import Path
from typing import Final

from strop.adapters.base_model import InvalidBase, number, read_config
from strop.proxy.engines.base import Engine
from strop.proxy.engines.calls import Calls, credentials
from strop.proxy.engines.llama_server import LlamaServer
from strop.proxy.engines.mlx_server import MlxServer
from strop.proxy.engines.mlx_server_adapters import MlxServerAdapters
from strop.proxy.engines.ollama import Ollama
from strop.proxy.engines.ollama_adapters import OllamaAdapters
from strop.proxy.settings import Settings
from strop.proxy.upstream import Upstream
from strop.proxy.versions.pairing import base_folder

MLX_FOLDER: Final = "adapters-mlx"
"""In the home: versions as mlx_lm reads them."""

OLLAMA_NOTES: Final = "ollama-models.json"
"""In the home: the models that strop made in Ollama."""


def make(settings: Settings, home: Path, upstream: Upstream) -> Engine | None:
    """Return the driver for the kind of engine that the settings name; None for other kinds."""
    engine, model = settings.engine, settings.model.name
    if engine.kind == "mlx_server":
        return MlxServer(
            upstream,
            key=engine.key,
            model=model,
            rechunks=engine.rechunk_streams,
            adapters=_mlx_adapters(settings, home, upstream),
            vocab_size=_vocab_size(base_folder(settings)),
        )
    if engine.kind == "ollama":
        adapters = _ollama_adapters(settings, home, upstream)
        return Ollama(upstream, key=engine.key, model=model, adapters=adapters)
    if engine.kind == "llama_server":
        return LlamaServer(upstream, key=engine.key)
    return None


def _mlx_adapters(settings: Settings, home: Path, upstream: Upstream) -> MlxServerAdapters | None:
    base = base_folder(settings)
    if base is None:
        return None
    calls = Calls(upstream, credentials(settings.engine.key))
    return MlxServerAdapters(calls, base=base, folder=home / MLX_FOLDER, convert=_to_mlx)


def _vocab_size(base: Path | None) -> int | None:
    """Return how many tokens the base has, as far as its folder says."""
    with contextlib.suppress(InvalidBase, OSError):
        config = read_config(base) if base is not None else {}
        # That of a model with images is in a part of its own.
        text = config.get("text_config")
        return number(text if isinstance(text, dict) else config, "vocab_size")
    return None


def _ollama_adapters(settings: Settings, home: Path, upstream: Upstream) -> OllamaAdapters | None:
    base = base_folder(settings)
    if base is None:
        return None
    calls = Calls(upstream, credentials(settings.engine.key))
    notes = home / OLLAMA_NOTES
    return OllamaAdapters(calls, base=base, convert=_to_gguf, notes=notes)


# Both need numpy, which comes with what trains: a proxy that only records has none.


def _to_mlx(source: Path, base: Path, folder: Path) -> None:
    from strop.adapters import mlx

    mlx.convert(source, base, folder)


def _to_gguf(source: Path, base: Path, file: Path) -> None:
    from strop.adapters import gguf

    gguf.convert(source, base, file)
