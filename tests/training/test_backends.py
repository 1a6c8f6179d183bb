"""The contract of training backends, torch and mlx alike: logprobs, and adapters in and out.

The reference is transformers and peft, teacher forced; no test here needs a GPU.
"""

import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from backend_cases import (
    SIZES,
    TOLERANCE,
    UNCLIPPED,
    Open,
    backend,
    gradients_of,
    opened,
    pull,
    reference,
    save_random,
    sequences,
)

from strop.adapters import peft
from strop.proxy.embedded import lora as embedded_lora
from strop.training.backends import open_policy
from strop.training.backends.base import BASE, TRAINED, LoraSettings

__all__ = ["backend", "opened"]  # fixtures


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    """A small random Llama whose head is not its embedding."""
    from transformers import LlamaConfig

    return save_random(tmp_path / "untied", LlamaConfig(**SIZES, tie_word_embeddings=False))


@pytest.mark.parametrize("adapter", [None, "peft_a", "peft_b", "peft_c"])
def test_logprobs_are_those_of_transformers_and_peft(
    opened: Open, qwen3: Path, adapter: str | None, request: pytest.FixtureRequest
) -> None:
    """Under any adapter, in one batch of unlike lengths, answers have peft's logprobs."""
    folder = request.getfixturevalue(adapter) if adapter else None
    asked = sequences((5, 7), (20, 3), (1, 12))

    found = opened(qwen3).logprobs(asked, folder or BASE)

    for tokens, logprobs in zip(asked, found, strict=True):
        assert np.float32 == logprobs.dtype
        np.testing.assert_allclose(reference(qwen3, folder, tokens), logprobs, atol=TOLERANCE)


def test_llama_with_tied_and_untied_embeddings(opened: Open, llama: Path, untied: Path) -> None:
    """The head is the embedding or its own matrix; both give transformers' logprobs."""
    asked = sequences((4, 9), (11, 2))

    for base in (llama, untied):
        for tokens, logprobs in zip(asked, opened(base).logprobs(asked), strict=True):
            np.testing.assert_allclose(reference(base, None, tokens), logprobs, atol=TOLERANCE)


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("kind", ["Gemma2Config", "GraniteConfig", "CohereConfig"])
def test_logits_that_are_scaled_or_capped_after_the_head(
    opened: Open,
    backend: str,
    kind: str,
    is_known: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They come in chunks too, but of a model that does what isn't known; logprobs are its own."""
    import transformers

    if not is_known:
        module = importlib.import_module(f"strop.training.backends.{backend}_model")
        monkeypatch.setattr(module, "heads", lambda head, *_: [head])

    scales: dict[str, dict[str, Any]] = {
        "Gemma2Config": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
        "GraniteConfig": {"logits_scaling": 3.0, "attention_multiplier": 0.25},
        "CohereConfig": {"logit_scale": 0.3, "pad_token_id": 0},
    }
    base = save_random(tmp_path / "model", getattr(transformers, kind)(**SIZES, **scales[kind]))
    asked = sequences((5, 4), (2, 8))

    policy: Any = opened(base, adamw=UNCLIPPED)
    policy._net = dataclasses.replace(policy._net, chunk=3 * SIZES["vocab_size"])

    assert is_known is (policy._net.head is not None)
    for tokens, logprobs in zip(asked, policy.logprobs(asked), strict=True):
        np.testing.assert_allclose(reference(base, None, tokens), logprobs, atol=TOLERANCE)
    policy.accumulate(asked, pull)
    assert policy.step(0.0) > 0


def test_a_mixture_of_experts(opened: Open, tmp_path: Path) -> None:
    """Attention and shared experts get a LoRA, what chooses experts none; logprobs are right."""
    from transformers import Qwen2MoeConfig

    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    }
    base = save_random(tmp_path / "model", Qwen2MoeConfig(**SIZES, **experts))
    asked = sequences((5, 9), (12, 4))
    policy = opened(base, adamw=UNCLIPPED)

    found = policy.logprobs(asked)
    policy.accumulate(asked, pull)
    changed = {
        name.removeprefix("model.layers.0.").removesuffix(".b")
        for name, gradient in gradients_of(policy, tmp_path / "state").items()
        if name.startswith("model.layers.0.") and name.endswith(".b") and gradient.any()
    }

    for tokens, logprobs in zip(asked, found, strict=True):
        np.testing.assert_allclose(reference(base, None, tokens), logprobs, atol=TOLERANCE)
    assert {f"self_attn.{name}" for name in models.ATTENTION} | {
        f"mlp.shared_expert.{name}" for name in models.MLP
    } == changed


