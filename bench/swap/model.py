"""A Qwen3 with random weights, and random adapters for it: what both servers serve.

Knows no server. Its answers never end by themselves, so that every stream has the length asked for.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strop import configs
from strop.adapters import peft, tensor_file

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_HEAD_DIM = 32
_END_ID = 1
# Peaked, and far from chaos: two right implementations agree within 1e-4 nats.
_EMBEDDING_STD, _WEIGHT_STD, _B_STD = 0.25, 0.08, 0.08
_RANK = 8

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Size:
    """How large the model is; `width` is a multiple of 64."""

    width: int
    num_blocks: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of a block, each with its outputs and inputs."""
        width, inner, half = self.width, 2 * self.width, self.width // 2
        return {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (half, width),
            "self_attn.v_proj": (half, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }


SIZES = {"small": Size(256, 4), "medium": Size(512, 10)}
"""2.5 and 24 million parameters, in float32."""


def make(folder: Path, size: Size) -> None:
    """Write the model to a new folder, with the tokenizer of the demo model."""
    folder.mkdir()
    for name in _TOKENIZER:
        shutil.copyfile(configs.demo_model() / name, folder / name)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    vocab_size = json.loads((configs.demo_model() / "config.json").read_text())["vocab_size"]
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": size.width,
        "intermediate_size": 2 * size.width,
        "num_hidden_layers": size.num_blocks,
        "num_attention_heads": size.width // _HEAD_DIM,
        "num_key_value_heads": size.width // _HEAD_DIM // 2,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "tie_word_embeddings": True,
        "eos_token_id": _END_ID,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensor_file.write(folder / "model.safetensors", _weights(size, vocabulary, vocab_size))


def make_adapter(folder: Path, size: Size, seed: int) -> None:
    """Write a PEFT adapter of rank 8 on all linear layers to a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    modules = {
        f"model.layers.{block}.{name}": peft.LoraModule(
            _normal(rng, (_RANK, num_in), num_in**-0.5), _normal(rng, (num_out, _RANK), _B_STD), 2.0
        )
        for block in range(size.num_blocks)
        for name, (num_out, num_in) in size.linears.items()
    }
    config = peft.LoraConfig(rank=_RANK, alpha=2.0 * _RANK)
    peft.write(peft.Adapter(config, modules), folder)


def _weights(size: Size, vocabulary: dict[str, int], vocab_size: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    embeddings = _normal(rng, (vocab_size, size.width), _EMBEDDING_STD)
    # Drawn, a token that ends the answer or is half a character would make streams uneven.
    plain = [place for piece, place in vocabulary.items() if _is_plain(piece)]
    hidden = np.setdiff1d(np.arange(vocab_size), plain)
    embeddings[hidden] = 0.0
    weights = {"model.embed_tokens.weight": embeddings, "model.norm.weight": _ones(size.width)}
    for block in range(size.num_blocks):
        prefix = f"model.layers.{block}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = _ones(size.width)
        for norm in ("q_norm", "k_norm"):
            weights[f"{prefix}.self_attn.{norm}.weight"] = _ones(_HEAD_DIM)
        for name, shape in size.linears.items():
            weights[f"{prefix}.{name}.weight"] = _normal(rng, shape, _WEIGHT_STD)
    return weights


def _is_plain(piece: str) -> bool:
    # In byte-level BPE, what is no printable ASCII stands for a space, a control or half a letter.
    return piece.replace("Ġ", " ").isascii() and not piece.startswith("<|")


def _ones(length: int) -> Array:
    return np.ones(length, np.float32)


def _normal(rng: np.random.Generator, shape: tuple[int, int], std: float) -> Array:
    return rng.normal(0.0, std, shape).astype(np.float32)
