"""Which of mlx-lm's models give for several sequences what they give for each of them alone."""

from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models import gemma2, llama, mamba

from strop.adapters.mlx_rows import Float32Logits, rows_are_independent

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 6,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
}


def spread(model: Any) -> Any:
    """Return the model with weights far from zero, so that what is mixed shows."""
    key = mx.random.key(0)
    model.update(tree_map(lambda w: mx.random.normal(w.shape, key=key), model.parameters()))
    return model


def plain() -> Any:
    """Return a Llama."""
    return spread(llama.Model(llama.ModelArgs("llama", num_key_value_heads=2, **SIZES)))


def test_rows_that_mix_are_found_out_whether_they_fail_or_not() -> None:
    """Gemma 2 fails with two rows or with three, by its heads; Mamba with none, and is wrong."""
    states = {"state_size": 8, "conv_kernel": 4, "time_step_rank": 3}
    biases = {"use_bias": False, "use_conv_bias": True}
    given = {"model_type": "mamba", **SIZES, **states, **biases}
    mixing = (
        *(
            gemma2.Model(gemma2.ModelArgs("gemma2", head_dim=8, num_key_value_heads=num, **SIZES))
            for num in (2, 3)
        ),
        mamba.Model(mamba.ModelArgs.from_dict(given)),
    )

    assert rows_are_independent(plain())
    assert [False] * 3 == [rows_are_independent(spread(model)) for model in mixing]


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, IndexError, AttributeError])
def test_a_model_may_fail_on_several_rows_as_it_likes(kind: type[Exception]) -> None:
    """Its rows are run one by one then."""

    class Single(Float32Logits):
        def __call__(self, ids: Any, **kwargs: Any) -> Any:
            if len(ids) > 1:
                raise kind("one at a time")
            return super().__call__(ids, **kwargs)

    assert not rows_are_independent(Single(plain()))


def test_a_model_that_fails_on_one_row_is_broken() -> None:
    """What it raises isn't hidden."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        rows_are_independent(broken)
