"""Batches, and which layers get a LoRA: plain arrays, no framework."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.training.backends import lora
from strop.training.backends.base import BackendUnavailable, LoraSettings
from strop.training.backends.batch import pad
from strop.training.sequences import Tokens


def tokens(num_prompt: int, num_answer: int, first: int = 10) -> Tokens:
    """Return a sequence of consecutive ids."""
    return Tokens(np.arange(first, first + num_prompt + num_answer, dtype=np.int32), num_prompt)


def test_a_batch_of_two_by_hand() -> None:
    """Padding is on the right; each answer token's row is the one before it."""
    batch = pad([tokens(2, 2), tokens(1, 4, 50)])

    np.testing.assert_array_equal([[10, 11, 12, 13, 0], [50, 51, 52, 53, 54]], batch.ids)
    np.testing.assert_array_equal([1, 2, 5, 6, 7, 8], batch.rows)
    np.testing.assert_array_equal([12, 13, 51, 52, 53, 54], batch.targets)
    assert ((2, 4), 5) == (batch.sizes, batch.num_last)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_rows_and_targets_of_any_batch(sizes: list[tuple[int, int]]) -> None:
    """Behind each row stands its target, within the last positions that are kept."""
    sequences = [tokens(*each) for each in sizes]
    batch = pad(sequences)

    length = batch.ids.shape[1]
    np.testing.assert_array_equal(
        batch.targets, batch.ids[batch.rows // length, batch.rows % length + 1]
    )
    assert (batch.rows % length >= length - batch.num_last).all()
    values = batch.targets.astype(np.float32)
    for sequence, part in zip(sequences, batch.split(values), strict=True):
        np.testing.assert_array_equal(sequence.ids[sequence.num_prompt :], part)
    np.testing.assert_array_equal(values, batch.join(batch.split(values)))


def test_a_batch_needs_prompts() -> None:
    """Nothing predicts the first token of a sequence without a prompt."""
    for empty in ([], [tokens(0, 3)]):
        with pytest.raises(ValueError, match="at least one prompt token"):
            pad(empty)


@pytest.mark.parametrize(
    ("path", "is_target"),
    [
        ("model.layers.0.self_attn.q_proj", True),
        ("model.layers.11.mlp.down_proj", True),
        ("model.language_model.layers.3.mlp.gate_proj", True),
        ("transformer.h.2.attn.c_attn", True),
        ("model.layers.1.mlp.experts.5.up_proj", True),
        ("lm_head", False),
        ("model.embed_tokens", False),
        ("model.layers.1.mlp.gate", False),
        ("model.layers.1.mlp.shared_expert_gate", False),
        ("model.layers.1.block_sparse_moe.router", False),
        ("model.layers.1.router.proj", False),
        ("model.layers.1.mlp.gate.wg", False),
        ("score", False),
    ],
)
def test_a_fresh_lora_is_on_linear_layers_in_blocks(path: str, is_target: bool) -> None:
    """All of them but what chooses experts; not the head, not the embedding."""
    assert is_target == lora.is_target(path)


def test_a_base_without_blocks_has_no_place_for_lora() -> None:
    """That is said, instead of training nothing."""
    with pytest.raises(BackendUnavailable, match="no linear layers"):
        lora.fresh({"lm_head": (4, 8)}, LoraSettings())