def test_an_answer_of_a_thousand_tokens(opened: Open, llama: Path) -> None:
    """A long answer has transformers' logprobs to the last token."""
    (tokens,) = sequences((30, 1000))

    (found,) = opened(llama).logprobs([tokens])

    errors = np.abs(reference(llama, None, tokens) - found)
    assert errors.mean() < TOLERANCE
    # The frameworks' angles of far positions differ in the last digits.
    assert errors.max() < 10 * TOLERANCE


def test_a_base_in_bf16_is_near_to_the_reference(
    opened: Open, backend: str, qwen3_bf16: Path
) -> None:
    """On a CPU torch computes in float32, mlx in the base's own dtype, with its rounding."""
    asked = sequences((10, 30))

    policy = opened(qwen3_bf16)
    (found,) = policy.logprobs(asked)

    assert {"torch": "float32", "mlx": "bfloat16"}[backend] == policy.dtype
    mean_error = np.abs(reference(qwen3_bf16, None, asked[0]) - found).mean()
    assert mean_error < {"torch": TOLERANCE, "mlx": 0.2}[backend]


def test_a_model_for_images_is_adapted_where_text_goes_through(tmp_path: Path) -> None:
    """Ratings are of text: a LoRA in the tower for images would stay as it began."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {key: SIZES[key] for key in SIZES if key != "initializer_range"}
    images = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    config = Gemma3Config(text_config=text, vision_config={**images, **sizes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()

    policy = open_policy(tmp_path / "base", backend="torch")
    policy.save_adapter(tmp_path / "adapter")

    _, shapes = peft.read_shapes(tmp_path / "adapter")
    assert 2 * 7 == len(shapes)
    assert all(path.startswith("model.language_model.layers.") for path in shapes)


def test_a_model_for_images_has_one_name_for_each_layer(tmp_path: Path) -> None:
    """That of its files, which vLLM reads; trained in torch, it is the same in mlx-lm's model."""
    import torch
    from mlx_lm.utils import load_model
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = {
        **SIZES,
        "layer_types": ["linear_attention", "full_attention"],
        "full_attention_interval": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    images = {"depth": 1, "num_heads": 2, "out_hidden_size": 64}
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    config = Qwen3_5Config(text_config=text, vision_config={**images, **sizes})
    model = Qwen3_5ForConditionalGeneration._from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    asked = sequences((5, 7), (3, 4))
    policy = open_policy(tmp_path / "base", backend="torch")
    policy.accumulate(asked, pull)
    policy.step(0.01)

    policy.save_adapter(tmp_path)

    paths = {path.removesuffix(".weight") for path in model.state_dict()}
    assert paths > peft.read(tmp_path).modules.keys()
    continued = open_policy(tmp_path / "base", start=tmp_path, backend="mlx")
    for expected, found in zip(policy.logprobs(asked), continued.logprobs(asked), strict=True):
        np.testing.assert_allclose(expected, found, atol=TOLERANCE)
    served, _ = load_model(tmp_path / "base")
    shapes = embedded_lora.shapes_of(served)
    loaded = embedded_lora.prepare(tmp_path, shapes, max_rank=8, base_identity=None)
    assert len(peft.read(tmp_path).modules) == len(loaded.keys() & shapes.keys())


def test_a_model_for_images_that_transformers_has_for_text_alone(tmp_path: Path) -> None:
    """It is loaded as that: there is no other way."""
    import torch
    from transformers import AutoModelForCausalLM, Phi4MultimodalConfig

    text = {key: SIZES[key] for key in SIZES if key not in ("initializer_range", "head_dim")}
    towers = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = Phi4MultimodalConfig(
        **text,
        pad_token_id=0,
        vision_config={**towers, "num_hidden_layers": 2, "image_size": 56, "crop_size": 56},
        audio_config={**towers, "num_blocks": 2},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")

    policy = open_policy(tmp_path / "base", backend="torch")
    policy.save_adapter(tmp_path)

    paths = {path.removesuffix(".weight") for path in model.state_dict()}
    assert paths > peft.read(tmp_path).modules.keys()


def test_a_fresh_lora_changes_nothing_and_is_the_same_in_every_backend(
    opened: Open, qwen3: Path, tmp_path: Path
) -> None:
    """A fresh LoRA is on all linear layers of the blocks, and given by its settings alone."""
    settings = LoraSettings(rank=4, alpha=8, seed=3)
    asked = sequences((6, 8))

    policy = opened(qwen3, lora=settings)
    policy.save_adapter(tmp_path)

    np.testing.assert_array_equal(policy.logprobs(asked, BASE), policy.logprobs(asked))
    adapter = peft.read(tmp_path)
    assert 3 * len(models.ALL_LINEAR) == len(adapter.modules)
    assert {(4, 2.0)} == {(len(module.a), module.scale) for module in adapter.modules.values()}
    # Drawn by numpy from the seed, so this number is that of both backends.
    first = adapter.modules["model.layers.0.mlp.down_proj"].a
    expected = np.random.default_rng(3).uniform(-1, 1, first.shape) * 256**-0.5
    np.testing.assert_allclose(expected, first, rtol=1e-6)


def test_other_weights_leave_the_trained_ones_alone(
    opened: Open, qwen3: Path, peft_a: Path, peft_b: Path, peft_c: Path, tmp_path: Path
) -> None:
    """Any number of other adapters can be computed with, before and after a step."""
    asked = sequences((5, 7))
    fourth = Path(shutil.copytree(peft_c, tmp_path / "fourth"))
    policy, alone = opened(qwen3, peft_a), opened(qwen3, peft_a)

    for _ in range(2):
        for other in (peft_b, peft_c, BASE, fourth, peft_a, peft_b):
            (found,) = policy.logprobs(asked, other)
            adapter = None if other == BASE else Path(other)
            np.testing.assert_allclose(reference(qwen3, adapter, asked[0]), found, atol=TOLERANCE)
        for each in (policy, alone):
            each.accumulate(asked, pull)
            each.step(0.01)
        np.testing.assert_array_equal(alone.logprobs(asked), policy.logprobs(asked, TRAINED))


def test_a_saved_adapter_is_read_by_peft_and_by_both_backends(
    opened: Open, qwen3: Path, peft_c: Path, tmp_path: Path
) -> None:
    """What is saved has the trained logprobs in transformers and peft, and wherever it is opened.

    Rank, scale and layers are those that it was continued from.
    """
    asked = sequences((5, 7), (3, 4))
    policy = opened(qwen3, peft_c)
    policy.accumulate(asked, pull)
    policy.step(0.01)
    expected = policy.logprobs(asked)

    policy.save_adapter(tmp_path)

    continued, saved = peft.read(peft_c), peft.read(tmp_path)
    assert {path: m.scale for path, m in continued.modules.items()} == {
        path: m.scale for path, m in saved.modules.items()
    }
    assert np.abs(expected[0] - policy.logprobs(asked, peft_c)[0]).max() > 100 * TOLERANCE
    for tokens, logprobs in zip(asked, expected, strict=True):
        np.testing.assert_allclose(reference(qwen3, tmp_path, tokens), logprobs, atol=TOLERANCE)
    for name in ("torch", "mlx"):
        other = open_policy(qwen3, start=tmp_path, backend=name)
        for logprobs, found in zip(expected, other.logprobs(asked), strict=True):
            np.testing.assert_allclose(logprobs, found, atol=TOLERANCE)
        other.close()


def test_an_adapter_of_another_base_is_refused(
    opened: Open, qwen3: Path, untied: Path, peft_a: Path
) -> None:
    """Neither training nor comparing starts with an adapter that doesn't fit the base."""
    with pytest.raises(peft.InvalidAdapter, match="trained on another model"):
        opened(untied, peft_a)

    policy = opened(untied)
    with pytest.raises(peft.InvalidAdapter, match="trained on another model"):
        policy.logprobs(sequences((5, 7)), peft_a)
    assert qwen3 != untied


def test_peak_memory_is_told(opened: Open, qwen3: Path) -> None:
    """The peak is at least what the weights take."""
    policy = opened(qwen3)

    policy.logprobs(sequences((5, 7)))

    assert policy.peak_memory_bytes >= (qwen3 / "model.safetensors").stat().st_size
