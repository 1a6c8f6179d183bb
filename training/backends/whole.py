"""What models compute for all positions at once, by their configs: what an estimate has to count.

Knows no sizes, and imports no framework.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from strop.training.backends.base_files import BaseFiles
from strop.training.backends.batch import MLPS

# Model types that compute scores by themselves in transformers.
EAGER = frozenset(
    {"bloom", "codegen", "cpmant", "deepseek_v4", "flint", "gemma2", "gpt_neo", "gpt_neox_japanese",
     "gpt_oss", "gptj", "granite_swa", "granitemoe_swa", "hy_v4", "inkling2", "inkling2_text",
     "mimo_v2_flash", "mpt", "openai-gpt", "vaultgemma", "xglm"}
)  # fmt: skip
# Of those with latent keys and values, the ones that mlx-lm gives no mask of scores.
_JOINED = frozenset({"deepseek_v2", "minicpm3", "youtu_llm"})
# Their MLPs take more than positions, or lie in a list.
_WHOLE_MLPS = frozenset(
    {"bloom", "ernie4_5_vl_moe", "longcat_flash", "longcat_flash_ngram", "mpt", "rwkv", "zamba2"}
)


def has_mlps(files: BaseFiles) -> bool:
    """Whether no MLP of a block computes in pieces; by what the weight files call them."""
    is_known = files.text_config.get("model_type") in _WHOLE_MLPS
    return is_known or files.part_names.isdisjoint(MLPS)


def has_scores_in_mlx(config: Mapping[str, Any]) -> bool:
    """Whether MLX holds all attention scores of a block."""
    is_latent = config.get("kv_lora_rank") and config.get("model_type") not in _JOINED
    return bool(is_latent or config.get("attn_logit_softcapping"))


def has_scores_in_torch(config: Mapping[str, Any], device: str) -> bool:
    """Whether torch holds all attention scores of a block."""
    # Where values are narrower than keys, CUDA alone has a fused attention.
    is_latent = config.get("kv_lora_rank") and device != "cuda"
    is_known = config.get("model_type") in EAGER
    return bool(is_known or is_latent or config.get("attn_logit_softcapping"))


def has_windows(config: Mapping[str, Any]) -> bool:
    """Whether transformers makes a mask of all pairs of positions."""
    return bool(config.get("sliding_window") and config.get("use_sliding_window", True))


def has_fused_linear(device: str) -> bool:
    """Whether transformers has linear attention that holds little."""
    return device == "cuda" and importlib.util.find_spec("fla") is not None
