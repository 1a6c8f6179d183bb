"""Random models of any architecture, as transformers writes them, and what they compute there.

Knows nothing of strop.
"""

from pathlib import Path
from typing import Any

import models

SIZES: dict[str, Any] = {
    "vocab_size": models.VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": models.MAX_POSITIONS,
    "initializer_range": 0.15,
}
IDS = [(7 * at * at + 3 * at) % 1200 + 3 for at in range(200)]


def make(folder: Path, config: str, **fields: Any) -> Path:
    """Write a random model as today's transformers writes it."""
    import transformers

    return models._write_random(
        folder, getattr(transformers, config)(**{**SIZES, **fields}), "float32", 0
    )


def reference(folder: Path, ids: list[int]) -> list[list[float]]:
    """Return the log-softmax at each position, in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs: list[list[float]] = model(torch.tensor([ids])).logits[0].log_softmax(-1).tolist()
    return logprobs
