"""Rotary embeddings as transformers 5 writes them down, in the places where mlx-lm looks for them.

Imports no mlx: loads nothing, and computes no angle.
"""

from collections.abc import Mapping
from typing import Any


def flat_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that mlx-lm misses in a config, for which it else takes its defaults.

    Since version 5 transformers writes all of rotary embeddings to `rope_parameters`. Most of
    mlx-lm's models read the members that were there before, and are silently others without them.
    """
    flat: dict[str, Any] = {}
    nested = config.get("rope_parameters") or {}
    # Models with windows have parameters for their global layers, and others for the rest.
    rope, local = nested.get("full_attention", nested), nested.get("sliding_attention", {})
    for name in ("rope_theta", "partial_rotary_factor"):
        flat[name] = rope.get(name)
    kind = rope.get("rope_type", "default")
    # Some of its models ask for the type by the name that it had still earlier.
    flat["rope_scaling"] = {**rope, "type": kind} if kind != "default" else None
    flat["rope_local_base_freq"] = local.get("rope_theta")
    missing = {
        name: value
        for name, value in flat.items()
        if value is not None and config.get(name) is None
    }
    if text_config := config.get("text_config"):
        missing["text_config"] = {**text_config, **flat_rope(text_config)}
    return missing


def turn_partly(model: Any, config: Mapping[str, Any]) -> None:
    """Let a loaded model turn the part of each head that its config says.

    mlx-lm's `glm` turns whole heads, and published GLM-4 models half of them.
    """
    if config.get("model_type") != "glm":
        return
    rope = config.get("rope_parameters") or config
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    for layer in model.layers:
        attention = layer.self_attn
        # What transformers takes where nothing is said.
        attention.rope.dims = int(attention.head_dim * (0.5 if share is None else share))
