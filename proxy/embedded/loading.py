"""Loads the base and says what it is: context limit, vocabulary, adaptable layers.

Belongs to the owner thread. Knows no requests and no versions.
"""

import logging
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
from strop.proxy.embedded.errors import BadRequest
from strop.proxy.embedded.fields import Fields
from strop.proxy.embedded.grammar import Grammars
from strop.proxy.embedded.harmony import end_ids
from strop.proxy.embedded.jobs import Sampling
from strop.proxy.embedded.lora import LinearShape, shapes_of
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.protocol import NEUTRAL, read_sampling

# Of `max_new_tokens`, which it heeds too, nothing: an answer may take the rest of the context.
_USUAL = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The resident base. `module` is mlx-lm's own, `model` the same with float32 logits.

    `sampling` is what a request that says nothing of it gets.
    """

    module: Any
    model: Float32Logits
    tokenizer: Any
    max_model_len: int
    vocab_size: int
    shapes: Mapping[str, LinearShape]
    grammars: Grammars
    sampling: Sampling = NEUTRAL

    @property
    def wishes(self) -> dict[str, float]:
        """The parameters by which the model's makers want it sampled."""
        pairs = ((name, getattr(self.sampling, name)) for name in _USUAL)
        return {name: value for name, value in pairs if value != getattr(NEUTRAL, name)}


def load(options: Options) -> LoadedModel:
    """Load the model named in `options`; raises what mlx-lm raises where it can't be loaded."""
    folder = _folder(options.model)
    module, tokenizer, config = mlx_lm.load(
        options.model, model_config=flat_rope(base_model.read_config(folder)), return_config=True
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
        _usual_sampling(folder),
    )


def _folder(model: str) -> Path:
    """Return where the model lies, or at least its config, which is fetched if need be."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    return Path(huggingface_hub.hf_hub_download(model, base_model.CONFIG)).parent


def _usual_sampling(folder: Path) -> Sampling:
    """Return how the model's makers want it sampled: what vLLM heeds of their wishes.

    A value that a request could not have is passed over, with a warning.
    """
    config = base_model.generation_config(folder)
    usual = NEUTRAL
    for name in _USUAL:
        try:
            usual = read_sampling(Fields({name: config.get(name)}), usual)
        except (BadRequest, OverflowError) as error:
            _log.warning("%s: %s", base_model.GENERATION_CONFIG, error)
    return usual


def _max_model_len(config: Mapping[str, Any], limit: int | None) -> int:
    own = base_model.context_length(config)
    if own is None:
        return limit or base_model.UNKNOWN_LENGTH
    return min(own, limit) if limit else own
