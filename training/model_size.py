"""How many parameters a model has, and how many of them a token uses, from its config.json.

Pure. An estimate within a few per cent for decoder-only transformers; norms, biases and rotary
tables are not counted, and linear attention counts as attention. Good enough to choose settings
by, not to reserve memory by.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from strop.adapters.base_model import text_config


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Numbers of parameters. Of a dense model all are active."""

    total: float
    active: float

    @property
    def sparsity(self) -> float:
        """How many parameters there are for each active one; 1 for a dense model."""
        return self.total / self.active


def model_size(config: Mapping[str, object]) -> ModelSize:
    """Return the size of the model that `config`, a Hugging Face config.json, describes.

    Raises:
        ValueError: its width or depth are not there.
    """
    fields = text_config(config)
    width = _first(fields, "hidden_size", "n_embd", "d_model")
    depth = _first(fields, "num_hidden_layers", "n_layer", "num_layers")
    if not width or not depth:
        raise ValueError(
            "expected config.json to name hidden_size and num_hidden_layers; got"
            f" {', '.join(sorted(map(str, fields))) or 'nothing'}. Name a preset file with plain"
            " numbers in training.preset"
        )
    is_tied = fields.get("tie_word_embeddings", False) is True
    embeddings = _first(fields, "vocab_size") * width * (1 if is_tied else 2)
    attention = depth * _attention(fields, width)
    dense_width = _first(fields, "intermediate_size", "n_inner", "ffn_dim") or 4 * width
    # Gated: three matrices. GPT-2 and its like have two.
    matrices = 2 if "n_embd" in fields or "n_inner" in fields else 3
    dense = matrices * width * dense_width
    num_experts = _first(fields, "num_local_experts", "num_experts", "n_routed_experts")
    if num_experts < 2:
        total = embeddings + attention + depth * dense
        return ModelSize(total, total)
    num_chosen = _first(fields, "num_experts_per_tok", "experts_per_token", "moe_topk") or 1
    expert = matrices * width * (_first(fields, "moe_intermediate_size") or dense_width)
    shared = matrices * width * _first(fields, "shared_expert_intermediate_size")
    shared += expert * _first(fields, "n_shared_experts")
    num_dense = min(depth, _num_dense_blocks(fields, depth))
    rest = embeddings + attention + num_dense * dense + (depth - num_dense) * shared
    blocks = (depth - num_dense) * expert
    return ModelSize(rest + blocks * num_experts, rest + blocks * num_chosen)


def _attention(fields: Mapping[str, object], width: float) -> float:
    num_heads = _first(fields, "num_attention_heads", "n_head") or 1
    latent = _first(fields, "kv_lora_rank")
    if latent:
        # Multi-head latent attention, DeepSeek-V2, arXiv 2405.04434, section 2.1.
        rope, nope = _first(fields, "qk_rope_head_dim"), _first(fields, "qk_nope_head_dim")
        value = _first(fields, "v_head_dim")
        query_rank = _first(fields, "q_lora_rank")
        per_query = num_heads * (rope + nope)
        queries = query_rank * (width + per_query) if query_rank else width * per_query
        keys = width * (latent + rope) + latent * num_heads * (nope + value)
        return queries + keys + num_heads * value * width
    head = _first(fields, "head_dim") or width / num_heads
    num_kv = _first(fields, "num_key_value_heads") or num_heads
    return 2 * width * head * (num_heads + num_kv)


def _num_dense_blocks(fields: Mapping[str, object], depth: float) -> float:
    """Return how many blocks of a mixture of experts have one dense network instead."""
    listed = fields.get("mlp_only_layers")
    num_listed = len(listed) if isinstance(listed, list) else 0
    step = _first(fields, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq") or 1
    first = _first(fields, "first_k_dense_replace")
    return first + num_listed + (depth - depth // step)


def _first(fields: Mapping[str, object], *names: str) -> float:
    """Return the first of `names` that is there and a number; 0 if none is."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return 0.0
