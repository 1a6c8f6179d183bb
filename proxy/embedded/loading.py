"""Loads the base and says what it is: context limit, vocabulary, adaptable layers.

Belongs to the owner thread. Knows no requests and no versions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import mlx.core as mx
import mlx_lm

from strop.adapters.rope import flat_rope, turn_partly
from strop.proxy.embedded.grammar import Grammars
from strop.proxy.embedded.harmony import end_ids
from strop.proxy.embedded.lora import LinearShape, shapes_of
from strop.proxy.embedded.options import Options

_UNKNOWN_LENGTH = 8192  # where neither the model's config nor the options give a limit


class Float32Logits:
    """A model whose logits are float32, so that logprobs keep more digits than bf16 has."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        """Return the model's logits as float32."""
        logits: mx.array = self._model(*args, **kwargs).astype(mx.float32)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The resident base. `module` is mlx-lm's own, `model` the same with float32 logits."""

    module: Any
    model: Float32Logits
    tokenizer: Any
    max_model_len: int
    vocab_size: int
    shapes: Mapping[str, LinearShape]
    grammars: Grammars


def load(options: Options) -> LoadedModel:
    """Load the model named in `options`; raises what mlx-lm raises where it can't be loaded."""
    module, tokenizer, config = mlx_lm.load(
        options.model, model_config=flat_rope(_config(options.model)), return_config=True
    )
    turn_partly(module, config)
    tokenizer.eos_token_ids = end_ids(tokenizer)
    model = Float32Logits(module)
    # The width of the logits, which may be more than the tokenizer has names for.
    vocab_size = model(mx.array([[0]])).shape[-1]
    return LoadedModel(
        module,
        model,
        tokenizer,
        _max_model_len(config, options.max_model_len),
        vocab_size,
        shapes_of(module),
        Grammars(tokenizer, vocab_size),
    )


def _config(model: str) -> dict[str, Any]:
    path = Path(model, "config.json")
    if not Path(model).is_dir():
        path = Path(huggingface_hub.hf_hub_download(model, "config.json"))
    config: dict[str, Any] = json.loads(path.read_bytes())
    return config


def _max_model_len(config: Mapping[str, Any], limit: int | None) -> int:
    text_config = config.get("text_config") or {}
    own = config.get("max_position_embeddings") or text_config.get("max_position_embeddings")
    if not own:
        return limit or _UNKNOWN_LENGTH
    return min(int(own), limit) if limit else int(own)
