"""mlx_lm's own LoRA folders as PEFT folders: what `mlx_lm.lora` writes, as strop keeps adapters.

The way back from `strop.adapters.mlx`. Imports no mlx and loads no model.
"""

import json
from pathlib import Path

import numpy as np

from strop.adapters import base_model, mlx, peft, tensor_file


def convert(source: Path, weights: Path, base: Path, folder: Path) -> None:
    """Write an mlx_lm adapter of the base at `base` into `folder`, as PEFT.

    Args:
        source: its `adapter_config.json`.
        weights: its `adapters.safetensors`.
        base: the base's folder, in Hugging Face format; in mlx's bits or not.
        folder: an existing one; gets PEFT's two files.

    Raises:
        InvalidAdapter: the adapter is broken, or PEFT can't say what it does.
        InvalidBase: the base's config is broken.
    """
    rank, scale = _read_config(source)
    if (model_type := base_model.read_config(base).get("model_type")) not in mlx.MODEL_TYPES:
        raise peft.InvalidAdapter(
            f"mlx_lm's adapters of {model_type} models can't be converted to PEFT; known are "
            f"{', '.join(sorted(mlx.MODEL_TYPES))}"
        )
    try:
        header = tensor_file.read_header(weights)
        for name, tensor in header.items():
            path, _, half = name.rpartition(".")
            if half not in ("lora_a", "lora_b") or len(tensor.shape) != 2:
                raise peft.InvalidAdapter(
                    f"unexpected tensor {name!r} of shape {tensor.shape}; expected lora_a and "
                    "lora_b of linear layers (not of experts, nor whole weights)"
                )
            if path.endswith("embed_tokens"):
                raise peft.InvalidAdapter(
                    f"it adapts {path}, which mlx_lm may adapt as the head too, and PEFT doesn't; "
                    "train it on linear layers"
                )
        arrays = dict(tensor_file.read_arrays(weights, header))
    except tensor_file.BrokenTensorFile as error:
        raise peft.InvalidAdapter(str(error)) from error
    modules = {}
    for path in sorted({name.rpartition(".")[0] for name in arrays}):
        a, b = arrays.get(f"{path}.lora_a"), arrays.get(f"{path}.lora_b")
        if a is None or b is None:
            raise peft.InvalidAdapter(f"{path} has one of lora_a and lora_b; both are needed")
        if (a.shape[1], b.shape[0]) != (rank, rank):
            raise peft.InvalidAdapter(
                f"{path} has shapes lora_a {a.shape} and lora_b {b.shape}; expected (in, r) and "
                f"(r, out) with r = {rank} as the config says"
            )
        modules[path] = peft.LoraModule(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), scale)
    if not modules:
        raise peft.InvalidAdapter(f"{mlx.WEIGHTS} doesn't contain tensors")
    config = peft.LoraConfig(rank, scale * rank)
    peft.write(peft.Adapter(config, modules), folder)


def _read_config(path: Path) -> tuple[int, float]:
    """Return rank and scale of every layer."""
    try:
        raw = json.loads(path.read_bytes())
        kind, parameters = raw.get("fine_tune_type", "lora"), raw["lora_parameters"]
        rank, scale = parameters["rank"], parameters["scale"]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise peft.InvalidAdapter(
            f"{path.name} isn't one of mlx_lm's, which has lora_parameters with rank and scale: "
            f"{error!r}"
        ) from error
    if kind != "lora":
        raise peft.InvalidAdapter(
            f"fine_tune_type = {kind!r:.80} is not supported; train with --fine-tune-type lora"
        )
    if type(rank) is not int or rank < 1 or type(scale) not in (int, float):
        raise peft.InvalidAdapter(
            f"expected a rank of at least 1 and a scale, got {rank!r:.80} and {scale!r:.80}"
        )
    if not abs(scale) <= float(np.finfo(np.float32).max):
        raise peft.InvalidAdapter(f"expected a scale within float32, got {scale!r:.80}")
    return rank, float(scale)
