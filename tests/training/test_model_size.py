"""Sizes of models from their config.json."""

import json

import pytest
from model_configs import DEEPSEEK_V3, GPT2, LLAMA_8B, MIXTRAL_8X7B, QWEN3_30B_A3B

from strop.configs import demo_model
from strop.training.model_size import model_size


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (LLAMA_8B, 8.03e9, 8.03e9),
        ({"text_config": LLAMA_8B, "model_type": "mllama"}, 8.03e9, 8.03e9),
        (QWEN3_30B_A3B, 30.5e9, 3.3e9),
        (MIXTRAL_8X7B, 46.7e9, 12.9e9),
        (DEEPSEEK_V3, 671e9, 37e9),
        (GPT2, 0.124e9, 0.124e9),
    ],
    ids=["dense", "nested", "many experts", "few experts", "latent attention", "gpt2"],
)
def test_sizes_are_those_that_are_published(
    config: dict[str, object], total: float, active: float
) -> None:
    """Within a few per cent."""
    size = model_size(config)

    assert pytest.approx(total, rel=0.02) == size.total
    assert pytest.approx(active, rel=0.02) == size.active


def test_a_dense_models_sparsity_is_one() -> None:
    """All its parameters are active; the demo model has 118 thousand."""
    size = model_size(json.loads((demo_model() / "config.json").read_bytes()))

    assert pytest.approx(118_000, rel=0.01) == size.total
    assert 1.0 == size.sparsity


def test_every_second_block_may_be_dense() -> None:
    """With `decoder_sparse_step` 2, half of the 48 blocks have one network of full width."""
    size = model_size({**QWEN3_30B_A3B, "decoder_sparse_step": 2})

    experts = 24 * 3 * 2048 * 768 * 128
    dense = 24 * 3 * 2048 * 6144
    everywhere = model_size(QWEN3_30B_A3B)
    assert pytest.approx(everywhere.total - experts + dense) == size.total


@pytest.mark.parametrize("config", [{}, {"hidden_size": 64}, {"hidden_size": "wide"}])
def test_a_config_without_width_or_depth_is_refused(config: dict[str, object]) -> None:
    """The message says what a preset of one's own could do."""
    with pytest.raises(ValueError, match=r"hidden_size and num_hidden_layers.*plain numbers"):
        model_size(config)
