"""PEFT folders as MLX adapter folders, which mlx_lm loads (mlx-lm, `tuner/utils.py:load_adapters`).

Imports no mlx and loads no model.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Container
from pathlib import Path

import numpy as np

from strop.adapters import base_model, durable, peft, tensor_file

WEIGHTS = "adapters.safetensors"

_IN_BLOCK = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<inner>.+)")

# Model types whose linear layers have the same names and weights in mlx-lm as in transformers;
# tests compare logprobs of each with transformers and peft.
MODEL_TYPES = frozenset(
    {
        "cohere",
        "cohere2",
        "ernie4_5",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "granite",
        "granitemoe",
        "helium",
        "hunyuan_v1_dense",
        "llama",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo2",
        "olmo3",
        "olmoe",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)


def own_path(path: str, paths: Container[str]) -> str:
    """Return which of mlx-lm's `paths` is the layer that PEFT has at `path`; as it is if none is.

    Of a model for images too, transformers has `model.language_model`, mlx-lm
    `language_model.model`.
    """
    front, inside, rest = path.partition("model.language_model.")
    turned = f"language_model.model.{rest}"
    return turned if inside and not front and turned in paths else path


def convert(source: Path, base: Path, folder: Path) -> None:
    """Write the PEFT adapter at `source`, of the base at `base`, to a new MLX adapter folder.

    mlx_lm takes one rank and one scale: they are folded into A and B where modules have their own.
    `folder` appears whole or not at all.

    Raises:
        InvalidAdapter: the adapter is broken, or mlx_lm couldn't serve it.
        InvalidBase: the base's config is missing or broken.
        FileExistsError: `folder` is there already.
    """
    config = base_model.read_config(base)
    if (model_type := config.get("model_type")) not in MODEL_TYPES:
        raise peft.InvalidAdapter(
            f"adapters of {model_type} models can't be converted for mlx_lm; known are "
            f"{', '.join(sorted(MODEL_TYPES))}"
        )
    num_layers = base_model.number(config, "num_hidden_layers")
    adapter = peft.folded(peft.read(source))
    layers, keys = set(), set()
    for path in adapter.modules:
        if match := _IN_BLOCK.fullmatch(path):
            layers.add(int(match["layer"]))
            keys.add(match["inner"])
        else:
            keys.add(path)
        _check(path, base)
    if layers and max(layers) >= num_layers:
        raise peft.InvalidAdapter(
            f"it adapts block {max(layers)}; the base has {num_layers}: is it another's?"
        )
    arrays = {}
    for path, module in adapter.modules.items():
        arrays[f"{path}.lora_a"] = np.ascontiguousarray(module.a.T)
        arrays[f"{path}.lora_b"] = np.ascontiguousarray(module.b.T)
    scale = next(iter(adapter.modules.values())).scale
    raw = {
        "fine_tune_type": "lora",
        # The last so many blocks get LoRA; those that the adapter leaves out keep B = 0.
        "num_layers": num_layers - min(layers, default=num_layers - 1),
        "lora_parameters": {
            "rank": adapter.config.rank,
            "scale": scale,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
    }
    if folder.exists():
        raise FileExistsError(f"{folder} exists; an adapter's folder is never written again")
    scratch = Path(tempfile.mkdtemp(prefix=".mlx-", dir=folder.parent))
    try:
        (scratch / peft.CONFIG).write_text(json.dumps(raw, indent=2), encoding="utf-8")
        tensor_file.write(scratch / WEIGHTS, arrays)
        durable.publish(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _check(path: str, base: Path) -> None:
    """Refuse what mlx_lm has no LoRA place for."""
    if ".experts." in path:
        raise peft.InvalidAdapter(
            f"{path} is one expert; mlx_lm keeps all experts of a block in one layer. Train the "
            "attention only"
        )
    if path == "lm_head" and base_model.ties_head(base):
        raise peft.InvalidAdapter(
            "it adapts lm_head, which this base shares with its embedding: mlx_lm has no such layer"
        )
