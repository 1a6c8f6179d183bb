"""Loads the base and says what it is: context limit, vocabulary, adaptable layers.

Belongs to the owner thread. Knows no requests and no versions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import mlx.core as mx
import mlx_lm

from strop.adapters import base_model
from strop.adapters.mlx_rows import Float32Logits
from strop.adapters.rope import flat_rope, turn_partly
from strop.proxy.embedded.grammar import Grammars
from strop.proxy.embedded.harmony import end_ids
from strop.proxy.embedded.lora import LinearShape, shapes_of
from strop.proxy.embedded.options import Options


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
    folder = Path(model)
    if not folder.is_dir():
        folder = Path(huggingface_hub.hf_hub_download(model, base_model.CONFIG)).parent
    return base_model.read_config(folder)


def _max_model_len(config: Mapping[str, Any], limit: int | None) -> int:
    own = base_model.context_length(config)
    if own is None:
        return limit or base_model.UNKNOWN_LENGTH
    return min(own, limit) if limit else own
