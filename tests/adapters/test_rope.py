"""Rotary embeddings as transformers 5 writes them down, in mlx-lm's models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_models import IDS, make, reference

from strop.adapters.rope import flat_rope

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def serving(folder: Path) -> Any:
    """Return the model as the embedded engine loads it."""
    from strop.proxy.embedded import loading
    from strop.proxy.embedded.options import Options

    return loading.load(Options(model=str(folder))).model


def training(folder: Path) -> Any:
    """Return the model as the MLX trainer loads it."""
    from strop.training.backends import mlx_model
    from strop.training.backends.base_files import BaseFiles

    return mlx_model.load(BaseFiles(folder))


@pytest.mark.parametrize("load", [serving, training])
@pytest.mark.parametrize(
    ("config", "rope"),
    [
        ("LlamaConfig", LLAMA3),
        ("Qwen2Config", {"rope_type": "default", "rope_theta": 10_000.0}),
        ("LlamaConfig", {"rope_type": "linear", "rope_theta": 70_000.0, "factor": 4.0}),
        (
            "Phi3Config",
            {"rope_type": "default", "rope_theta": 70_000.0, "partial_rotary_factor": 0.5},
        ),
        (
            "GlmConfig",
            {"rope_type": "default", "rope_theta": 70_000.0, "partial_rotary_factor": 0.25},
        ),
        ("GlmConfig", {"rope_type": "default", "rope_theta": 70_000.0}),
    ],
)
def test_a_model_turns_as_its_folder_says(
    tmp_path: Path, config: str, rope: dict[str, Any], load: Callable[[Path], Any]
) -> None:
    """Served and trained alike: mlx-lm alone reads the new place for few of its models."""
    mx = pytest.importorskip("mlx.core")
    folder = make(tmp_path / "model", config, rope_parameters=rope)

    logits = load(folder)(mx.array([IDS]))[0]

    logprobs: Any = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
    expected = reference(folder, IDS)
    assert all(
        abs(a - b) < 1e-3
        for ours, theirs in zip(logprobs, expected, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rope_theta": 5.0}, {}),
        ({"rope_parameters": {"rope_theta": 5.0}}, {"rope_theta": 5.0}),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 7.0}, {}),
        (
            {"rope_parameters": LLAMA3},
            {"rope_theta": 500_000.0, "rope_scaling": {**LLAMA3, "type": "llama3"}},
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5}},
            {"rope_theta": 5.0, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 5.0, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
                }
            },
            {
                "rope_theta": 5.0,
                "rope_scaling": {
                    "rope_type": "linear",
                    "type": "linear",
                    "rope_theta": 5.0,
                    "factor": 8.0,
                },
                "rope_local_base_freq": 7.0,
            },
        ),
        (
            {"text_config": {"hidden_size": 3, "rope_parameters": {"rope_theta": 5.0}}},
            {
                "text_config": {
                    "hidden_size": 3,
                    "rope_parameters": {"rope_theta": 5.0},
                    "rope_theta": 5.0,
                }
            },
        ),
    ],
)
def test_what_stands_in_a_new_place_is_said_in_the_old_one(
    config: dict[str, Any], said: dict[str, Any]
) -> None:
    """All but what is there too, in its old place."""
    assert said == flat_rope(config)
