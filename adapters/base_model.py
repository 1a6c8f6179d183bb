"""A base model's folder in Hugging Face format: its config, its files, and the sizes of its layers.

Loads no weights and runs nothing; `strop.adapters.identity` says which base it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strop.adapters import tensor_file

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
UNKNOWN_LENGTH = 8192
"""Tokens of prompt and answer together, of a model whose config gives no limit."""

_INDEX = "model.safetensors.index.json"


class InvalidBase(ValueError):
    """The folder is not a model that adapters can be of; the message says what to do."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the base's `config.json`.

    Raises:
        InvalidBase: the folder or the file isn't there, or is no JSON object.
    """
    if not folder.is_dir():
        raise InvalidBase(
            f"the base model {folder} is not a folder; set model.base to one in Hugging Face format"
        )
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise InvalidBase(
            f"{folder} has no {CONFIG}; expected a model in Hugging Face format"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidBase(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidBase(f"{folder / CONFIG} must be a JSON object")
    return config


def generation_config(folder: Path) -> dict[str, Any]:
    """Return what the base's makers say of sampling, and of its ends; nothing where they don't."""
    try:
        config = json.loads((folder / GENERATION_CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def number(config: Mapping[str, Any], key: str) -> int:
    """Return a positive whole number of a base's config.

    Raises:
        InvalidBase: it isn't there, or isn't one.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidBase(f"the base's {CONFIG} has {key} = {value!r}; expected a number above 0")
    return value


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the language model, which a model for images too has inside its own."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens of prompt and answer together; None where no limit is given."""
    limit = text_config(config).get("max_position_embeddings")
    return limit if isinstance(limit, int) and limit > 0 else None


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files that hold the base's weights, sorted by name.

    Those that the index names, where there is one.

    Raises:
        InvalidBase: there are none, or one that the index names is missing.
    """
    try:
        index = json.loads((folder / _INDEX).read_bytes())
        names = sorted({str(name) for name in index["weight_map"].values()})
    except FileNotFoundError:
        names = sorted(path.name for path in folder.glob("model*.safetensors"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidBase(f"{folder / _INDEX} is broken: {error!r}") from error
    files = tuple(folder / name for name in names)
    if not files:
        raise InvalidBase(
            f"{folder} has no model*.safetensors; save the weights as safetensors (pickles are "
            "never loaded)"
        )
    for path in files:
        if path.parent != folder or not path.is_file():
            raise InvalidBase(f"{folder} lacks {path.name}, which {_INDEX} names; was it copied?")
    return files


def read_headers(folder: Path) -> dict[str, tensor_file.Tensor]:
    """Return what the headers of the base's weight files say of each tensor.

    Raises:
        InvalidBase: a header is broken, or a file is missing.
    """
    found: dict[str, tensor_file.Tensor] = {}
    for path in weight_files(folder):
        try:
            found |= tensor_file.read_header(path)
        except tensor_file.BrokenTensorFile as error:
            raise InvalidBase(f"{folder}: {error}") from error
    return found


def ties_head(folder: Path) -> bool:
    """Return whether the head is the embedding, and has no weights of its own.

    Published configs of models that always tie them (Gemma) don't say so: then the files do.

    Raises:
        InvalidBase: the config or a header is broken, or a file is missing.
    """
    said = read_config(folder).get("tie_word_embeddings")
    if said is not None:
        return bool(said)
    return not any(path.rpartition(".")[2] == "lm_head" for path in layer_sizes(folder))


def layer_sizes(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Return (out, in) of each weight matrix by module path, as the files' headers say.

    None where the layer is quantised in a way whose sizes can't be told from its shapes. Of an
    embedding it is (vocabulary, width). A head tied to the embedding has no weights of its own.

    Raises:
        InvalidBase: the config or a header is broken, or a file is missing.
    """
    quantization = read_config(folder).get("quantization")
    tensors = read_headers(folder)
    sizes: dict[str, tuple[int, int] | None] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind in ("qweight", "weight_packed"):
            sizes[module] = None
        elif kind == "weight" and len(tensor.shape) == 2:
            num_out, num_in = tensor.shape
            if f"{module}.scales" in tensors:
                scales = tensors[f"{module}.scales"].shape
                sizes[module] = _mlx_quantised(module, num_out, scales, quantization)
            else:
                # Integers hold several weights each (bitsandbytes, ModelOpt), in any shape.
                is_plain = tensor.dtype.startswith(("F", "BF"))
                sizes[module] = (num_out, num_in) if is_plain else None
    return sizes


def _mlx_quantised(
    module: str, num_out: int, scales: tuple[int, ...], quantization: object
) -> tuple[int, int] | None:
    """Return (out, in) of a layer that mlx quantised: one scale for each group of inputs."""
    if not isinstance(quantization, Mapping) or len(scales) != 2:
        return None
    own = quantization.get(module)
    group = (own if isinstance(own, Mapping) else quantization).get("group_size")
    return (num_out, scales[1] * group) if isinstance(group, int) else None
